"""The sampler of dllm's masked diffusion models (MDLM), which is the default of the A2D family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .base import Request, steps_of_block
from .llada import LLaDASampler
from .logits import IntArray


@dataclass(frozen=True)
class MDLMSampler(LLaDASampler):
    """dllm's sampler of masked diffusion models. Its options and its confidences are those of `LLaDASampler`.

    It differs in how many tokens a step unmasks: with m tokens of the block left and r steps to go, these are m / r,
    rounded to the nearest integer, and to the even one where two are as near. Steps that would unmask nothing move to
    the end of the block, where they cost no pass.

    Raises:
        TypeError, ValueError: As `LLaDASampler`.

    Source: ZHZisZZ/dllm, dllm/core/samplers/mdlm.py and utils.py, with its linear schedule. That code rounds the steps
        of a block up where blocks do not divide them; here this is an error. Its stochastic_transfer is not there.
    """

    def scheduled(
        self, request: Request, step: int, positions: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, int]:
        """Returns all positions, and what the linear schedule unmasks."""
        steps, i = steps_of_block(request, self.block_length, step)
        return positions, linear_schedule(self.block_length or request.gen_length, steps)[i]


@lru_cache
def linear_schedule(num_tokens: int, steps: int) -> tuple[int, ...]:
    """Returns how many of `num_tokens` each step unmasks, (steps,).

    The shares are rounded to float32 where dllm rounds them, which decides some of the ties.
    """
    counts, left = [], num_tokens
    for to_go in range(steps, 0, -1):
        masked_now, masked_then = (np.float32(1) - (np.float32(1) - np.float32(t / steps)) for t in (to_go, to_go - 1))
        count = min(left, round(left * (1 - float(masked_then / masked_now))))
        left -= count
        counts += [count] if count else []
    return (*counts, *[0] * (steps - len(counts)))
