"""Pattern caches are copied, pickled and compared by content."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest

from conftest import random_qkv
from sparsed import PatternCache, SlidingWindow, SparseConfig, StreamingLLM

LENGTH, PROMPT = 200, 120
SPARSE = SparseConfig(skip=0.3, block_size=16, min_length=0)


def inputs(seed: int = 0) -> tuple[Any, Any, Any]:
    return random_qkv(seed, 1, 4, 2, LENGTH, LENGTH, 32)


COPIES = [lambda x: pickle.loads(pickle.dumps(x)), lambda x: pickle.loads(pickle.dumps(x, 0)), copy.copy, copy.deepcopy]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize(
    "config", [SPARSE, SparseConfig(skip=0.3, block_size=16, min_length=0, refresh="every"), StreamingLLM(48, 20, 16)]
)
def test_a_copy_continues_as_the_original(config: Any, copied: Any) -> None:
    """In every step: the copy is equal, computes the same bits, and the original does not notice."""
    cache = PatternCache(config, steps=6, prompt_length=PROMPT)
    for t in range(6):
        other = copied(cache)
        assert other == cache and (other.step, other.layers, other.nbytes) == (cache.step, cache.layers, cache.nbytes)
        cache.begin_step(t)
        assert other != cache
        other.begin_step(t)
        assert other == cache and other.phase == cache.phase
        for layer in (0, 3):
            np.testing.assert_array_equal(cache.attend(layer, *inputs(t)), other.attend(layer, *inputs(t)))
            assert cache.density(layer) == other.density(layer)
        assert other == cache
        with pytest.raises(ValueError, match="layer is 3 again in step"):
            copied(cache).attend(3, *inputs(t))
    with pytest.raises(ValueError, match="step is 6, expected 0 ... 5"):
        copied(cache).begin_step(6)
    other = copied(cache)
    other.reset()
    assert other != cache and other == PatternCache(config, steps=6, prompt_length=PROMPT)
    assert other.config == config and cache.step == 5


def test_caches_differ_by_their_arguments_and_patterns() -> None:
    def cache(config: Any = SPARSE, steps: int | None = 10, prompt_length: int = PROMPT, seed: int = 0) -> PatternCache:
        made = PatternCache(config, steps=steps, prompt_length=prompt_length)
        for t in range(3):
            made.begin_step(t, 0.1 * t)
            made.attend(0, *inputs(seed))
        return made

    assert cache() == cache() and cache().phase == "select"
    others = [
        cache(SparseConfig(skip=0.3, rho=0.5, block_size=16, min_length=0)),
        cache(SlidingWindow(32, 16)),
        cache(steps=11),
        cache(steps=None),
        cache(prompt_length=PROMPT - 16),
        cache(seed=1),
    ]
    assert all(other != cache() for other in others)
    assert cache() != "cache" and cache() != None  # noqa: E711
    with pytest.raises(TypeError, match="unhashable"):
        hash(cache())


def test_layers_share_a_window_in_a_copy() -> None:
    cache = PatternCache(SlidingWindow(48, 16), steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    for layer in range(4):
        cache.attend(layer, *inputs())
    assert pickle.loads(pickle.dumps(cache)).nbytes == cache.nbytes == cache.pattern(0).nbytes


class NamedCache(PatternCache):
    pass


def test_a_subclass_keeps_its_attributes() -> None:
    cache = NamedCache(SPARSE, steps=4, prompt_length=PROMPT)
    cache.name = "first"
    cache.begin_step(0)
    for copied in COPIES:
        other = copied(cache)
        assert type(other) is NamedCache and (other.name, other.step) == ("first", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: 7}, "step is 7, expected -1 ... 2"),
        ({1: 1}, "due is 1, expected 0"),
        ({4: 2}, "layer 0 has a pattern of batch"),
        ({5: LENGTH + 16}, "layer 0 has a pattern of batch"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(changes: dict[int, Any], message: str) -> None:
    cache = PatternCache(SlidingWindow(48, 16), steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    cache.attend(0, *inputs())
    saved = cache.__getstate__()
    state = [changes.get(i, value) for i, value in enumerate(saved["_state"])]
    with pytest.raises(ValueError, match=re.escape(f"PatternCache.restore: {message}")):
        PatternCache.__new__(PatternCache).__setstate__({**saved, "_state": tuple(state)})
