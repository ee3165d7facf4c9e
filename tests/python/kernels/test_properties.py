"""What holds for any input: properties of attention, on random shapes, by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparsed
from conftest import random_qkv
from sparsed import BlockPattern

Array = NDArray[Any]
TOLERANCE = 2e-5

examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
head_dims = st.sampled_from([16, 40, 64, 128])
block_sizes = st.sampled_from([16, 32, 64])
lengths = st.integers(1, 300)
kv_heads = st.integers(1, 3)
groups = st.integers(1, 3)


def random_mask(seed: int, heads: int, q_len: int, kv_len: int, block_size: int, batch: int = 1) -> Array:
    shape = (batch, heads, -(-q_len // block_size), -(-kv_len // block_size))
    return np.random.default_rng(seed).random(shape) < 0.5


def pattern_of(mask: Array, q_len: int, kv_len: int, block_size: int) -> BlockPattern:
    return BlockPattern.from_mask(mask, block_size=block_size, q_len=q_len, kv_len=kv_len)


@examples
@given(seeds, kv_heads, groups, lengths, lengths, head_dims, block_sizes)
def test_everything_selected_is_dense(
    seed: int, kv: int, group: int, q_len: int, kv_len: int, head_dim: int, block: int
) -> None:
    q, k, v = random_qkv(seed, 1, kv * group, kv, q_len, kv_len, head_dim)
    full = BlockPattern.full(batch=1, heads=kv * group, q_len=q_len, kv_len=kv_len, block_size=block)
    np.testing.assert_allclose(sparsed.attention(q, k, v, full), sparsed.attention(q, k, v), atol=TOLERANCE)


@examples
@given(seeds, kv_heads, lengths, st.integers(1, 8), head_dims, block_sizes)
def test_the_order_of_keys_does_not_matter(
    seed: int, heads: int, q_len: int, kv_blocks: int, head_dim: int, block: int
) -> None:
    kv_len = kv_blocks * block
    q, k, v = random_qkv(seed, 1, heads, heads, q_len, kv_len, head_dim)
    mask = random_mask(seed, heads, q_len, kv_len, block)
    out = sparsed.attention(q, k, v, pattern_of(mask, q_len, kv_len, block))

    order = np.random.default_rng(seed).permutation(kv_blocks)
    keys = (order[:, None] * block + np.random.default_rng(seed).permuted(np.arange(block))).ravel()
    moved = sparsed.attention(q, k[:, :, keys], v[:, :, keys], pattern_of(mask[..., order], q_len, kv_len, block))
    np.testing.assert_allclose(moved, out, atol=TOLERANCE)


@examples
@given(seeds, kv_heads, lengths, lengths, head_dims, block_sizes)
def test_two_halves_of_a_pattern_merge_by_lse(
    seed: int, heads: int, q_len: int, kv_len: int, head_dim: int, block: int
) -> None:
    q, k, v = random_qkv(seed, 1, heads, heads, q_len, kv_len, head_dim)
    whole = random_mask(seed, heads, q_len, kv_len, block)
    part = whole & random_mask(seed + 1, heads, q_len, kv_len, block)
    outs, lses = zip(
        *(
            sparsed.attention(q, k, v, pattern_of(mask, q_len, kv_len, block), return_lse=True)
            for mask in (part, whole & ~part, whole)
        ),
        strict=True,
    )
    with np.errstate(divide="ignore"):
        lse = np.logaddexp(lses[0], lses[1])
    np.testing.assert_allclose(lse, lses[2], atol=TOLERANCE)
    live = np.isfinite(lse)
    weights = [np.where(live, np.exp(half - np.where(live, lse, 0)), 0)[..., None] for half in lses[:2]]
    np.testing.assert_allclose(weights[0] * outs[0] + weights[1] * outs[1], outs[2], atol=TOLERANCE)


@examples
@given(seeds, kv_heads, groups, lengths, lengths, head_dims, block_sizes)
def test_grouped_heads_are_repeated_heads(
    seed: int, kv: int, group: int, q_len: int, kv_len: int, head_dim: int, block: int
) -> None:
    q, k, v = random_qkv(seed, 1, kv * group, kv, q_len, kv_len, head_dim)
    pattern = pattern_of(random_mask(seed, kv * group, q_len, kv_len, block), q_len, kv_len, block)
    repeated = sparsed.attention(q, k.repeat(group, 1), v.repeat(group, 1), pattern)
    np.testing.assert_array_equal(sparsed.attention(q, k, v, pattern), repeated)


@examples
@given(seeds, st.integers(2, 4), kv_heads, lengths, head_dims, block_sizes)
def test_rows_of_a_batch_do_not_know_each_other(
    seed: int, batch: int, heads: int, length: int, head_dim: int, block: int
) -> None:
    q, k, v = random_qkv(seed, batch, heads, heads, length, length, head_dim)
    key_mask = np.random.default_rng(seed).random((batch, length)) < 0.8
    mask = random_mask(seed, heads, length, length, block, batch)
    out = sparsed.attention(q, k, v, pattern_of(mask, length, length, block), key_mask=key_mask)
    options = {"prompt_length": length // 2, "block_size": block}
    _, selected = sparsed.attention_and_select(q, k, v, key_mask=key_mask, **options)
    for row in range(batch):
        one = slice(row, row + 1)
        alone = sparsed.attention(
            q[one], k[one], v[one], pattern_of(mask[one], length, length, block), key_mask=key_mask[one]
        )
        np.testing.assert_array_equal(out[one], alone)
        _, single = sparsed.attention_and_select(q[one], k[one], v[one], key_mask=key_mask[one], **options)
        np.testing.assert_array_equal(selected.to_mask()[one], single.to_mask())


@examples
@given(seeds, kv_heads, lengths, lengths, head_dims, block_sizes, st.sampled_from("qkv"), st.booleans())
def test_nan_stays_in_the_rows_that_see_it(
    seed: int, heads: int, q_len: int, kv_len: int, head_dim: int, block: int, where: str, masked: bool
) -> None:
    q, k, v = random_qkv(seed, 1, heads, heads, q_len, kv_len, head_dim)
    mask = random_mask(seed, heads, q_len, kv_len, block)
    pattern = pattern_of(mask, q_len, kv_len, block)
    rng = np.random.default_rng(seed)
    key_mask = np.ones((1, kv_len), bool)
    row = int(rng.integers(q_len if where == "q" else kv_len))
    if where == "q":
        expected = np.zeros((heads, q_len), bool)
        expected[:, row] = mask[0, :, row // block].any(-1)
    else:
        key_mask[0, row] = not masked
        expected = mask[0, :, :, row // block].repeat(block, 1)[:, :q_len] & (not masked)
    clean = sparsed.attention(q, k, v, pattern, key_mask=key_mask)
    {"q": q, "k": k, "v": v}[where][0, :, row] = np.nan
    out = sparsed.attention(q, k, v, pattern, key_mask=key_mask)
    found = np.isnan(out[0])
    np.testing.assert_array_equal(found.any(-1), expected)
    np.testing.assert_array_equal(found.all(-1), expected)
    np.testing.assert_array_equal(out[0][~expected], clean[0][~expected])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_bits_do_not_depend_on_threads_or_runs(threads: int) -> None:
    q, k, v = random_qkv(0, 2, 6, 2, 515, 515, 64)
    before = sparsed.get_num_threads()
    try:
        sparsed.set_num_threads(1)
        expected = sparsed.attention_and_select(q, k, v, prompt_length=400, block_size=32)
        sparsed.set_num_threads(threads)
        for _ in range(3):
            out, pattern = sparsed.attention_and_select(q, k, v, prompt_length=400, block_size=32)
            np.testing.assert_array_equal(out, expected[0])
            assert pattern == expected[1]
            np.testing.assert_array_equal(sparsed.attention(q, k, v, pattern), sparsed.attention(q, k, v, expected[1]))
    finally:
        sparsed.set_num_threads(before)
