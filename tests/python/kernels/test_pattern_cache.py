"""The state machine: which step does what, what it computes, and what it refuses.

The file is long because every rule of the machine is one short test.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest

import sparsed
from conftest import random_qkv
from sparsed import BlockPattern, PatternCache, SlidingWindow, SparseConfig, StreamingLLM

LENGTH, PROMPT = 200, 120
SPARSE = SparseConfig(skip=0.3, block_size=16, min_length=0, generation="sparse")


def inputs(seed: int = 0, batch: int = 1, length: int = LENGTH) -> tuple[Any, Any, Any]:
    return random_qkv(seed, batch, 4, 2, length, length, 32)


def phases(config: Any, steps: int) -> list[str]:
    cache = PatternCache(config, steps=steps, prompt_length=PROMPT)
    result = []
    for t in range(steps):
        cache.begin_step(t)
        assert cache.step == t
        result.append(cache.phase)
        cache.attend(0, *inputs(t))
    return result


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # paper: selected in step max(0, floor(10 * 0.3) - 1) = 2; reference: in step int(10 * 0.3) + 1 = 4
        (SPARSE, "ddSsssssss"),
        (SparseConfig(skip=0.3, block_size=16, min_length=0, selection="reference"), "ddddSsssss"),
        (SparseConfig(skip=0, block_size=16, min_length=0), "Ssssssssss"),
        (SparseConfig(skip=1, block_size=16, min_length=0), "dddddddddS"),
        (SparseConfig(skip=0.3, block_size=16, min_length=0, refresh=(0.5, 0.9)), "ddSsSsssSs"),
        (SparseConfig(skip=0.3, block_size=16, min_length=0, refresh="every"), "ddSSSSSSSS"),
        (SlidingWindow(32, 16), "ssssssssss"),
        (StreamingLLM(32, 16, 16), "ssssssssss"),
    ],
)
def test_phases(config: Any, expected: str) -> None:
    names = {"d": "dense", "S": "select", "s": "sparse"}
    assert phases(config, 10) == config.phases(10) == [names[letter] for letter in expected]


@pytest.mark.parametrize("config", [SlidingWindow(32), StreamingLLM(32, 16)])
@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (None, TypeError)])
def test_phases_of_other_steps_are_refused(config: Any, steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{type(config).__name__}\.phases: steps is {steps}, expected an integer"):
        config.phases(steps)


def test_phases_do_not_depend_on_the_length() -> None:
    assert SparseConfig(skip=0.5, min_length=10**6).phases(np.int64(4)) == ["dense", "select", "sparse", "sparse"]


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "SparseConfig.phases: steps is 0, expected 1 ... "),
        (None, TypeError, "SparseConfig.phases: steps is a NoneType, expected an int"),
        (1.5, TypeError, "SparseConfig.phases: steps is a float, expected an int"),
        (2**50, MemoryError, ".phases: the list of phases needs"),
    ],
)
def test_phases_need_a_number_of_steps(steps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SparseConfig().phases(steps)


def test_density_is_the_mean_over_the_layers() -> None:
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    cache.begin_step(0)
    with pytest.raises(ValueError, match=r"PatternCache.density: no layer has attended in step 0, expected at least"):
        cache.density()
    cache.reset()
    for t in range(5):
        cache.begin_step(t)
        for layer in range(3):
            cache.attend(layer, *inputs(layer))
        assert cache.density() == pytest.approx(np.mean([cache.density(layer) for layer in range(3)]))
    assert 0 < cache.density() < 0.5


def test_a_pattern_may_be_given() -> None:
    q, k, v = inputs(0)
    batch, heads, length = q.shape[:3]
    window = BlockPattern.streaming(batch, heads, window=32, sinks=16, block_size=16, q_len=length, kv_len=length)
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    for t in range(5):
        cache.begin_step(t)
        cache.attend(0, q, k, v)
    cache.set_pattern(0, window)
    assert cache.pattern(0) == window
    cache.begin_step(5)
    np.testing.assert_array_equal(cache.attend(0, q, k, v), sparsed.attention(q, k, v, window))
    assert cache.density(0) == window.density
    with pytest.raises(TypeError, match=r"PatternCache.set_pattern: pattern is a str, expected a BlockPattern"):
        cache.set_pattern(0, "window")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"PatternCache.set_pattern: layer is a NoneType, expected an int"):
        cache.set_pattern(None, window)  # type: ignore[arg-type]
    other = BlockPattern.full(batch, heads + 1, block_size=16, q_len=length, kv_len=length)
    with pytest.raises(ValueError, match=r"set_pattern: pattern has heads \d, expected \d \(as the layer before\)"):
        cache.set_pattern(0, other)


def test_each_phase_computes_what_it_says(place: str) -> None:
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    for t in range(5):
        cache.begin_step(t)
        for layer in range(3):
            q, k, v = inputs(10 * t + layer)
            out = cache.attend(layer, q, k, v)
            if cache.phase == "dense":
                expected = sparsed.attention(q, k, v)
                assert cache.density(layer) == 1
                with pytest.raises(ValueError, match=f"PatternCache.pattern: layer is {layer}, expected one that hold"):
                    cache.pattern(layer)
            elif cache.phase == "select":
                expected, pattern = sparsed.attention_and_select(
                    q, k, v, prompt_length=PROMPT, block_size=16, generation="sparse"
                )
                assert cache.pattern(layer) == pattern
                assert cache.density(layer) == 1
            else:
                expected = sparsed.attention(q, k, v, cache.pattern(layer))
                assert cache.density(layer) == cache.pattern(layer).density < 0.5
            np.testing.assert_array_equal(out, expected)
    assert cache.layers == [0, 1, 2]
    assert cache.nbytes == 3 * cache.pattern(0).nbytes


@pytest.mark.parametrize("selection", ["paper", "reference"])
@pytest.mark.parametrize("generation", ["dense", "sparse"])
def test_settings_reach_the_selection(selection: Any, generation: Any) -> None:
    config = SparseConfig(
        skip=0,
        rho=0.2,
        block_size=32,
        selection=selection,
        selection_scale=0.7,
        min_length=0,
        isolate=True,
        generation=generation,
    )
    q, k, v = inputs(3, batch=2)
    key_mask = np.ones((2, LENGTH), bool)
    key_mask[1, :40] = False
    cache = PatternCache(config, steps=4, prompt_length=PROMPT)
    while cache.step < 0 or cache.phase != "select":
        cache.begin_step(cache.step + 1)
        out = cache.attend(0, q, k, v, key_mask, scale=0.1)
    expected, pattern = sparsed.attention_and_select(
        q,
        k,
        v,
        prompt_length=PROMPT,
        block_size=32,
        rho=0.2,
        selection=selection,
        scale=0.1,
        selection_scale=0.7,
        generation=generation,
        key_mask=key_mask,
    )
    np.testing.assert_array_equal(out, expected)
    assert cache.pattern(0) == pattern


def test_without_isolation_one_top_k() -> None:
    config = SparseConfig(skip=0, rho=0.3, block_size=16, min_length=0, isolate=False, generation="sparse")
    cache = PatternCache(config, steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    cache.attend(0, *inputs())
    assert (cache.pattern(0).to_mask().sum(-1) == int(13 * 0.3) + 1).all()


def test_refresh_replaces_the_pattern() -> None:
    cache = PatternCache(
        SparseConfig(skip=0.2, block_size=16, min_length=0, refresh=(0.6,)), steps=10, prompt_length=PROMPT
    )
    seen = []
    for t in range(10):
        cache.begin_step(t)
        cache.attend(0, *inputs(t))
        if cache.phase != "dense":
            seen.append(cache.pattern(0))
    assert len(set(seen)) == 2


def test_guidance_keeps_a_pattern_for_each_row() -> None:
    q, k, v = inputs(4, batch=2)
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    alone = [PatternCache(SPARSE, steps=10, prompt_length=PROMPT) for _ in range(2)]
    for t in range(5):
        cache.begin_step(t)
        together = cache.attend(0, q, k, v)
        for row, single in enumerate(alone):
            single.begin_step(t)
            out = single.attend(0, q[row : row + 1], k[row : row + 1], v[row : row + 1])
            np.testing.assert_array_equal(out, together[row : row + 1])
    assert cache.phase == "sparse"
    mask = cache.pattern(0).to_mask()
    assert (mask[0] != mask[1]).any()
    for row, single in enumerate(alone):
        np.testing.assert_array_equal(single.pattern(0).to_mask()[0], mask[row])


def test_short_sequences_stay_dense() -> None:
    cache = PatternCache(SparseConfig(skip=0, block_size=16, min_length=LENGTH + 1), steps=4, prompt_length=PROMPT)
    for t in range(4):
        q, k, v = inputs(t)
        cache.begin_step(t)
        np.testing.assert_array_equal(cache.attend(0, q, k, v), sparsed.attention(q, k, v))
        assert cache.phase == "dense"
        assert cache.density(0) == 1
    assert cache.layers == []
    assert cache.nbytes == 0


def test_a_pattern_that_saves_nothing_runs_dense() -> None:
    cache = PatternCache(SparseConfig(skip=0, rho=1, block_size=16, min_length=0), steps=4, prompt_length=PROMPT)
    q, k, v = inputs()
    cache.begin_step(0)
    cache.attend(0, q, k, v)
    assert cache.pattern(0).density == 1
    cache.begin_step(1)
    assert cache.phase == "sparse"
    np.testing.assert_array_equal(cache.attend(0, q, k, v), sparsed.attention(q, k, v))
    assert cache.density(0) == 1


@pytest.mark.parametrize(
    ("config", "sinks"),
    [(SlidingWindow(48, 16, "sparse"), 0), (StreamingLLM(48, 20, 16, "sparse"), 20)],
)
def test_baselines_use_their_window(config: Any, sinks: int) -> None:
    q, k, v = inputs(5)
    cache = PatternCache(config, steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    pattern = BlockPattern.streaming(
        1, 4, window=48, sinks=sinks, block_size=16, q_len=LENGTH, kv_len=LENGTH, prompt_length=PROMPT
    )
    np.testing.assert_array_equal(cache.attend(0, q, k, v), sparsed.attention(q, k, v, pattern))
    assert cache.pattern(0) == pattern
    assert cache.density(0) == pattern.density
    cache.attend(1, q, k, v)
    assert cache.nbytes == pattern.nbytes  # one pattern serves all layers


@pytest.mark.parametrize("config", [SlidingWindow(48, 16), StreamingLLM(48, 20, 16), SparseConfig(0, 0.2, 16)])
@pytest.mark.parametrize("prompt_length", [LENGTH - 40, LENGTH - 1, LENGTH])
def test_a_dense_generation_sees_every_key(place: str, config: Any, prompt_length: int) -> None:
    if isinstance(config, SparseConfig):
        config = dataclasses.replace(config, min_length=0)
    published = dataclasses.replace(config, generation="sparse")
    q, k, v = inputs(6)
    outs, caches = [], []
    for settings in (config, published):
        cache = PatternCache(settings, steps=2, prompt_length=prompt_length)
        for t in range(2):
            cache.begin_step(t)
            out = cache.attend(0, q, k, v)
        assert cache.phase == "sparse"
        assert cache.density(0) == cache.pattern(0).to_mask().mean() < 1
        outs.append(out)
        caches.append(cache)
    is_generation = np.arange(LENGTH) >= prompt_length
    rows = np.logical_or.reduceat(is_generation, np.arange(0, LENGTH, 16))
    masks = [cache.pattern(0).to_mask() for cache in caches]
    assert (masks[0] == (masks[1] | rows[:, None])).all()
    dense = sparsed.attention(q, k, v)
    assert np.array_equal(outs[0][:, :, is_generation], dense[:, :, is_generation])
    unchanged = ~rows.repeat(16)[:LENGTH]
    assert np.array_equal(outs[0][:, :, unchanged], outs[1][:, :, unchanged])
    for again in (copy.deepcopy(caches[0]), pickle.loads(pickle.dumps(caches[0]))):
        assert again == caches[0] and again.config.generation == "dense"


def test_unknown_number_of_steps_follows_the_share_unmasked() -> None:
    cache = PatternCache(SPARSE, steps=None, prompt_length=PROMPT)
    seen = []
    for t, unmasked in enumerate([0.0, 0.1, 0.29, 0.31, 0.5, 1.0]):
        cache.begin_step(t, unmasked)
        seen.append(cache.phase)
        cache.attend(0, *inputs(t))
    assert seen == ["dense", "dense", "dense", "select", "sparse", "sparse"]
    at_once = PatternCache(SparseConfig(skip=0, block_size=16), steps=None, prompt_length=0)
    at_once.begin_step(0, np.float32(0))
    assert at_once.phase == "select"


def test_reset_makes_it_new() -> None:
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    for t in range(4):
        cache.begin_step(t)
        cache.attend(0, *inputs(t))
    cache.reset()
    assert (cache.step, cache.layers, cache.nbytes) == (-1, [], 0)
    cache.begin_step(0)
    cache.attend(0, *inputs(0, batch=2, length=150))


def test_layers_from_several_threads() -> None:
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    expected = [sparsed.attention(*inputs(layer)) for layer in range(8)]
    for t in range(4):
        cache.begin_step(t)
        out: dict[int, Any] = {}

        def work(layer: int, out: dict[int, Any] = out) -> None:
            out[layer] = cache.attend(layer, *inputs(layer))

        workers = [threading.Thread(target=work, args=(layer,)) for layer in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if cache.phase == "dense":
            for layer in range(8):
                np.testing.assert_array_equal(out[layer], expected[layer])
    assert cache.layers == list(range(8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"config": "sparse"}, TypeError, "PatternCache: config is a str, expected a SparseConfig, SlidingWindow, S"),
        ({"config": True}, TypeError, "PatternCache: config is a bool"),
        ({"steps": 0}, ValueError, "PatternCache: steps is 0, expected 1 ..."),
        ({"steps": 8.0}, TypeError, "PatternCache: steps is a float, expected an int"),
        ({"prompt_length": -1}, ValueError, "PatternCache: prompt_length is -1, expected"),
        ({"prompt_length": None}, TypeError, "PatternCache: prompt_length is a NoneType, expected an int"),
        ({"length": 3}, TypeError, "unexpected keyword argument 'length'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    config = arguments.pop("config", SPARSE) if "config" in arguments else SPARSE
    with pytest.raises(error, match=re.escape(message)):
        PatternCache(config, **{"steps": 10, "prompt_length": PROMPT} | arguments)


def test_steps_come_in_order() -> None:
    cache = PatternCache(SPARSE, steps=3, prompt_length=PROMPT)
    with pytest.raises(ValueError, match=r"PatternCache.attend: no step has begun, expected begin_step\(0\) before"):
        cache.attend(0, *inputs())
    with pytest.raises(ValueError, match="PatternCache.phase: no step has begun"):
        _ = cache.phase
    with pytest.raises(ValueError, match="PatternCache.begin_step: step is 1, expected 0"):
        cache.begin_step(1)
    cache.begin_step(0)
    for wrong in (0, 2, -1):
        with pytest.raises(ValueError, match=f"PatternCache.begin_step: step is {wrong}, expected 1"):
            cache.begin_step(wrong)
    with pytest.raises(TypeError, match="PatternCache.begin_step: step is a float, expected an int"):
        cache.begin_step(1.0)  # type: ignore[arg-type]
    cache.begin_step(1)
    cache.begin_step(2)
    with pytest.raises(ValueError, match="PatternCache.begin_step: step is 3, expected 0 ... 2"):
        cache.begin_step(3)


@pytest.mark.parametrize("unmasked", [None, -0.1, 1.1, float("nan")])
def test_unmasked_is_needed_where_steps_are_unknown(unmasked: float | None) -> None:
    cache = PatternCache(SPARSE, steps=None, prompt_length=PROMPT)
    with pytest.raises(ValueError, match=r"PatternCache.begin_step: unmasked is .*, expected 0 ... 1"):
        cache.begin_step(0, unmasked)
    assert cache.step == -1


def test_a_layer_that_never_selected() -> None:
    cache = PatternCache(SparseConfig(skip=0, block_size=16, min_length=0), steps=4, prompt_length=PROMPT)
    cache.begin_step(0)
    cache.attend(0, *inputs())
    cache.begin_step(1)
    cache.attend(0, *inputs())
    with pytest.raises(ValueError, match="PatternCache.attend: layer 1 has no pattern in sparse step 1"):
        cache.attend(1, *inputs())


def test_changed_inputs() -> None:
    cache = PatternCache(SPARSE, steps=4, prompt_length=PROMPT)
    q, k, v = inputs(6, batch=2)
    cache.begin_step(0)
    cache.attend(0, q, k, v)
    with pytest.raises(ValueError, match="PatternCache.attend: layer is 0 again in step 0"):
        cache.attend(0, q, k, v)
    cache.begin_step(1)
    with pytest.raises(ValueError, match="PatternCache.attend: q has batch 1, expected 2"):
        cache.attend(0, q[:1], k[:1], v[:1])
    with pytest.raises(ValueError, match="PatternCache.attend: q has length 150, expected 200"):
        cache.attend(0, *inputs(6, batch=2, length=150))
    with pytest.raises(ValueError, match="PatternCache.attend: q has heads 2, expected 4"):
        cache.attend(0, q[:, :2], k, v)
    with pytest.raises(ValueError, match="PatternCache.attend: k has length 100, expected 200"):
        cache.attend(0, q, k[:, :, :100], v[:, :, :100])
    with pytest.raises(ValueError, match="PatternCache.attend: layer is -1, expected"):
        cache.attend(-1, q, k, v)
    with pytest.raises(TypeError, match="PatternCache.attend: q has dtype float64, expected float32"):
        cache.attend(0, q.astype(np.float64), k, v)
    with pytest.raises(ValueError, match="expected at least one row, head, query and key"):
        cache.attend(0, q[:0], k[:0], v[:0])
    cache.attend(0, q, k, v)  # none of these counted


def test_prompt_longer_than_the_sequence() -> None:
    cache = PatternCache(SPARSE, steps=4, prompt_length=LENGTH + 1)
    cache.begin_step(0)
    with pytest.raises(ValueError, match=r"PatternCache.attend: q has length 200, expected at least 201 \(prompt_len"):
        cache.attend(0, *inputs())
