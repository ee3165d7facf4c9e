"""dllm's linear schedule, and that the sampler differs from LLaDA's in nothing else."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import sparsed
from paths import DATA
from sparsed import LLaDASampler, MDLMSampler
from sparsed.generation.samplers.mdlm import linear_schedule


@pytest.mark.parametrize(
    ("num_tokens", "steps", "expected"),
    [
        (8, 8, (1,) * 8),
        (96, 4, (24,) * 4),
        # From a run of get_num_transfer_tokens at the commit that tests/data/README.md names.
        (32, 5, (6, 6, 7, 6, 7)),
        (10, 4, (2, 3, 2, 3)),
        (4, 10, (1, 1, 1, 1, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_known_schedules(num_tokens, steps, expected) -> None:
    assert linear_schedule(num_tokens, steps) == expected


@pytest.mark.parametrize("steps", [1, 3, 7, 32, 200])
@pytest.mark.parametrize("num_tokens", [1, 5, 31, 32, 100])
def test_each_step_takes_its_share_of_what_is_left(num_tokens, steps) -> None:
    counts = linear_schedule(num_tokens, steps)
    assert sum(counts) == num_tokens and len(counts) == steps
    assert all(counts[: np.count_nonzero(counts)])  # the empty steps come last
    left, expected = num_tokens, []
    for to_go in range(steps, 0, -1):
        share = Fraction(left, to_go)
        if abs(share % 1 - Fraction(1, 2)) < Fraction(1, 1000):
            return  # dllm's float32 decides, see the known schedules
        expected += [round(share)] if round(share) else []
        left -= round(share)
        assert list(counts[: len(expected)]) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"cfg_scale": 1.5, "block_length": 8},
        {"remasking": "random", "block_length": 4},
        {"threshold": 0.3, "block_length": 8},
        {"confidence_eos_eot_inf": True},
    ],
)
def test_with_one_token_a_step_it_is_llada_s_sampler(options: dict[str, Any]) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    prompt = np.arange(1, 30)
    ours, llada = (
        sparsed.generate(model, prompt, gen_length=16, steps=16, sampler=sampler(**options), seed=3)
        for sampler in (MDLMSampler, LLaDASampler)
    )
    np.testing.assert_array_equal(ours.tokens, llada.tokens)


def test_blocks_have_to_divide_the_steps() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    with pytest.raises(ValueError, match="steps is 15, expected a multiple of the 2 blocks"):
        sparsed.generate(model, [1, 2], gen_length=16, steps=15, sampler=MDLMSampler(block_length=8))
    with pytest.raises(ValueError, match="^MDLMSampler: temperature is -1"):
        MDLMSampler(temperature=-1)
