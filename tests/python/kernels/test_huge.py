"""Sizes that cannot be: broadcast arrays whose copies, outputs or byte counts do not fit, or overflow."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import sparsed
from sparsed import BlockPattern, ops


def spread(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """One element that looks like an array of `shape`."""
    return np.broadcast_to(np.zeros([1] * len(shape), dtype), shape)


def tokens(*shape: int) -> np.ndarray:
    """(..., 16) of half precision, whose last axis is contiguous."""
    return np.broadcast_to(np.zeros((1, 1, 1, 16), np.float16), (*shape, 16))


Q = tokens(1, 1, 16)
LONG, MANY = tokens(1, 1, 2**35), tokens(2**26, 2**26, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sparsed.attention(Q, *[tokens(1, 1, 2**57)] * 2), ValueError, "k has length 144115188075855872"),
        (lambda: sparsed.attention(tokens(1, 1, 2**57), Q, Q), ValueError, "q has length 144115188075855872"),
        (
            lambda: sparsed.attention(Q, LONG, LONG, key_mask=spread(1, 2**35, dtype=np.bool_)),
            MemoryError,
            "attention: a copy of key_mask needs 32.0 GiB",
        ),
        (lambda: sparsed.attention(Q, LONG, LONG), MemoryError, "attention: packed keys and values needs"),
        (lambda: sparsed.attention(MANY, MANY, MANY), MemoryError, "attention: out needs"),
        (
            lambda: sparsed.select(MANY, MANY, prompt_length=1, block_size=16, rho=0.3),
            MemoryError,
            "select: the pattern needs",
        ),
        (
            lambda: BlockPattern.from_mask(
                spread(2**20, 2**20, 4, 4, dtype=np.bool_), block_size=16, q_len=64, kv_len=64
            ),
            MemoryError,
            "a copy of mask needs",
        ),
        (lambda: ops.pack_weight(spread(2**57, 1)), MemoryError, "pack_weight: the packed weight needs"),
        (lambda: ops.pack_weights([spread(2**60, 1)] * 16), MemoryError, "pack_weights: the packed weight needs"),
        (
            lambda: ops.pack_weight(np.ones((4, 4), np.float32), spread(2**42)),
            ValueError,
            r"bias has shape \[4398046511104\], expected \[4\]",
        ),
        (
            lambda: ops.token_confidence(spread(2**40, 1), "probability"),
            MemoryError,
            "token_confidence: ids needs 8192.0 GiB",
        ),
    ],
)
def test_what_cannot_fit_is_refused_by_name(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_rows_without_columns_take_no_time() -> None:
    out = ops.rms_norm(np.zeros((2**40, 0), np.float32), np.zeros(0, np.float32), 1e-6)
    assert out.shape == (2**40, 0)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_largest_scale(dtype) -> None:
    q, k = np.zeros((1, 1, 1, 16), dtype), np.zeros((1, 1, 2, 16), dtype)
    v = np.ones((1, 1, 2, 16), dtype)
    q[..., 0], k[..., 0] = 1e-18, -1e-17
    np.testing.assert_array_equal(sparsed.attention(q, k, v, scale=1e35), 1)
    for scale in (2e35, 3e38):
        with pytest.raises(ValueError, match=r"attention: scale is .*, expected at most 1e\+35"):
            sparsed.attention(q, k, v, scale=scale)
    with pytest.raises(ValueError, match="selection_scale is 1e[+]36, expected a number from 0 to 1e[+]35"):
        sparsed.SparseConfig(selection_scale=1e36)
