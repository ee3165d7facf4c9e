"""generate(sparse=...) with patterns instead of settings, and with own rules."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed
from cached_models import prompt_of
from paths import DATA
from sparsed import BlockPattern, DualCache, LLaDASampler, PatternCache, SlidingWindow, SparseConfig, generate

PROMPT, GENERATION = 90, 16
LENGTH = PROMPT + GENERATION
SPARSE = SparseConfig(skip=0, rho=0.3, block_size=16, min_length=0)
OPTIONS: dict[str, Any] = {"gen_length": GENERATION, "steps": 8, "stop": (), "history": True}


@pytest.fixture(scope="module", params=["native", "torch"])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "torch":
        pytest.importorskip("torch")
    return sparsed.load_model(DATA / "llada_b32", engine=request.param)


def patterns(result: Any, group: int = 0) -> PatternCache:
    cache = result.groups[group].patterns
    assert isinstance(cache, PatternCache)
    return cache


def window_of(model: Any, length: int = LENGTH, prompt: int = PROMPT, batch: int = 1) -> BlockPattern:
    sizes: Any = {"block_size": 16, "q_len": length, "kv_len": length, "prompt_length": prompt}
    return BlockPattern.sliding_window(batch, model.config.num_heads, window=40, **sizes)


def test_another_prompt_takes_the_patterns_of_a_file(model: Any, tmp_path: Path) -> None:
    first = generate(model, prompt_of(model, PROMPT), sparse=SPARSE, **OPTIONS)
    patterns(first).save(tmp_path / "patterns")
    cache = PatternCache.load(tmp_path / "patterns")
    other = prompt_of(model, PROMPT, seed=1)
    result = generate(model, other, sparse=cache, **OPTIONS)
    assert [step.phase for step in result.stats] == ["sparse"] * 8
    assert all(0 < step.density < 1 for step in result.stats)
    for layer in range(model.config.num_layers):
        assert patterns(result).pattern(layer) == patterns(first).pattern(layer)
    assert cache.step == -1  # it is as it was
    assert generate(model, other, sparse=patterns(first), **OPTIONS) == result
    dense = generate(model, other, **OPTIONS)
    assert not np.array_equal(result.confidence, dense.confidence)


def test_one_pattern_for_all_layers_is_a_window(model: Any) -> None:
    window = generate(model, prompt_of(model, PROMPT), sparse=SlidingWindow(40, 16, "sparse"), **OPTIONS)
    given = generate(model, prompt_of(model, PROMPT), sparse=window_of(model), **OPTIONS)
    np.testing.assert_array_equal(given.history, window.history)
    np.testing.assert_array_equal(given.confidence, window.confidence)
    assert [step.density for step in given.stats] == [step.density for step in window.stats]
    unknown = window_of(model, prompt=0)
    np.testing.assert_array_equal(
        generate(model, prompt_of(model, PROMPT), sparse=unknown, **OPTIONS).history, window.history
    )


def test_rows_take_their_own_patterns(model: Any) -> None:
    prompts = np.stack([prompt_of(model, PROMPT, seed) for seed in range(3)])
    whole = generate(model, prompts, sparse=SPARSE, **OPTIONS)
    again = generate(model, prompts, sparse=patterns(whole), **OPTIONS)
    for row in range(3):
        alone = PatternCache(None, steps=None, prompt_length=PROMPT)
        for layer in patterns(whole).layers:
            alone.set_pattern(layer, patterns(whole).pattern(layer)[row])
        single = generate(model, prompts[row], sparse=alone, **OPTIONS)
        if type(model).__module__.startswith("sparsed.models"):  # torch rounds by the batch
            np.testing.assert_array_equal(single.tokens[0], again.tokens[row])
    # Rows that run one by one, as they do where they may stop, take theirs.
    apart = generate(model, prompts, sparse=patterns(whole), **{**OPTIONS, "stop": (1,)})
    assert [list(group.batch_indices) for group in apart.groups] == [[0], [1], [2]]
    for row in range(3):
        assert patterns(apart, row).pattern(0) == patterns(whole).pattern(0)[row]
    # One pattern with batch 1 serves all rows.
    shared = generate(model, prompts, sparse=window_of(model), **OPTIONS)
    assert patterns(shared).pattern(0) == window_of(model, batch=3)


def test_guidance_has_patterns_of_the_twins(model: Any) -> None:
    options = {**OPTIONS, "sampler": LLaDASampler(cfg_scale=1.0)}
    prompts = np.stack([prompt_of(model, PROMPT, seed) for seed in range(2)])
    whole = generate(model, prompts, sparse=SPARSE, **options)
    assert patterns(whole).pattern(0).batch == 4
    again = generate(model, prompts, sparse=patterns(whole), **options)
    assert patterns(again).pattern(0) == patterns(whole).pattern(0)
    apart = generate(model, prompts, sparse=patterns(whole), **{**options, "stop": (1,)})
    assert patterns(apart, 1).pattern(0) == patterns(whole).pattern(0)[[1, 3]]


def test_with_a_key_value_cache(model: Any) -> None:
    result = generate(
        model,
        prompt_of(model, PROMPT),
        sparse=window_of(model),
        kv_cache=DualCache(),
        **{**OPTIONS, "sampler": LLaDASampler(block_length=8)},
    )
    assert {step.phase for step in result.stats} == {"sparse", "cached"}


def test_patterns_that_do_not_fit_are_refused(model: Any) -> None:
    prompt = prompt_of(model, PROMPT)

    def fails(sparse: Any, message: str, given: Any = prompt) -> None:
        with pytest.raises(ValueError, match=message):
            generate(model, given, sparse=sparse, **OPTIONS)

    fails(window_of(model, LENGTH + 1), r"generate: sparse is for 107 queries and 107 keys, expected 106 \(prompt")
    fails(window_of(model, prompt=80), r"generate: sparse has prompt_length 80, expected 90 or 0")
    fails(window_of(model, batch=2), r"generate: sparse has batch 2, expected 1")
    fails(window_of(model, batch=2), r"generate: sparse has batch 2, expected 3", np.stack([prompt] * 3))
    fails(PatternCache(None, steps=1, prompt_length=PROMPT), "holds no pattern, expected one of each layer")
    cache = PatternCache(None, steps=1, prompt_length=PROMPT)
    cache.set_pattern(0, window_of(model))
    fails(cache, "layer 1 has no pattern")
    cache.set_pattern(1, window_of(model)[0, [0]])
    fails(cache, "q has heads")
    longer = PatternCache(None, steps=1, prompt_length=PROMPT)
    longer.set_pattern(0, window_of(model, LENGTH + 1))
    fails(longer, r"generate: sparse.pattern\(0\) is for 107 queries")
    with pytest.raises(TypeError, match=r"generate: sparse is str, expected SparseConfig, .*, BlockPattern or None"):
        generate(model, prompt, sparse="window", **OPTIONS)  # type: ignore[arg-type]


def test_own_rules(model: Any) -> None:
    layers = []

    def nearest_and_best(scores: Any, geometry: sparsed.BlockGeometry) -> Any:
        layers.append(geometry.layer)
        assert (geometry.length, geometry.prompt_length) == (LENGTH, PROMPT)
        near = np.eye(geometry.blocks, dtype=bool)
        return (scores == scores.max(axis=-1, keepdims=True)) | near

    sparse = SparseConfig(skip=0, block_size=16, min_length=0, selection=nearest_and_best, rho=1)
    result = generate(model, prompt_of(model, PROMPT), sparse=sparse, **OPTIONS)
    assert layers == list(range(model.config.num_layers))
    assert [step.phase for step in result.stats] == ["select"] + ["sparse"] * 7
    assert not result.stats.notes
    pattern = patterns(result).pattern(0)
    assert (pattern.to_mask()[:, :, PROMPT // 16 :]).all()  # the rows of the generation are dense
    assert set(pattern.to_mask()[0, :, : PROMPT // 16].sum(axis=-1).ravel()) <= {1, 2}
    assert pattern.density < 0.6


def test_notes_on_an_own_rule_name_it(model: Any) -> None:
    @dataclasses.dataclass
    class Everything:  # not hashable
        calls: int = 0

        def __call__(self, scores: Any, geometry: sparsed.BlockGeometry) -> Any:
            self.calls += 1
            return np.ones(scores.shape, bool)

    rule = Everything()
    sparse = SparseConfig(skip=0, block_size=16, min_length=0, selection=rule)
    result = generate(model, prompt_of(model, PROMPT), sparse=sparse, **OPTIONS)
    assert rule.calls == model.config.num_layers
    assert "the patterns hold all blocks (selection test_given_patterns.test_notes_on" in result.stats.notes[0]
