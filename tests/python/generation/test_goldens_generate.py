"""Whole generations of the golden cases: tokens, every step and patterns, on every set of kernels that runs here."""

from __future__ import annotations

import numpy as np

import sparsed
from goldens import Golden, golden_case
from sparsed import SparseConfig


def test_dense_and_sparse(golden: Golden, backend: str) -> None:
    result = golden.check_generations(sparsed.load_model(golden.folder, "float32"))
    steps, select = golden.meta["steps"], golden.select_step
    phases = ["dense"] * select + ["select"] + ["sparse"] * (steps - select - 1)
    assert [step.phase for step in result.stats] == phases


def test_guidance(backend: str) -> None:
    golden = golden_case("llada_b32")
    options = golden.options(cfg_scale=golden.meta["cfg_scale"])
    result = sparsed.generate(sparsed.load_model(golden.folder, "float32"), **options)
    np.testing.assert_array_equal(result.tokens, golden.arrays["cfg_tokens"])


def test_everything_selected_is_dense(golden: Golden) -> None:
    everything = SparseConfig(rho=1.0, skip=0.0, block_size=golden.meta["block_size"], min_length=0)
    result = sparsed.generate(sparsed.load_model(golden.folder, "float32"), sparse=everything, **golden.options())
    np.testing.assert_array_equal(result.tokens, golden.arrays["dense_tokens"])
    assert result.stats.density == 1
