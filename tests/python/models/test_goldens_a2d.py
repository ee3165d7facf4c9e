"""The published code of dllm on the A2D family: logits of every step, whole generations, by both engines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import sparsed
from paths import DATA
from sparsed import MDLMSampler
from tolerances import check_golden_logits

CASES = ("a2d_qwen3", "a2d_qwen2", "a2d_llama")


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Any:
    folder = DATA / request.param
    with np.load(folder / "goldens.npz") as arrays:
        return folder, json.loads((folder / "meta.json").read_text()), dict(arrays)


def load(folder, engine: str, **options: Any) -> Any:
    if engine == "torch":
        pytest.importorskip("torch")
    return sparsed.load_model(folder, engine=engine, **options)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_logits_of_every_step(case, engine: str) -> None:
    folder, _, arrays = case
    model = load(folder, engine)
    positions = np.arange(arrays["prompt"].shape[1], arrays["dense_x"].shape[1])
    for step, (ids, expected) in enumerate(zip(arrays["dense_x"], arrays["dense_logits"], strict=True)):
        check_golden_logits(model.forward(ids[None].astype(np.int64), positions=positions)[0], expected, step)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_the_generation(case, engine: str) -> None:
    folder, meta, arrays = case
    sampler = MDLMSampler(block_length=meta["block_length"], cfg_scale=meta["cfg_scale"], remasking=meta["remasking"])
    options: dict[str, Any] = {"gen_length": meta["gen_length"], "steps": meta["steps"], "stop": ()}
    result = sparsed.generate(load(folder, engine), arrays["prompt"], sampler=sampler, history=True, **options)
    np.testing.assert_array_equal(result.tokens, arrays["dense_tokens"])
    # dllm leaves out the steps that unmask nothing.
    states = [result.history[i, 0] for i, step in enumerate(result.stats) if step.forwards]
    np.testing.assert_array_equal(states, arrays["dense_x"])


def test_bfloat16_is_close(case) -> None:
    folder, _, arrays = case
    ids, expected = arrays["dense_x"][:1].astype(np.int64), arrays["dense_logits"][0]
    logits = load(folder, "native", dtype="bfloat16").forward(ids)[0, arrays["prompt"].shape[1] :]
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2))


def test_the_family_s_sampler_is_dllm_s(case) -> None:
    folder, meta, arrays = case
    model = load(folder, "native")
    assert model.config.family == "a2d"
    options = {"gen_length": meta["gen_length"], "steps": meta["gen_length"]}
    given = sparsed.generate(model, arrays["prompt"], sampler=MDLMSampler(), **options)
    np.testing.assert_array_equal(sparsed.generate(model, arrays["prompt"], **options).tokens, given.tokens)


def test_sparse_and_cached_generations_run(case) -> None:
    folder, meta, arrays = case
    model = load(folder, "native")
    sampler = MDLMSampler(block_length=meta["block_length"])
    options: dict[str, Any] = {"gen_length": meta["gen_length"], "steps": meta["steps"], "sampler": sampler}
    sparse = sparsed.SparseConfig(skip=0.0, rho=1.0, block_size=16, min_length=0)
    dense = sparsed.generate(model, arrays["prompt"], **options)
    selected = sparsed.generate(model, arrays["prompt"], sparse=sparse, **options)
    np.testing.assert_array_equal(selected.tokens, dense.tokens)
    cached = sparsed.generate(model, arrays["prompt"], kv_cache=sparsed.DualCache(), **options)
    assert cached.stats.cached_rows > 0
