"""Whole generations of the golden cases: tokens, every step and patterns, on every set of kernels that runs here."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed
from sparsed import DreamSampler, LLaDASampler, SparseConfig

DATA = Path(__file__).parents[1] / "data"
CASES = ("llada_b32", "llada_b128", "dream_b32", "dream_margin", "dream_tail")


@cache
def case_of(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """meta.json, config.json and the arrays of a case."""
    meta, config = (json.loads((DATA / name / f"{part}.json").read_text()) for part in ("meta", "config"))
    with np.load(DATA / name / "goldens.npz") as goldens:
        return meta, config, dict(goldens)


def options_of(name: str) -> dict[str, Any]:
    meta, _, goldens = case_of(name)
    if meta["kind"] == "llada":
        sampler: Any = LLaDASampler(block_length=meta["block_length"], remasking=meta["remasking"])
    else:
        sampler = DreamSampler(
            **{key: meta[key] for key in ("alg", "temperature", "top_p", "top_k", "alg_temp", "eps")}
        )
    return {
        "prompt_ids": goldens["prompt"],
        "gen_length": meta["gen_length"],
        "steps": meta["steps"],
        "sampler": sampler,
        "history": True,
    }


def sparse_of(name: str) -> SparseConfig:
    meta, config, _ = case_of(name)
    return SparseConfig(
        skip=meta["skip"],
        rho=meta["select"],
        block_size=meta["block_size"],
        selection="reference",
        # The authors' LLaDA code scales the scores of its selection by the number of heads.
        selection_scale=1 / math.sqrt(config["n_heads"]) if meta["kind"] == "llada" else None,
        min_length=0,
    )


def assert_golden(name: str, model: Any) -> sparsed.GenerationResult:
    """A case's two generations by `model`: every step, tokens, patterns. Returns the sparse one."""
    goldens = case_of(name)[2]
    dense = sparsed.generate(model, **options_of(name))
    sparse = sparsed.generate(model, sparse=sparse_of(name), **options_of(name))
    for kind, result in (("dense", dense), ("sparse", sparse)):
        np.testing.assert_array_equal(result.history[:-1, 0], goldens[f"{kind}_x"])
        np.testing.assert_array_equal(result.tokens, goldens[f"{kind}_tokens"])
    for layer, expected in enumerate(goldens["pattern"]):
        np.testing.assert_array_equal(sparse.groups[0].patterns.pattern(layer).to_mask()[0], expected)
    return sparse


@pytest.mark.parametrize("name", CASES)
def test_dense_and_sparse(name: str, backend: str) -> None:
    result = assert_golden(name, sparsed.load_model(DATA / name))
    meta = case_of(name)[0]
    select = int(meta["steps"] * meta["skip"]) + 1
    phases = ["dense"] * select + ["select"] + ["sparse"] * (meta["steps"] - select - 1)
    assert [step.phase for step in result.stats] == phases


def test_guidance(backend: str) -> None:
    options = options_of("llada_b32")
    options["sampler"] = LLaDASampler(block_length=32, cfg_scale=case_of("llada_b32")[0]["cfg_scale"])
    result = sparsed.generate(sparsed.load_model(DATA / "llada_b32"), **options)
    np.testing.assert_array_equal(result.tokens, case_of("llada_b32")[2]["cfg_tokens"])


@pytest.mark.parametrize("name", CASES)
def test_everything_selected_is_dense(name: str) -> None:
    meta = case_of(name)[0]
    everything = SparseConfig(rho=1.0, skip=0.0, block_size=meta["block_size"], min_length=0)
    result = sparsed.generate(sparsed.load_model(DATA / name), sparse=everything, **options_of(name))
    np.testing.assert_array_equal(result.tokens, case_of(name)[2]["dense_tokens"])
    assert result.stats.density == 1
