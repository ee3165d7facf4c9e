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
    fails(window_of(model, batch=2), r"^generate: sparse has batch 2, expected 1 \(there is one row\)$")
    three = r"^generate: sparse has batch 2, expected 3 \(the rows\) or 1 \(for all of them\)$"
    fails(window_of(model, batch=2), three, np.stack([prompt] * 3))
    guided = {**OPTIONS, "sampler": LLaDASampler(cfg_scale=1.0)}
    with pytest.raises(ValueError, match=r"has batch 3, expected 2 \(the rows and their guiding twins\) or 1"):
        generate(model, prompt, sparse=window_of(model, batch=3), **guided)
    heads = model.config.num_heads
    fails(window_of(model)[0, [0]], rf"^generate: sparse has heads 1, expected {heads} \(the query heads of the model")
    fails(PatternCache(None, steps=1, prompt_length=PROMPT), "holds no pattern, expected one of each layer")
    cache = PatternCache(None, steps=1, prompt_length=PROMPT)
    layers = model.config.num_layers
    for layer in range(layers):
        if layer:
            fails(cache, rf"^generate: sparse holds no pattern of layer {layer}, expected one of each layer 0 ... ")
        cache.set_pattern(layer, window_of(model))
    generate(model, prompt, sparse=cache, **OPTIONS)
    cache.set_pattern(layers, window_of(model))
    fails(cache, rf"^generate: sparse holds a pattern of layer {layers}, expected layers 0 ... {layers - 1} \(those of")
    fewer = PatternCache(None, steps=1, prompt_length=PROMPT)
    for layer in range(layers):
        fewer.set_pattern(layer, window_of(model)[0, [0]] if layer else window_of(model))
    fails(fewer, rf"^generate: sparse.pattern\(1\) has heads 1, expected {heads}")
    longer = PatternCache(None, steps=1, prompt_length=PROMPT)
    for layer in range(layers):
        longer.set_pattern(layer, window_of(model, LENGTH + 1))
    fails(longer, r"generate: sparse.pattern\(0\) is for 107 queries")
    with pytest.raises(TypeError, match=r"generate: sparse is str, expected SparseConfig, .*, BlockPattern or None"):
        generate(model, prompt, sparse="window", **OPTIONS)  # type: ignore[arg-type]


def without_keys(pattern: BlockPattern, row: int, head: int, block: int) -> BlockPattern:
    """The pattern, where one query block keeps nothing."""
    mask = pattern.to_mask()
    mask[row, head, block] = False
    sizes: Any = {name: getattr(pattern, name) for name in ("block_size", "q_len", "kv_len", "prompt_length")}
    return BlockPattern.from_mask(mask, **sizes)


def test_query_blocks_without_keys_are_refused(model: Any) -> None:
    window, full = window_of(model), BlockPattern.full(1, model.config.num_heads, block_size=16, q_len=106, kv_len=106)
    prompts = np.stack([prompt_of(model, PROMPT, seed) for seed in range(3)])
    none = "keeps no key block for query block"

    def fails(sparse: Any, message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=rf"^generate: {message}, expected at least one$"):
            generate(model, prompts, sparse=sparse, **{**OPTIONS, **options})

    fails(full - full, rf"sparse {none} 0 of head 0 in batch row 0")
    fails(without_keys(window, 0, 1, 3), rf"sparse {none} 3 of head 1 in batch row 0")
    rows = without_keys(window_of(model, batch=3), 2, 1, 6)
    fails(rows, rf"sparse {none} 6 of head 1 in batch row 2")
    fails(rows, rf"sparse {none} 6 of head 1 in batch row 2", stop=(1,))  # where rows run one by one
    twins = without_keys(window_of(model, batch=6), 4, 0, 1)
    fails(twins, rf"sparse {none} 1 of head 0 in batch row 4", stop=(1,), sampler=LLaDASampler(cfg_scale=1.0))
    cache = PatternCache(window, steps=None, prompt_length=PROMPT)
    cache.set_pattern(1, without_keys(window, 0, 1, 3))
    fails(cache, rf"sparse.pattern\(1\) {none} 3 of head 1 in batch row 0")
    of_all = PatternCache(without_keys(window, 0, 1, 3), steps=None, prompt_length=PROMPT)
    fails(of_all, rf"sparse.config {none} 3 of head 1 in batch row 0")


def test_a_cache_made_with_one_pattern(model: Any, tmp_path: Path) -> None:
    """All layers use it, also those that have not attended yet, except those that hold another one."""
    prompts = np.stack([prompt_of(model, PROMPT, seed) for seed in range(2)])
    window = window_of(model)
    expected = generate(model, prompts, sparse=window, **OPTIONS)
    cache = PatternCache(window, steps=1, prompt_length=PROMPT)
    assert generate(model, prompts, sparse=cache, **OPTIONS) == expected
    cache.begin_step(0)
    q = np.ones((1, model.config.num_heads, LENGTH, 16), np.float32)
    cache.attend(0, q, q, q)
    assert cache.layers == [0]
    assert generate(model, prompts, sparse=cache, **OPTIONS) == expected
    patterns(expected).save(tmp_path / "patterns")
    loaded = PatternCache.load(tmp_path / "patterns")
    np.testing.assert_array_equal(generate(model, prompts, sparse=loaded, **OPTIONS).history, expected.history)
    other = BlockPattern.full(1, model.config.num_heads, block_size=16, q_len=LENGTH, kv_len=LENGTH)
    cache.set_pattern(1, other)
    mixed = patterns(generate(model, prompts, sparse=cache, **OPTIONS))
    assert mixed.pattern(0) == window[[0, 0]]
    assert mixed.pattern(1) == other[[0, 0]]


def over_all_scores(scores: Any, geometry: sparsed.BlockGeometry) -> Any:
    """One threshold for everything that the rule sees, as in docs/research.md."""
    return (scores >= np.quantile(scores, 0.9)) | (scores >= scores.max(axis=-1, keepdims=True))


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_an_own_rule_keeps_rows_independent(model: Any, cfg_scale: float) -> None:
    sparse = SparseConfig(skip=0, block_size=16, min_length=0, selection=over_all_scores)
    options = {**OPTIONS, "sparse": sparse, "sampler": LLaDASampler(cfg_scale=cfg_scale)}
    prompts = [prompt_of(model, PROMPT - 20 * (row % 2), row) for row in range(4)]
    ids, mask = sparsed.pad_left(prompts)
    whole = generate(model, ids, prompt_mask=mask, **options)
    apart = generate(model, ids, prompt_mask=mask, **{**options, "stop": (1,)})
    assert [list(group.batch_indices) for group in whole.groups] == [[0, 2], [1, 3]]
    for group in whole.groups:
        for i, row in enumerate(group.batch_indices):
            alone = generate(model, prompts[row], **options)
            if not type(model).__module__.startswith("sparsed.models"):  # torch rounds by the batch
                continue
            np.testing.assert_array_equal(whole.generated[row], alone.generated[0])
            np.testing.assert_array_equal(whole.confidence[row], alone.confidence[0])
            np.testing.assert_array_equal(whole.generated[row], apart.generated[row])
            assert group.patterns is not None
            of_row = [i, i + 2] if cfg_scale else [i]
            for layer in range(model.config.num_layers):
                assert group.patterns.pattern(layer)[of_row] == patterns(alone).pattern(layer)


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
