"""What must not change a result: threads, other rows of a batch, NaN elsewhere, and a pattern that keeps all blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import sparsed
from conftest import random_mask, random_qkv
from sparsed import BlockPattern
from tolerances import OUT_FLOOR, check_lse, check_out

Array = NDArray[Any]


def random_sizes(rng: np.random.Generator) -> tuple[int, int, int, int, int, int]:
    """heads, key heads, queries, keys, head_dim, block_size."""
    kv = int(rng.integers(1, 4))
    q_len, kv_len = (int(n) for n in rng.integers(1, 301, 2))
    return (
        kv * int(rng.integers(1, 4)),
        kv,
        q_len,
        kv_len,
        int(rng.choice([16, 40, 64, 128])),
        int(rng.choice([16, 32, 64])),
    )


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_all_blocks_are_dense(place: str, dtype: Any, block_size: int) -> None:
    heads, kv, q_len, kv_len, head_dim, _ = random_sizes(np.random.default_rng(block_size))
    for batch, *sizes in ((2, 4, 2, 150, 333, 64), (1, heads, kv, q_len, kv_len, head_dim)):
        q, k, v = random_qkv(2, batch, *sizes, dtype=dtype)
        full = BlockPattern.full(*q.shape[:2], block_size=block_size, q_len=q.shape[2], kv_len=k.shape[2])
        expected, expected_lse = reference.attention(q, k, v)
        for pattern in (full, None):
            out, lse = sparsed.attention(q, k, v, pattern, return_lse=True)
            check_out(out, expected, q, k, v)
            check_lse(lse, expected_lse, dtype)


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_a_batch_do_not_know_each_other(place: str, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(2, 5))
    heads, kv, q_len, length, head_dim, block = random_sizes(rng)
    q, k, v = random_qkv(seed, batch, heads, kv, length, length, head_dim, dtype)
    few = q[:, :, :q_len]
    key_mask = rng.random((batch, length)) < 0.8
    mask = random_mask(seed, batch, heads, few.shape[2], length, block)
    options: Any = {"prompt_length": length // 2, "block_size": block}

    def results(rows: slice) -> list[Array]:
        keys = key_mask[rows]
        pattern = BlockPattern.from_mask(mask[rows], block_size=block, q_len=few.shape[2], kv_len=length)
        dense = sparsed.attention(few[rows], k[rows], v[rows])
        sparse = sparsed.attention(few[rows], k[rows], v[rows], pattern, key_mask=keys)
        out, selected = sparsed.attention_and_select(q[rows], k[rows], v[rows], key_mask=keys, **options)
        return [dense, sparse, out, selected.to_mask(), sparsed.select(q[rows], k[rows], **options).to_mask()]

    together = results(slice(0, batch))
    for row in range(batch):
        one = slice(row, row + 1)
        for found, expected in zip(results(one), together, strict=True):
            np.testing.assert_array_equal(found, expected[one])


@pytest.mark.parametrize("where", ["q", "k", "v", "k masked", "v masked"])
@pytest.mark.parametrize("seed", range(4))
def test_nan_stays_in_the_rows_that_see_it(place: str, dtype: Any, where: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads, kv, q_len, kv_len, head_dim, block = random_sizes(rng)
    q, k, v = random_qkv(seed, 1, heads, kv, q_len, kv_len, head_dim, dtype)
    mask = random_mask(seed, 1, heads, q_len, kv_len, block)
    pattern = BlockPattern.from_mask(mask, block_size=block, q_len=q_len, kv_len=kv_len)
    key_mask = np.ones((1, kv_len), bool)
    masked = where.endswith("masked")
    row = int(rng.integers(q_len if where == "q" else kv_len))
    if where == "q":
        expected = np.zeros((heads, q_len), bool)
        expected[:, row] = mask[0, :, row // block].any(-1)
    else:
        key_mask[0, row] = not masked
        expected = mask[0, :, :, row // block].repeat(block, 1)[:, :q_len] & (not masked)
    clean = sparsed.attention(q, k, v, pattern, key_mask=key_mask)
    {"q": q, "k": k, "v": v}[where[0]][0, :, row] = np.nan
    out = sparsed.attention(q, k, v, pattern, key_mask=key_mask)
    found = np.isnan(out[0].astype(np.float32))
    np.testing.assert_array_equal(found.any(-1), expected)
    np.testing.assert_array_equal(found.all(-1), expected)
    # In bfloat16, queries that share a tile with a NaN take the softmax in float32.
    tolerance = OUT_FLOOR["bfloat16"] if dtype.name == "bfloat16" else 0
    others, before = (x[0][~expected].astype(np.float32) for x in (out, clean))
    np.testing.assert_allclose(others, before, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("length", [300, 515])
def test_bits_do_not_depend_on_threads_or_runs(backend: str, dtype: Any, length: int) -> None:
    q, k, v = random_qkv(8, 2, 4, 2, length, length, 64, dtype)
    few = q[:, :, :200]
    window = BlockPattern.sliding_window(2, 4, window=100, block_size=32, q_len=200, kv_len=length)
    options: Any = {"prompt_length": 200, "block_size": 32}

    def results() -> list[Any]:
        out, pattern = sparsed.attention_and_select(q, k, v, **options)
        assert sparsed.select(q, k, **options) == pattern
        dense, sparse = sparsed.attention(few, k, v), sparsed.attention(few, k, v, window)
        return [out, pattern.to_mask(), sparsed.attention(q, k, v, pattern), dense, sparse]

    sparsed.set_num_threads(1)
    expected = results()
    for threads in (2, 3, 5, 8, 8, 1):
        sparsed.set_num_threads(threads)
        assert sparsed.get_num_threads() == threads
        for found, first in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(found, first)
