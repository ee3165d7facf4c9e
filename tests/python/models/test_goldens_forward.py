"""Logits of the published code at every step of the golden cases, on every set of kernels that runs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import sparsed
from goldens import Golden
from tolerances import check_golden_logits


def pattern_attend(golden: Golden) -> Callable[..., Any]:
    """Attention on the golden blocks."""
    length = golden.arrays["sparse_x"].shape[1]
    layers = [
        sparsed.BlockPattern.from_mask(mask[None], block_size=golden.meta["block_size"], q_len=length, kv_len=length)
        for mask in golden.arrays["pattern"]
    ]
    return lambda layer, q, k, v, key_mask=None: sparsed.attention(q, k, v, layers[layer], key_mask=key_mask)


def test_dense_logits(golden: Golden, backend: str) -> None:
    model = sparsed.load_model(golden.folder, "float32")
    for step, (ids, expected) in enumerate(golden.steps("dense")):
        check_golden_logits(model.forward(ids, positions=golden.positions)[0], expected, step)


def test_sparse_logits(golden: Golden, backend: str) -> None:
    model = sparsed.load_model(golden.folder, "float32")
    sparse = pattern_attend(golden)
    for step, (ids, expected) in enumerate(golden.steps("sparse")):
        attend = sparse if step > golden.select_step else None
        check_golden_logits(model.forward(ids, attend=attend, positions=golden.positions)[0], expected, step)


def test_bfloat16_is_close(golden: Golden, backend: str) -> None:
    model = sparsed.load_model(golden.folder, dtype="bfloat16")
    ids, expected = golden.steps("dense")[0]
    logits = model.forward(ids, positions=golden.positions)[0]
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2))
