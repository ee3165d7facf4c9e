"""Patterns as sets: against the same operations on masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import random_mask
from sparsed import BlockPattern

SIZES: dict[str, Any] = {"block_size": 16, "q_len": 200, "kv_len": 1100, "prompt_length": 77}


def pattern_of(seed: int, batch: int = 2, heads: int = 3, **sizes: Any) -> BlockPattern:
    sizes = {**SIZES, **sizes}
    return BlockPattern.from_mask(
        random_mask(seed, batch, heads, sizes["q_len"], sizes["kv_len"], sizes["block_size"]), **sizes
    )


def test_operations_are_those_of_the_masks() -> None:
    a, b = pattern_of(1), pattern_of(2)
    in_a, in_b = a.to_mask(), b.to_mask()
    np.testing.assert_array_equal((a | b).to_mask(), in_a | in_b)
    np.testing.assert_array_equal((a & b).to_mask(), in_a & in_b)
    np.testing.assert_array_equal((a - b).to_mask(), in_a & ~in_b)
    assert (a | b).prompt_length == 77
    assert (a - b) | (a & b) == a
    assert a == pattern_of(1) != b
    assert type(a | b) is BlockPattern


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 1}, "batch 1, expected 2"),
        ({"heads": 4}, "heads 4, expected 3"),
        ({"block_size": 32}, "block_size 32, expected 16"),
        ({"q_len": 216}, "q_len 216, expected 200"),
        ({"kv_len": 1000}, "kv_len 1000, expected 1100"),
        ({"prompt_length": 0}, "prompt_length 0, expected 77"),
    ],
)
def test_only_equal_sizes_combine(sizes: Any, message: str) -> None:
    other = pattern_of(2, **sizes)
    for name, operation in {"__or__": lambda: pattern_of(1) | other, "__sub__": lambda: pattern_of(1) - other}.items():
        with pytest.raises(ValueError) as error:
            operation()
        assert str(error.value) == f"BlockPattern.{name}: other has {message}"


@pytest.mark.parametrize("other", [None, 3, np.ones((2, 3, 13, 69), bool), {1}])
def test_only_patterns_combine(other: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        pattern_of(1) | other


INDICES: list[Any] = [
    0,
    -1,
    np.int64(1),
    slice(None),
    slice(1, None),
    slice(5, 9),
    [1, 0],
    [0, 0, 0],
    np.array([1, -1]),
    [],
    (1, 2),
    (-2, -3),
    (0, slice(0, 2)),
    (slice(None), [2, 0]),
    ([1, 1], [0, 2, 0]),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indices_are_those_of_the_mask_and_keep_its_dimensions(index: Any) -> None:
    pattern = pattern_of(3)
    batch, heads = index if isinstance(index, tuple) else (index, slice(None))
    rows = np.atleast_1d(np.arange(2)[batch if isinstance(batch, slice) else np.asarray(batch, int)])
    columns = np.atleast_1d(np.arange(3)[heads if isinstance(heads, slice) else np.asarray(heads, int)])
    part = pattern[index]
    np.testing.assert_array_equal(part.to_mask(), pattern.to_mask()[rows][:, columns])
    assert (part.block_size, part.q_len, part.kv_len, part.prompt_length) == (16, 200, 1100, 77)


def test_wrong_indices_have_names() -> None:
    pattern = pattern_of(1)
    with pytest.raises(IndexError, match=r"BlockPattern: batch is \[2\], expected -2 ... 1"):
        pattern[2]
    with pytest.raises(IndexError, match=r"BlockPattern: head is \[0, 3\], expected -3 ... 2"):
        pattern[0, [0, 3]]
    with pytest.raises(IndexError, match=r"BlockPattern: 3 indices are given, expected at most 2"):
        pattern[0, 0, 0]
    for wrong in (None, "0", 1.0, True, [True, False], [[0]], ...):
        with pytest.raises(TypeError, match=r"BlockPattern: head is .*, expected an integer, slice"):
            pattern[0, wrong]
    with pytest.raises(TypeError, match="not iterable"):
        list(pattern)  # type: ignore[call-overload]


def test_large_patterns_need_no_masks() -> None:
    sizes: Any = {"heads": 32, "block_size": 128, "q_len": 65536, "kv_len": 65536}
    window = BlockPattern.sliding_window(window=4096, **sizes)
    sinks = BlockPattern.streaming(window=1, sinks=512, **sizes)
    both = window | sinks
    assert both.density == pytest.approx(window.density + (sinks - window).density)
    assert both[0, 7].row(0, 0, 300)[:4].tolist() == [0, 1, 2, 3]
