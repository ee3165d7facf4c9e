"""Cached decoding: which tokens are computed when, the same numbers as a slow forward, rows, errors."""

from __future__ import annotations

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
    PatternCache,
    PrefixCache,
    SparseConfig,
    generate,
)
from sparsed.generation.kv_cache import KVCachePolicy


@pytest.fixture(scope="module", params=["llada", "dream"])
def model(request: pytest.FixtureRequest):
    return sparsed.load_model(DATA / f"{request.param}_b32", "float32")


# --- forward ---------------------------------------------------------------------------------------------------------


def test_rows_of_a_forward_have_the_logits_of_the_whole(model) -> None:
    ids = prompt_of(model, 70)[None]
    kept = model.new_key_values()
    whole = model.forward(ids, key_values=kept)
    np.testing.assert_array_equal(whole, model.forward(ids))
    raw = 2 * 70 * 4 * model.config.num_layers * model.config.num_kv_heads * model.config.head_dim
    assert raw <= kept.nbytes == model.key_values_nbytes(70) <= raw * 96 / 70  # in groups of 16 or 32 keys
    assert model.key_values_nbytes(70, batch=3) == 3 * kept.nbytes
    rows = [3, 4, 40, 69]
    part = model.forward(ids, key_values=kept, computed=rows, positions=[4, 69])
    np.testing.assert_array_equal(part, whole[:, [4, 69]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"computed": []}, "computed is empty or out of order"),
        ({"computed": [2, 1]}, "computed is empty or out of order"),
        ({"computed": [9]}, "computed is 9 at"),
        ({"computed": [1, 2], "positions": [2, 3]}, "positions has 3, expected only"),
        ({"computed": [1, 2], "positions": [2]}, "computed has 2 tokens, expected all 5"),
        (
            {
                "computed": [1],
                "positions": [1],
                "attend": PatternCache(SparseConfig(), steps=4, prompt_length=2).attend,
            },
            "attend is given with computed of 1 tokens, expected all 5 tokens or no attend",
        ),
    ],
)
def test_forward_refuses_rows_that_do_not_fit(model, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        model.forward([[1, 2, 3, 4, 5]], **options, key_values=model.new_key_values())


def test_forward_refuses_rows_without_key_values(model) -> None:
    with pytest.raises(ValueError, match="computed is given without key_values"):
        model.forward([[1, 2, 3, 4, 5]], computed=[0])


def test_forward_refuses_other_key_values(model) -> None:
    with pytest.raises(TypeError, match="forward: key_values is a builtins.int, expected what new_key_values"):
        model.forward([[1, 2, 3]], key_values=3)


def test_forward_refuses_another_length(model) -> None:
    kept = model.new_key_values()
    model.forward([[1, 2, 3]], key_values=kept)
    with pytest.raises(ValueError, match=r"ids has shape \[1, 4\], expected \[1, 3\]"):
        model.forward([[1, 2, 3, 4]], key_values=kept)


def test_keys_and_values_that_cannot_fit_are_refused_before_the_pass(model) -> None:
    kept = model.new_key_values()
    assert kept.nbytes == 0
    with pytest.raises(MemoryError, match="forward: the keys and values needs"):
        kept.begin(batch=2**20, length=2**20, num_computed=2**20, key_mask=None)
    assert kept.nbytes == 0


def test_forward_refuses_another_mask(model) -> None:
    kept = model.new_key_values()
    mask = np.array([[False, True, True]])
    model.forward([[1, 2, 3]], key_values=kept, key_mask=mask)
    model.forward([[1, 2, 3]], key_values=kept, key_mask=mask.copy(), computed=[2], positions=[2])
    for other in (None, ~mask):
        with pytest.raises(ValueError, match="key_mask differs from that of the first call"):
            model.forward([[1, 2, 3]], key_values=kept, key_mask=other)


def test_a_masked_batch_keeps_its_keys_and_values(model) -> None:
    ids = np.stack([prompt_of(model, 40), prompt_of(model, 40, seed=1)])
    mask = np.ones(ids.shape, bool)
    mask[1, :17] = False
    kept = model.new_key_values()
    whole = model.forward(ids, key_values=kept, key_mask=mask)
    np.testing.assert_array_equal(whole, model.forward(ids, key_mask=mask))
    changed = ids.copy()
    changed[:, 30:33] = 7
    positions = np.arange(40) + 3
    for computed in ([30, 31, 32], range(40)):
        part = model.forward(
            changed, key_values=kept, key_mask=mask, computed=computed, positions=[31], position_ids=positions
        )
    expected = model.forward(changed, key_mask=mask, positions=[31], position_ids=positions)
    np.testing.assert_array_equal(part, expected)


def test_a_sparse_pass_fills_the_cache(model) -> None:
    """The keys and values of the pass are kept, and rows computed later attend to them densely."""
    ids = prompt_of(model, 70)[None]
    seen = []

    def first_half(layer, q, k, v, key_mask=None):
        seen.append((k.copy(), v.copy()))
        return sparsed.attention(q, k[:, :, :35], v[:, :, :35])

    kept = model.new_key_values()
    sparse = model.forward(ids, attend=first_half, key_values=kept)
    np.testing.assert_array_equal(sparse, model.forward(ids, attend=first_half))
    part = model.forward(ids, key_values=kept, computed=[68, 69], positions=[69])

    def rows(layer, q, k, v, key_mask=None):
        k, v = (np.concatenate([old[:, :, :68], new], axis=2) for old, new in zip(seen[layer], (k, v), strict=True))
        return sparsed.attention(q, k, v)

    expected = model.forward(ids[:, 68:], attend=rows, position_ids=[68, 69], positions=[1])
    np.testing.assert_array_equal(part, expected)


# --- which tokens are computed ---------------------------------------------------------------------------------------


def run(
    model, kv_cache: KVCachePolicy, *, block_length: int | None, gen_length: int = 8, prompt: int = 10, steps: int = 8
):
    watched = Watched(model)
    sampler = SAMPLERS[model.config.family](block_length=block_length)
    result = generate(
        watched,
        prompt_of(model, prompt),
        gen_length=gen_length,
        steps=steps,
        kv_cache=kv_cache,
        sampler=sampler,
        stop=(),
        history=True,
    )
    open_before = [np.flatnonzero(row[0] == model.config.mask_token_id) for row in result.history[:-1]]
    return watched.computed, open_before, result


def shifted(model, rows) -> set[int]:
    return {int(row) - int(model.config.shift_logits) for row in rows}


def test_prefix_cache_computes_from_the_block_on(model) -> None:
    rows, open_before, result = run(model, PrefixCache(), block_length=4)
    assert len(rows) == result.stats.forwards
    steps = [step.step for step in result.stats if step.forwards]
    for step, computed in zip(steps, rows, strict=True):
        begin = 10 + step // 4 * 4
        if step == min(s for s in steps if s // 4 == step // 4):
            assert computed == list(range(18))
        else:
            wanted = shifted(model, [p for p in open_before[step] if p < begin + 4])
            assert set(computed) == set(range(begin, 18)) | wanted


def test_dual_cache_computes_the_block(model) -> None:
    rows, open_before, result = run(model, DualCache(refresh=3), block_length=4)
    steps = [step.step for step in result.stats if step.forwards]
    count: dict[int, int] = {}
    for step, computed in zip(steps, rows, strict=True):
        begin, number = 10 + step // 4 * 4, count.get(step // 4, 0)
        count[step // 4] = number + 1
        if number % 3 == 0:
            assert computed == list(range(18))
        else:
            wanted = shifted(model, [p for p in open_before[step] if p < begin + 4])
            assert set(computed) == set(range(begin, begin + 4)) | wanted


def test_delayed_cache_computes_what_was_open_one_step_ago(model) -> None:
    rows, open_before, result = run(model, DelayedCache(refresh=4), block_length=None)
    steps = [step.step for step in result.stats if step.forwards]
    for number, computed in enumerate(rows):
        whole = number % 4 == 0 or (number == 1 and model.config.family == "llada")
        assert set(computed) == (set(range(18)) if whole else shifted(model, open_before[steps[number - 1]]))
    assert {step.phase for step in result.stats if step.forwards} == {"dense", "cached"}
    assert 0 < result.stats.density < 1 and result.stats.phase_seconds["cached"] > 0


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("block_length", [None, 8])
def test_the_numbers_are_those_of_a_forward_that_computes_everything(model, cache, block_length) -> None:
    options: dict[str, Any] = {"gen_length": 16, "steps": 8, "kv_cache": cache}
    options["sampler"] = SAMPLERS[model.config.family](block_length=block_length)
    prompt = prompt_of(model, 45)
    fast = generate(model, prompt, **options, history=True)
    slow = generate(Slow(model), prompt, **options, history=True)
    np.testing.assert_array_equal(fast.history, slow.history)


@pytest.mark.parametrize("cache", [DelayedCache(refresh=1), DualCache(1, None), PrefixCache(1, 2)], ids=str)
def test_refreshing_always_is_dense(model, cache) -> None:
    prompt = prompt_of(model, 30)
    options: dict[str, Any] = {"gen_length": 8, "steps": 8}
    dense = generate(model, prompt, **options, history=True)
    cached = generate(model, prompt, **options, kv_cache=cache, history=True)
    np.testing.assert_array_equal(dense.history, cached.history)
    assert cached.stats.density == 1 and cached.stats.full_passes == cached.stats.forwards


@pytest.mark.parametrize("kind", [PrefixCache, DualCache, DelayedCache])
@pytest.mark.parametrize(("every", "full"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (None, [0])])
def test_blocks_begin_with_all_tokens_as_refresh_every_says(model, kind, every, full) -> None:
    policy = kind(refresh=None, refresh_every=every)
    rows, open_before, result = run(model, policy, block_length=4, gen_length=16, steps=16)
    steps = [step.step for step in result.stats if step.forwards]
    firsts = [min((i for i, step in enumerate(steps) if step // 4 == block), default=None) for block in range(4)]
    assert None not in firsts
    whole = {i for i, computed in enumerate(rows) if len(computed) == 26}
    expected = {firsts[block] for block in full}
    if kind is DelayedCache and model.config.family == "llada":  # its second pass computes all tokens too
        expected |= {first + 1 for first in expected}
    assert whole == expected and result.stats.full_passes == len(whole)
    assert result.stats.cached_rows == sum(map(len, rows)) - 26 * len(whole)
    for before, now in zip(range(len(steps)), range(1, len(steps)), strict=False):
        if now in firsts:  # what the pass before has set is computed as itself now
            assert set(open_before[steps[before]]) - set(open_before[steps[now]]) <= set(rows[now])


# --- generate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_rows_are_independent(model, cache) -> None:
    short, long = prompt_of(model, 20, seed=1), prompt_of(model, 33, seed=2)
    options: dict[str, Any] = {"gen_length": 8, "steps": 4, "kv_cache": cache}
    ids = np.stack([long, np.concatenate([np.zeros(13, np.int64), short]), long[::-1]])
    mask = np.ones(ids.shape, bool)
    mask[1, :13] = False
    together = generate(model, ids, prompt_mask=mask, **options).generated
    alone = [generate(model, row, **options).generated[0] for row in (long, short, long[::-1])]
    np.testing.assert_array_equal(together, alone)


def test_guidance_and_thresholds_run() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    for sampler in (LLaDASampler(cfg_scale=0.5), LLaDASampler(threshold=0.1, block_length=4)):
        result = generate(
            model, prompt_of(model, 20), gen_length=8, steps=8, sampler=sampler, kv_cache=DualCache(), history=True
        )
        assert not (result.generated == model.config.mask_token_id).any()


def test_a_block_of_dream_is_filled_before_the_next() -> None:
    model = sparsed.load_model(DATA / "dream_b32", "float32")
    result = generate(
        model, prompt_of(model, 9), gen_length=8, steps=8, sampler=DreamSampler(block_length=4), history=True
    )
    assert result.history is not None
    filled = result.history[:, 0, 9:] != model.config.mask_token_id
    assert filled[4, :4].all() and not filled[4, 4:].any() and filled[8].all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kv_cache": 3}, TypeError, "kv_cache is int, expected PrefixCache"),
    ],
)
def test_generate_refuses(options, error, message) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    with pytest.raises(error, match=message):
        generate(model, [1, 2], gen_length=4, steps=4, **options)


@pytest.mark.parametrize("cls", [PrefixCache, DualCache, DelayedCache])
def test_caches_check_their_field(cls) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: refresh is 0, expected an integer >= 1"):
        cls(refresh=0)
    with pytest.raises(ValueError, match=f"{cls.__name__}: refresh_every is 0, expected an integer >= 1"):
        cls(refresh_every=0)
    with pytest.raises(TypeError, match="refresh is 1.5"):
        cls(refresh=1.5)


def test_the_old_keyword_works_with_a_warning(model) -> None:
    options: dict[str, Any] = {"gen_length": 8, "steps": 4}
    expected = generate(model, prompt_of(model, 20), **options, kv_cache=DualCache())
    with pytest.warns(DeprecationWarning, match="cache is the old name of kv_cache"):
        found = generate(model, prompt_of(model, 20), **options, cache=DualCache())
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    with pytest.raises(TypeError, match="cache and kv_cache are both given"):
        generate(model, prompt_of(model, 20), **options, cache=DualCache(), kv_cache=DualCache())
