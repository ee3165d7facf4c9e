"""sparsed.recall against probabilities in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference
import sparsed
from conftest import random_mask, random_qkv
from sparsed import BlockPattern

# The relative error of exp(lse), whose absolute error is that of the kernels' log-sum-exp.
RECALL = {"float32": 3e-5, "float16": 3e-5, "bfloat16": 1e-2}


@pytest.mark.parametrize("masked", [False, True])
def test_recall_is_the_mass_that_the_pattern_holds(backend: str, dtype: Any, masked: bool) -> None:
    q, k, _ = random_qkv(5, 2, 4, 2, 130, 210, 32, dtype)
    key_mask = np.arange(210) >= np.array([[0], [50]]) if masked else None
    blocks = random_mask(6, 2, 4, 130, 210, 16)
    blocks[0, 1, 3] = False
    pattern = BlockPattern.from_mask(blocks, block_size=16, q_len=130, kv_len=210)
    scale = 0.4
    visible = np.ones((2, 1, 1, 210), bool) if key_mask is None else key_mask[:, None, None, :]
    p, _ = reference.softmax(reference.scores(q, k, scale), visible)
    expected = np.where(reference.visible_keys(blocks, 16, 130, 210), p, 0).sum(axis=-1)
    found = sparsed.recall(q, k, pattern, scale=scale, key_mask=key_mask)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=RECALL[dtype.name], atol=1e-7)
    assert (found[0, 1, 48:64] == 0).all()
    full = BlockPattern.full(2, 4, block_size=16, q_len=130, kv_len=210)
    np.testing.assert_array_equal(sparsed.recall(q, k, full, key_mask=key_mask), 1)


def test_a_query_without_keys_loses_nothing() -> None:
    q, k, _ = random_qkv(5, 2, 1, 1, 32, 32, 16)
    key_mask = np.array([[True] * 32, [False] * 32])
    pattern = BlockPattern.sliding_window(2, window=1, block_size=16, q_len=32, kv_len=32)
    found = sparsed.recall(q, k, pattern, key_mask=key_mask)
    assert (found[1] == 1).all()
    assert ((found[0] > 0) & (found[0] < 1)).all()


def test_huge_scores() -> None:
    q, k, _ = random_qkv(5, 1, 1, 1, 32, 32, 16)
    pattern = BlockPattern.sliding_window(window=1, block_size=16, q_len=32, kv_len=32)
    p, _ = reference.softmax(reference.scores(100 * q, k, 1.0))
    expected = np.where(reference.visible_keys(pattern.to_mask(), 16, 32, 32), p, 0).sum(axis=-1)
    np.testing.assert_allclose(sparsed.recall(100 * q, k, pattern, scale=1.0), expected, rtol=1e-3, atol=1e-6)


def test_arrays_of_torch() -> None:
    torch = pytest.importorskip("torch")
    q, k, _ = random_qkv(5, 1, 2, 1, 40, 40, 16)
    pattern = BlockPattern.sliding_window(heads=2, window=1, block_size=16, q_len=40, kv_len=40)
    found = sparsed.recall(torch.from_numpy(q), torch.from_numpy(k), pattern)
    np.testing.assert_array_equal(found, sparsed.recall(q, k, pattern))


def test_errors_have_names() -> None:
    q, k, _ = random_qkv(5, 1, 2, 1, 40, 40, 16)
    for wrong in (None, np.ones((1, 2, 3, 3), bool)):
        with pytest.raises(TypeError, match=r"recall: pattern is a \w+, expected a BlockPattern"):
            sparsed.recall(q, k, wrong)  # type: ignore[arg-type]
    pattern = BlockPattern.full(1, 3, block_size=16, q_len=40, kv_len=40)
    with pytest.raises(ValueError, match="^recall: pattern has heads 3, expected 2"):
        sparsed.recall(q, k, pattern)
    fits = pattern[:, :2]
    with pytest.raises(TypeError, match="^recall: q is a NoneType"):
        sparsed.recall(None, k, fits)
    with pytest.raises(TypeError, match="^recall: k has dtype float64"):
        sparsed.recall(q, k.astype(np.float64), fits)
    with pytest.raises(ValueError, match="^recall: scale is 0"):
        sparsed.recall(q, k, fits, scale=0)
    with pytest.raises(ValueError, match="^recall: key_mask has"):
        sparsed.recall(q, k, fits, key_mask=np.ones((1, 41), bool))
