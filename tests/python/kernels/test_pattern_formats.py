"""Patterns in the forms of SciPy, torch and flex_attention, and back."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

import reference
from conftest import random_mask, random_qkv
from sparsed import BlockPattern

SIZES: dict[str, Any] = {"block_size": 16, "q_len": 100, "kv_len": 150}


def pattern_of(seed: int = 0, batch: int = 2, heads: int = 3, **sizes: Any) -> BlockPattern:
    sizes = {**SIZES, **sizes}
    return BlockPattern.from_mask(
        random_mask(seed, batch, heads, sizes["q_len"], sizes["kv_len"], sizes["block_size"]), **sizes
    )


def test_rows_and_back() -> None:
    pattern = pattern_of()
    assert BlockPattern.from_bsr(*pattern.to_bsr(), batch=2, heads=3, **SIZES) == pattern
    one = pattern[1, 2]
    indptr, indices = one.to_bsr()
    assert BlockPattern.from_bsr(indptr.astype(np.int32), indices.tolist(), **SIZES) == one
    shuffled = np.concatenate([indices[a:b][::-1] for a, b in itertools.pairwise(indptr)])
    assert BlockPattern.from_bsr(indptr, shuffled, **SIZES) == one
    assert BlockPattern.from_bsr(*pattern.to_bsr(), batch=2, heads=3, prompt_length=9, **SIZES).prompt_length == 9


@pytest.mark.filterwarnings("ignore:Sparse")
def test_rows_are_those_of_scipy_and_torch() -> None:
    scipy = pytest.importorskip("scipy.sparse")
    torch = pytest.importorskip("torch")
    pattern = pattern_of()
    sizes = {"block_size": 16, "q_len": 96, "kv_len": 144}
    for head in range(3):
        one = pattern_of(head, 1, 1, **sizes)
        indptr, indices = one.to_bsr()
        data = np.ones((len(indices), 16, 16), np.float32)
        expected = reference.visible_keys(one.to_mask(), 16, 96, 144)[0, 0]
        matrix = scipy.bsr_array((data, indices, indptr), shape=(96, 144))
        np.testing.assert_array_equal(matrix.toarray(), expected)
        assert BlockPattern.from_bsr(matrix.indptr, matrix.indices, **sizes) == one  # type: ignore[arg-type]
        tensor = torch.sparse_bsr_tensor(indptr, indices.astype(np.int64), torch.from_numpy(data), size=(96, 144))
        np.testing.assert_array_equal(tensor.to_dense().numpy(), expected)
    # All heads: one matrix, in which the rows of the heads lie below each other.
    indptr, indices = pattern.to_bsr()
    whole = scipy.csr_array((np.ones(len(indices), bool), indices, indptr), shape=(2 * 3 * 7, 10)).toarray()
    np.testing.assert_array_equal(whole.reshape(2, 3, 7, 10), pattern.to_mask())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": [0, 1]}, "indptr has shape [2], expected [8] (batch 1 x heads 1 x 7 blocks of queries, and one)"),
        ({"heads": 2}, "indptr has shape [8], expected [15]"),
        ({"indptr": [0, 1, 1, 1, 1, 1, 1, 4]}, "indptr goes from 0 to 4, expected to rise from 0 to 3"),
        ({"indptr": [1, 1, 1, 1, 1, 1, 1, 3]}, "indptr goes from 1 to 3, expected to rise from 0 to 3"),
        ({"indptr": [0, 2, 1, 1, 1, 1, 1, 3]}, "indptr goes from 0 to 3, expected to rise"),
        ({"indices": [0, 10, 1]}, "indices[1] is 10, expected 0 ... 9 (blocks of 16 in kv_len 150)"),
        ({"indices": [-1, 0, 1]}, "indices[0] is -1, expected 0 ... 9"),
        ({"indices": [[0, 1, 2]]}, "indices has shape [1, 3], expected one dimension"),
        ({"indices": [0.0, 1.0, 2.0]}, "indices has dtype float64, expected integers"),
        ({"indptr": None}, "indptr is a NoneType, expected integers"),
        ({"block_size": 0}, "block_size is 0, expected an integer >= 1"),
        ({"q_len": 1.5}, "q_len is 1.5, expected an integer"),
        ({"batch": -1}, "batch is -1, expected an integer >= 0"),
    ],
)
def test_wrong_rows_have_names(change: Any, message: str) -> None:
    arguments: Any = {"indptr": [0, 1, 1, 1, 1, 1, 1, 3], "indices": [0, 5, 1], **SIZES}
    with pytest.raises((ValueError, TypeError), match=re.escape(f"BlockPattern.from_bsr: {message}")):
        BlockPattern.from_bsr(**{**arguments, **change})
    with pytest.raises(ValueError, match="block_size is 24, expected 16, 32"):
        BlockPattern.from_bsr([0] * 6, [], block_size=24, q_len=100, kv_len=150)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("lengths", [(96, 144), (100, 150)])
def test_flex_attention_computes_the_pattern(lengths: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q_len, kv_len = lengths
    pattern = pattern_of(q_len=q_len, kv_len=kv_len)
    block_mask = pattern.to_block_mask()
    assert block_mask.shape == (2, 3, q_len, kv_len)
    np.testing.assert_array_equal(block_mask.to_dense().numpy(), pattern.to_mask())
    assert int(block_mask.kv_num_blocks.sum()) == 0  # all of them are full
    assert BlockPattern.from_block_mask(block_mask) == pattern
    q, k, v = random_qkv(0, 2, 3, 3, q_len, kv_len, 16)
    expected, _ = reference.attention(q, k, v, blocks=pattern.to_mask(), block_size=16)
    with torch.no_grad():
        out = flex.flex_attention(*map(torch.from_numpy, (q, k, v)), block_mask=block_mask)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("lengths", [(128, 192), (100, 150)])
def test_block_masks_of_whole_blocks_become_patterns(lengths: tuple[int, int]) -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def chess(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query // 32 + key // 32 + head) % 2 == 0

    block_mask = flex.create_block_mask(chess, 1, 2, *lengths, device="cpu", BLOCK_SIZE=32)
    pattern = BlockPattern.from_block_mask(block_mask, prompt_length=40)
    rows, columns = (-(-length // 32) for length in lengths)
    places = np.add.outer(np.arange(rows), np.arange(columns))
    np.testing.assert_array_equal(pattern.to_mask()[0], [places % 2 == 0, places % 2 == 1])
    sizes = (pattern.q_len, pattern.kv_len, pattern.block_size, pattern.prompt_length)
    assert sizes == (*lengths, 32, 40)
    assert pattern[[0, 0], [1]].batch == 2


def test_what_a_pattern_cannot_say_is_refused() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return query >= key

    block_mask = flex.create_block_mask(causal, None, None, 128, 128, device="cpu", BLOCK_SIZE=32)
    with pytest.raises(ValueError, match=r"from_block_mask: block_mask hides key 1 from query 0 \(batch 0, head 0\)"):
        BlockPattern.from_block_mask(block_mask)
    oblong = flex.create_block_mask(causal, None, None, 128, 128, device="cpu", BLOCK_SIZE=(32, 64))
    with pytest.raises(ValueError, match=r"block_mask has blocks of 32 x 64, expected square ones"):
        BlockPattern.from_block_mask(oblong)
    with pytest.raises(TypeError, match=r"block_mask is a ndarray, expected flex_attention's BlockMask"):
        BlockPattern.from_block_mask(np.ones((1, 1, 4, 4), bool))
