"""What holds for any input: properties of attention, on random shapes, by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparsed
from conftest import random_mask, random_qkv
from sparsed import BlockPattern
from tolerances import ORDER

Array = NDArray[Any]

examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
head_dims = st.sampled_from([16, 40, 64, 128])
block_sizes = st.sampled_from([16, 32, 64])
lengths = st.integers(1, 300)
kv_heads = st.integers(1, 3)
groups = st.integers(1, 3)


def pattern_of(mask: Array, q_len: int, kv_len: int, block_size: int) -> BlockPattern:
    return BlockPattern.from_mask(mask, block_size=block_size, q_len=q_len, kv_len=kv_len)


@examples
@given(seeds, kv_heads, lengths, st.integers(1, 8), head_dims, block_sizes)
def test_the_order_of_keys_does_not_matter(
    seed: int, heads: int, q_len: int, kv_blocks: int, head_dim: int, block: int
) -> None:
    kv_len = kv_blocks * block
    q, k, v = random_qkv(seed, 1, heads, heads, q_len, kv_len, head_dim)
    mask = random_mask(seed, 1, heads, q_len, kv_len, block)
    out = sparsed.attention(q, k, v, pattern_of(mask, q_len, kv_len, block))

    order = np.random.default_rng(seed).permutation(kv_blocks)
    keys = (order[:, None] * block + np.random.default_rng(seed).permuted(np.arange(block))).ravel()
    moved = sparsed.attention(q, k[:, :, keys], v[:, :, keys], pattern_of(mask[..., order], q_len, kv_len, block))
    np.testing.assert_allclose(moved, out, atol=ORDER)


@examples
@given(seeds, kv_heads, lengths, lengths, head_dims, block_sizes)
def test_two_halves_of_a_pattern_merge_by_lse(
    seed: int, heads: int, q_len: int, kv_len: int, head_dim: int, block: int
) -> None:
    q, k, v = random_qkv(seed, 1, heads, heads, q_len, kv_len, head_dim)
    whole = random_mask(seed, 1, heads, q_len, kv_len, block)
    part = whole & random_mask(seed + 1, 1, heads, q_len, kv_len, block)
    outs, lses = zip(
        *(
            sparsed.attention(q, k, v, pattern_of(mask, q_len, kv_len, block), return_lse=True)
            for mask in (part, whole & ~part, whole)
        ),
        strict=True,
    )
    with np.errstate(divide="ignore"):
        lse = np.logaddexp(lses[0], lses[1])
    np.testing.assert_allclose(lse, lses[2], atol=ORDER)
    live = np.isfinite(lse)
    weights = [np.where(live, np.exp(half - np.where(live, lse, 0)), 0)[..., None] for half in lses[:2]]
    np.testing.assert_allclose(weights[0] * outs[0] + weights[1] * outs[1], outs[2], atol=ORDER)


@examples
@given(seeds, kv_heads, groups, lengths, lengths, head_dims, block_sizes)
def test_grouped_heads_are_repeated_heads(
    seed: int, kv: int, group: int, q_len: int, kv_len: int, head_dim: int, block: int
) -> None:
    q, k, v = random_qkv(seed, 1, kv * group, kv, q_len, kv_len, head_dim)
    pattern = pattern_of(random_mask(seed, 1, kv * group, q_len, kv_len, block), q_len, kv_len, block)
    repeated = sparsed.attention(q, k.repeat(group, 1), v.repeat(group, 1), pattern)
    np.testing.assert_array_equal(sparsed.attention(q, k, v, pattern), repeated)
