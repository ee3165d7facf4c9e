"""The published code of dllm and of Open-dLLM: logits of every step, whole generations, by both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsed
from goldens import DENSE_CASES, Golden, golden_case
from sparsed import DreamSampler, MDLMSampler
from tolerances import check_golden_logits


@pytest.fixture(scope="module", params=DENSE_CASES)
def case(request: pytest.FixtureRequest) -> Golden:
    return golden_case(request.param)


def load(case: Golden, engine: str = "native", **options: Any) -> Any:
    if engine == "torch":
        pytest.importorskip("torch")
    return sparsed.load_model(case.folder, options.pop("dtype", "float32"), engine=engine, **options)


def positions(case: Golden) -> np.ndarray:
    """Those whose logits predict the generation: the goldens have them."""
    shift = int(case.meta["kind"] == "dream")
    return np.arange(case.prompt_length - shift, case.arrays["dense_x"].shape[1] - shift)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_logits_of_every_step(case: Golden, engine: str) -> None:
    model = load(case, engine)
    for step, (ids, expected) in enumerate(case.steps("dense")):
        check_golden_logits(model.forward(ids, positions=positions(case))[0], expected, step)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_the_generation(case: Golden, engine: str) -> None:
    guidance = {"cfg_scale": case.meta["cfg_scale"]} if "cfg_scale" in case.meta else {}
    result = sparsed.generate(load(case, engine), **case.options(**guidance))
    np.testing.assert_array_equal(result.tokens, case.arrays["dense_tokens"])
    # dllm leaves out the steps that unmask nothing; a step of Dream's sampler that does is computed there.
    states = [result.history[i, 0] for i, step in enumerate(result.stats) if step.forwards]
    np.testing.assert_array_equal(states, case.arrays["dense_x"])


def test_bfloat16_is_close(case: Golden) -> None:
    ids, expected = case.steps("dense")[0]
    logits = load(case, dtype="bfloat16").forward(ids, positions=positions(case))[0]
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2))


def test_the_family_s_own_sampler(case: Golden) -> None:
    model = load(case)
    sampler = DreamSampler() if case.name == "open_dcoder" else MDLMSampler()
    options = {"gen_length": case.meta["gen_length"], "steps": case.meta["gen_length"] - 5}
    given = sparsed.generate(model, case.arrays["prompt"], sampler=sampler, **options)
    np.testing.assert_array_equal(sparsed.generate(model, case.arrays["prompt"], **options).tokens, given.tokens)


def test_sparse_and_cached_generations_run(case: Golden) -> None:
    model = load(case)
    dense = sparsed.generate(model, **case.options())
    everything = sparsed.SparseConfig(skip=0.0, rho=1.0, block_size=16, min_length=0)
    selected = sparsed.generate(model, sparse=everything, **case.options())
    np.testing.assert_array_equal(selected.tokens, dense.tokens)
    half = sparsed.SparseConfig(skip=0.0, rho=0.3, block_size=16, min_length=0, generation="sparse")
    assert sparsed.generate(model, sparse=half, **case.options()).stats.density < 0.9
    assert sparsed.generate(model, kv_cache=sparsed.DualCache(), **case.options()).stats.cached_rows > 0
