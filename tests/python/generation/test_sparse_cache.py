"""Sparse attention and cached decoding together: which passes are sparse, and the numbers of all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import sparsed
from cached_models import CACHES, SAMPLERS, Slow, Watched, prompt_of
from paths import DATA
from sparsed import (
    DelayedCache,
    DreamSampler,
    DualCache,
    LLaDASampler,
    PrefixCache,
    SlidingWindow,
    SparseConfig,
    generate,
)

SPARSE = SparseConfig(block_size=16, rho=0.3, skip=0, min_length=0)


@pytest.fixture(scope="module", params=["llada", "dream"])
def model(request: pytest.FixtureRequest):
    return sparsed.load_model(DATA / f"{request.param}_b32", "float32")


def options_of(model, block_length: int | None = 4, **more: Any) -> dict[str, Any]:
    sampler = SAMPLERS[model.config.family](block_length=block_length)
    return {"gen_length": 16, "steps": 16, "sampler": sampler, "stop": (), "history": True, **more}


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_pattern_of_all_blocks_changes_no_bit(model, cache, block_length) -> None:
    prompt, options = prompt_of(model, 90), options_of(model, block_length)
    alone = generate(model, prompt, kv_cache=cache, **options)
    both = generate(model, prompt, kv_cache=cache, sparse=dataclasses.replace(SPARSE, rho=1), **options)
    np.testing.assert_array_equal(both.history, alone.history)
    np.testing.assert_array_equal(both.confidence, alone.confidence)


@pytest.mark.parametrize("sparse", [SPARSE, SlidingWindow(32, 16)], ids=["SparseD", "window"])
@pytest.mark.parametrize("cache", [PrefixCache(), DualCache(), DualCache(None, 2), DelayedCache(refresh=3)], ids=str)
def test_the_numbers_are_those_of_a_forward_that_computes_everything(model, cache, sparse) -> None:
    prompt, options = prompt_of(model, 90), options_of(model)
    fast = generate(model, prompt, kv_cache=cache, sparse=sparse, **options)
    slow = generate(Slow(model), prompt, kv_cache=cache, sparse=sparse, **options)
    np.testing.assert_array_equal(fast.history, slow.history)
    np.testing.assert_array_equal(fast.confidence, slow.confidence)
    dense = generate(model, prompt, kv_cache=cache, **options)
    assert not np.array_equal(fast.confidence, dense.confidence)  # the sparse passes have an effect


def test_only_full_passes_are_steps_of_the_pattern(model) -> None:
    result = generate(model, prompt_of(model, 90), kv_cache=DualCache(), sparse=SPARSE, **options_of(model))
    called = [step for step in result.stats if step.forwards]
    full = [step.phase for step in called if step.full_passes]
    assert full == ["select", "sparse", "sparse", "sparse"]
    assert {step.phase for step in called if not step.full_passes} == {"cached"}
    patterns = result.groups[0].patterns
    assert patterns is not None and patterns.step == 3
    assert result.stats.full_passes == 4 and result.stats.forwards == len(called)
    assert "full" in result.stats.table()


def test_skip_is_the_share_of_unmasked_tokens() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    sparse = dataclasses.replace(SPARSE, skip=0.5)
    result = generate(model, prompt_of(model, 90), kv_cache=DualCache(), sparse=sparse, **options_of(model))
    full = [(step.step, step.phase) for step in result.stats if step.full_passes]
    assert full == [(0, "dense"), (4, "dense"), (8, "select"), (12, "sparse")]


@pytest.mark.parametrize("sampler", [LLaDASampler(cfg_scale=0.5, block_length=4), LLaDASampler(4, threshold=0.05)])
def test_guidance_thresholds_and_batches(sampler) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    rows = [prompt_of(model, 70, seed=1), prompt_of(model, 50, seed=2)]
    ids, mask = sparsed.pad_left(rows)
    options: dict[str, Any] = options_of(model, sampler=sampler, kv_cache=DualCache(), sparse=SPARSE)
    together = generate(model, ids, prompt_mask=mask, **options)
    for row, expected in zip(rows, together.generated, strict=True):
        np.testing.assert_array_equal(generate(model, row, **options).generated[0], expected)
    assert together.stats.phase_seconds["sparse"] > 0 and together.stats.phase_seconds["cached"] > 0


def test_rows_take_turns_where_memory_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    ids = np.stack([prompt_of(model, 40, seed) for seed in range(3)])
    options: dict[str, Any] = options_of(model, kv_cache=DualCache(), seed=3)
    together = generate(model, ids, **options)
    row_bytes, alive = model.key_values_nbytes(56), []

    def limited(count: float):
        def require_memory(needed: int, what: str) -> None:
            if "keys and values" in what and needed > count * row_bytes:
                raise MemoryError(f"{what} needs {needed} bytes, available are {int(count * row_bytes)}")

        return require_memory

    class Counted(Watched):
        def __init__(self, model) -> None:
            super().__init__(model)
            self.new_key_values = lambda: alive.append(len(alive)) or model.new_key_values()

    for fits, turns in ((2, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(sparsed.generation.generate.ops, "require_memory", limited(fits))
        seen: list[int] = []
        apart = generate(model, ids, on_step=lambda info, seen=seen: seen.append(info.step), **options)
        np.testing.assert_array_equal(apart.tokens, together.tokens)
        np.testing.assert_array_equal(apart.confidence, together.confidence)
        assert seen == list(range(16 * len(turns))) == [step.step for step in apart.stats]
        assert apart.stats.forwards == together.stats.forwards
        assert apart.history is not None and len(apart.history) == 1 + 16 * len(turns)
        for row in range(3):  # filled_at names a step of the statistics
            position = int(np.argmax(apart.filled_at[row]))
            step = int(apart.filled_at[row, position])
            assert apart.history[step, row, 40 + position] == model.config.mask_token_id
            assert apart.history[step + 1, row, 40 + position] == apart.generated[row, position]
    monkeypatch.setattr(sparsed.generation.generate.ops, "require_memory", limited(0.5))
    with pytest.raises(MemoryError, match="generate: the keys and values needs"):
        generate(model, ids, **options)


def test_notes_say_what_had_no_effect() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    prompt = prompt_of(model, 90)
    one_pass = generate(model, prompt, kv_cache=DualCache(), sparse=SPARSE, **options_of(model, block_length=None))
    assert one_pass.stats.notes == [
        "SparseConfig had no effect: no step after the selection computed all tokens (skip 0.0)"
    ]
    always = generate(model, prompt, kv_cache=DualCache(refresh=1), sparse=SPARSE, **options_of(model))
    assert always.stats.notes == ["DualCache had no effect: every step computed all tokens"]
    both = generate(
        model, np.stack([prompt, prompt]), kv_cache=DualCache(), sparse=SPARSE, **options_of(model, block_length=None)
    )
    assert both.stats.notes == one_pass.stats.notes
    fine = generate(model, prompt, kv_cache=DualCache(), sparse=SPARSE, **options_of(model))
    assert fine.stats.notes == []


def test_dream_works_in_blocks() -> None:
    model = sparsed.load_model(DATA / "dream_b32", "float32")
    sampler = DreamSampler(block_length=4, alg="maskgit_plus")
    result = generate(
        model, prompt_of(model, 60), kv_cache=PrefixCache(), sparse=SPARSE, **options_of(model, sampler=sampler)
    )
    assert (result.generated != model.config.mask_token_id).all()
