"""Logits of the published code at every step of the golden cases, on every set of kernels that runs here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sparsed

DATA = Path(__file__).parents[1] / "data"
CASES = ("llada_b32", "llada_b128", "dream_b32", "dream_margin", "dream_tail")
BACKENDS = [backend.name for backend in sparsed.backends() if backend.available]


@pytest.fixture(params=BACKENDS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SPARSED_ISA", request.param)
    return request.param


@pytest.fixture(params=CASES)
def golden(request):
    folder = DATA / request.param
    with np.load(folder / "goldens.npz") as arrays:
        return folder, json.loads((folder / "meta.json").read_text()), dict(arrays)


def pattern_attend(patterns, block_size, length):
    """Attention on the golden blocks."""
    layers = [
        sparsed.BlockPattern.from_mask(mask[None], block_size=block_size, q_len=length, kv_len=length)
        for mask in patterns
    ]
    return lambda layer, q, k, v, key_mask=None: sparsed.attention(q, k, v, layers[layer], key_mask=key_mask)


def test_dense_logits(isa, golden):
    folder, _, arrays = golden
    model = sparsed.load_model(folder)
    positions = np.arange(arrays["prompt"].shape[1] - 1, arrays["dense_x"].shape[1])
    for step, (ids, expected) in enumerate(zip(arrays["dense_x"], arrays["dense_logits"], strict=True)):
        logits = model.forward(ids[None], positions=positions)[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3, err_msg=f"step {step}")


def test_sparse_logits(isa, golden):
    folder, meta, arrays = golden
    model = sparsed.load_model(folder)
    length = arrays["sparse_x"].shape[1]
    positions = np.arange(arrays["prompt"].shape[1] - 1, length)
    sparse = pattern_attend(arrays["pattern"], meta["block_size"], length)
    select_step = int(meta["steps"] * meta["skip"]) + 1
    for step, (ids, expected) in enumerate(zip(arrays["sparse_x"], arrays["sparse_logits"], strict=True)):
        logits = model.forward(ids[None], attend=sparse if step > select_step else None, positions=positions)[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3, err_msg=f"step {step}")


def test_bfloat16_is_close(isa, golden):
    folder, _, arrays = golden
    positions = np.arange(arrays["prompt"].shape[1] - 1, arrays["dense_x"].shape[1])
    logits = sparsed.load_model(folder, dtype="bfloat16").forward(arrays["dense_x"][:1], positions=positions)[0]
    expected = arrays["dense_logits"][0]
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2))
