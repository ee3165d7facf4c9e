"""Patterns that a cache is given: set, saved, loaded, and which steps use them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed
from conftest import random_qkv
from sparsed import BlockPattern, PatternCache, SlidingWindow, SparseConfig
from tolerances import ORDER

LENGTH, PROMPT = 200, 120
SIZES: dict[str, Any] = {"block_size": 16, "q_len": LENGTH, "kv_len": LENGTH, "prompt_length": PROMPT}
SPARSE = SparseConfig(skip=0.3, block_size=16, min_length=0)


def inputs(seed: int = 0, batch: int = 1) -> tuple[Any, Any, Any]:
    return random_qkv(seed, batch, 4, 2, LENGTH, LENGTH, 32)


def selected(steps: int = 4, layers: int = 3) -> PatternCache:
    cache = PatternCache(SPARSE, steps=steps, prompt_length=PROMPT)
    for t in range(steps):
        cache.begin_step(t)
        for layer in range(layers):
            cache.attend(layer, *inputs(layer))
    return cache


def test_saved_patterns_serve_every_step(tmp_path: Path) -> None:
    cache = selected()
    cache.save(tmp_path / "patterns")
    loaded = PatternCache.load(str(tmp_path / "patterns"))
    assert loaded.config is None
    assert loaded.layers == [0, 1, 2]
    assert loaded.step == -1
    for t in range(3):  # from step 0 on, without a selection and without `unmasked`
        loaded.begin_step(t)
        assert loaded.phase == "sparse"
        assert not loaded.needs_forward
        for layer in range(3):
            q, k, v = inputs(50 + layer)
            assert loaded.pattern(layer) == cache.pattern(layer)
            np.testing.assert_array_equal(
                loaded.attend(layer, q, k, v), sparsed.attention(q, k, v, cache.pattern(layer))
            )
    with pytest.raises(ValueError, match=r"layer 3 has no pattern, expected set_pattern to give it one"):
        loaded.attend(3, *inputs())
    with pytest.raises(ValueError, match=r"q has batch 2, expected 1 \(as before\)"):
        loaded.attend(3, *inputs(batch=2))


def test_what_is_loaded_equals_what_was_given(tmp_path: Path) -> None:
    cache = PatternCache(None, steps=None, prompt_length=PROMPT)
    cache.set_pattern(0, BlockPattern.full(1, 4, **SIZES))
    cache.set_pattern(7, BlockPattern.streaming(1, 4, window=20, sinks=3, **SIZES))
    cache.save(tmp_path / "patterns")
    assert PatternCache.load(tmp_path / "patterns") == cache == pickle.loads(pickle.dumps(cache))
    assert [path.name for path in tmp_path.iterdir()] == ["patterns"]
    loaded = PatternCache.load(tmp_path / "patterns")
    loaded.set_pattern(0, cache.pattern(7))
    assert loaded != cache


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "patterns"
    cache = selected()
    cache.save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"PatternCache.load: .*patterns"):
            PatternCache.load(path)
        path.write_bytes(content[:at])
        with pytest.raises(ValueError, match=r"PatternCache.load: .*patterns"):
            PatternCache.load(path)
    cache.pattern(0).save(path)
    with pytest.raises(ValueError, match="is not a file of a PatternCache"):
        PatternCache.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PatternCache.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="PatternCache.save: cannot write"):
        cache.save(tmp_path / "none" / "patterns")
    with pytest.raises(TypeError, match=r"PatternCache.load: path is a int, expected a str or os.PathLike"):
        PatternCache.load(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer holds a pattern, expected at least one"):
        PatternCache(SPARSE, steps=3, prompt_length=PROMPT).save(path)


def test_one_pattern_for_all_layers_is_saved_of_the_layers_that_use_it(tmp_path: Path) -> None:
    window = BlockPattern.sliding_window(1, 4, window=40, **SIZES)
    full = BlockPattern.full(1, 4, **SIZES)
    cache = PatternCache(window, steps=2, prompt_length=PROMPT)
    cache.set_pattern(1, full)
    with pytest.raises(ValueError, match=r"PatternCache.save: no layer has attended .*, or cache.config.save\(path\)"):
        cache.save(tmp_path / "patterns")  # whoever loads it would miss the other layers
    cache.begin_step(0)
    for layer in range(3):
        cache.attend(layer, *inputs())
    assert cache.layers == [0, 1, 2]
    cache.save(tmp_path / "patterns")
    loaded = PatternCache.load(tmp_path / "patterns")
    assert [loaded.pattern(layer) for layer in range(3)] == [window, full, window]


def test_one_pattern_for_all_layers() -> None:
    window = BlockPattern.sliding_window(1, 4, window=40, **SIZES)
    full = BlockPattern.full(1, 4, **SIZES)
    cache = PatternCache(window, steps=2, prompt_length=PROMPT)
    cache.set_pattern(1, full)  # one layer stays dense
    q, k, v = inputs()
    for t in range(2):
        cache.begin_step(t)
        for layer, pattern in enumerate((window, full, window)):
            np.testing.assert_array_equal(cache.attend(layer, q, k, v), sparsed.attention(q, k, v, pattern))
        assert cache.density() == pytest.approx((2 * window.density + 1) / 3)
    assert cache == pickle.loads(pickle.dumps(cache))
    fresh = PatternCache(window, steps=2, prompt_length=PROMPT)
    fresh.begin_step(0)
    with pytest.raises(ValueError, match=r"q has batch 2, expected 1 \(as in the pattern\)"):
        fresh.attend(0, *inputs(batch=2))
    with pytest.raises(TypeError, match=r"StreamingLLM, BlockPattern or None"):
        PatternCache("window", steps=2, prompt_length=PROMPT)  # type: ignore[arg-type]


@pytest.mark.parametrize("given_before", [-1, 1, 2, 4])
def test_the_schedule_goes_on_when_a_pattern_is_given(given_before: int) -> None:
    """Dense steps stay dense, and the step that selects takes the place of what was given."""
    window = BlockPattern.sliding_window(1, 4, window=40, **SIZES)
    q, k, v = inputs()
    own = sparsed.select(q, k, prompt_length=PROMPT, block_size=16)
    cache = PatternCache(SPARSE, steps=10, prompt_length=PROMPT)
    if given_before < 0:
        cache.set_pattern(0, window)
    for t in range(6):
        if t == given_before:
            cache.set_pattern(0, window)
        cache.begin_step(t)
        out = cache.attend(0, q, k, v)
        assert cache.phase == SPARSE.phases(10)[t] == ("dense", "dense", "select", "sparse", "sparse", "sparse")[t]
        used = None if t <= 2 else window if 2 < given_before <= t else own
        np.testing.assert_allclose(out, sparsed.attention(q, k, v, used), atol=ORDER)
        if t == 2:
            assert cache.pattern(0) == own


def test_a_window_gives_way_to_a_given_pattern() -> None:
    given = BlockPattern.streaming(1, 4, window=20, sinks=40, **SIZES)
    cache = PatternCache(SlidingWindow(40, 16), steps=2, prompt_length=PROMPT)
    cache.set_pattern(0, given)
    q, k, v = inputs()
    cache.begin_step(0)
    np.testing.assert_array_equal(cache.attend(0, q, k, v), sparsed.attention(q, k, v, given))
