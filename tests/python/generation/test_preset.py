"""Presets: what they hold, for whom they are made, and that `generate` takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsed
from paths import DATA
from sparsed import DreamSampler, DualCache, LLaDASampler, SparseConfig, generate, preset
from sparsed.demo import demo_model_folder

QUESTION = "the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"


@pytest.fixture(scope="module")
def demo():
    return sparsed.load_model(demo_model_folder()), sparsed.load_tokenizer(demo_model_folder())


def test_presets_hold_what_they_say(demo) -> None:
    model, tokenizer = demo
    for source in demo:
        assert preset("exact", source) == {"stop": (2,)}
        assert preset("balanced", source) == {
            "sampler": LLaDASampler(32, threshold=0.95),
            "kv_cache": DualCache(),
            "sparse": SparseConfig(skip=0, rho=0.3, generation="dense"),
            "stop": (2,),
        }
        assert preset("fast", source) == {
            "sampler": LLaDASampler(32, threshold=0.9),
            "kv_cache": DualCache(refresh_every=None),
            "stop": (2,),
        }
    dream = sparsed.load_model(DATA / "dream_b32")
    assert preset("balanced", dream)["sampler"] == DreamSampler(block_length=32, threshold=0.95)
    assert tokenizer.family == model.config.family == "llada"


@pytest.mark.parametrize("name", ["exact", "balanced", "fast"])
def test_generate_takes_them(demo, name) -> None:
    model, tokenizer = demo
    result = generate(model, tokenizer.chat(QUESTION), gen_length=40, steps=40, **preset(name, tokenizer))
    assert tokenizer.text(result.generated[0]) == "zileba is 107 ;"
    assert (result.generated != model.config.mask_token_id).all()
    assert name == "exact" or result.stats.full_passes < result.stats.forwards < 40


def test_exact_is_the_text_of_dense_decoding() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    for block_length in (None, 8):
        options: dict[str, Any] = {"gen_length": 32, "steps": 32, "sampler": LLaDASampler(block_length=block_length)}
        for seed in range(4):
            prompt = np.random.default_rng(seed).integers(0, 100, 40)
            dense = generate(model, prompt, stop=(), **options)
            exact = generate(model, prompt, **options, **preset("exact", model))
            ends = np.isin(dense.generated[0], model.config.end_token_ids)
            length = int(np.argmax(ends)) + 1 if ends.any() else 32
            np.testing.assert_array_equal(exact.generated[0, :length], dense.generated[0, :length])
            assert exact.stats.forwards <= dense.stats.forwards


def test_balanced_selects_once_and_is_sparse_later() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    settings = preset("balanced", model) | {"stop": ()}
    prompt = np.random.default_rng(0).integers(0, 100, 2048)
    result = generate(model, prompt, gen_length=96, steps=96, **settings)
    full = [step.phase for step in result.stats if step.full_passes]
    assert full == ["select", "sparse", "sparse"]


def test_preset_refuses(tmp_path) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    with pytest.raises(ValueError, match="preset: name is 'quick', expected one of 'exact', 'balanced', 'fast'"):
        preset("quick", model)
    with pytest.raises(
        TypeError, match="preset: tokenizer_or_model is a str, expected what load_tokenizer or load_model"
    ):
        preset("fast", "demo")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo_model_folder() / name).read_bytes())
    alone = sparsed.load_tokenizer(tmp_path)
    assert alone.family is None
    with pytest.raises(ValueError, match="preset: the tokenizer comes from a folder without a model that"):
        preset("fast", alone)
