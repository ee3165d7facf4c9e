"""What a sampler is: the interface that `generate` drives, and the blocks that a generation is cut into."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .logits import FloatArray, IntArray, checked


class Plan(NamedTuple):
    """What one generation asks of its sampler; `mask_token_id` marks the positions that are still open."""

    gen_length: int
    steps: int
    mask_token_id: int


@dataclass(frozen=True)
class Candidates:
    """Positions that a step can fill, (n,) ascending from the first generated token; it fills `count` of them."""

    positions: IntArray
    count: int


@dataclass(frozen=True)
class Choice:
    """What a step fills: `index` (k,) ascending into the candidates, `tokens` (k,), `confidence` (k,)."""

    index: IntArray
    tokens: IntArray
    confidence: FloatArray


NOTHING = Candidates(np.empty(0, np.int64), 0)


class Sampler(abc.ABC):
    """The interface that `generate` drives."""

    # > 0: logits are guided by a second batch row whose prompt is masked.
    cfg_scale: float = 0.0

    def check(self, plan: Plan) -> None:
        """Raises ValueError where the sampler cannot follow the plan. Most can follow any."""
        return

    def num_steps(self, plan: Plan) -> int | None:
        """Steps of the whole generation; None where they depend on the confidences."""
        return plan.steps

    def block(self, plan: Plan, step: int, masked: NDArray[np.bool_]) -> tuple[int, int]:
        """The part of the generation that the step works on, of one row: its first position, and the one behind it."""
        return 0, plan.gen_length

    @abc.abstractmethod
    def candidates(self, plan: Plan, step: int, masked: NDArray[np.bool_], rng: np.random.Generator) -> Candidates:
        """Positions that the step can fill, of one row. masked: (gen_length,). None where it fills nothing."""

    @abc.abstractmethod
    def score(self, plan: Plan, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """A token and its confidence per candidate, (n,) each. logits: (n, V), of the candidates themselves."""

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """The `count` candidates to fill; the most confident ones."""
        return np.argsort(-confidence, kind="stable")[:count]

    def choose(self, plan: Plan, candidates: Candidates, logits: FloatArray, rng: np.random.Generator) -> Choice:
        """What the step fills, given the logits (n, V) of its candidates.

        Raises:
            ValueError: A logit is NaN, or no token of a candidate has one above -inf.
        """
        tokens, confidence = self.score(plan, checked(logits), rng)
        index = np.sort(self.pick(confidence, candidates.count, rng))
        return Choice(index, tokens[index], confidence[index])


def check_blocks(plan: Plan, block_length: int | None, *, steps_too: bool) -> None:
    """Raises ValueError where blocks do not divide gen_length or, if steps count, the blocks do not divide steps."""
    length = block_length or plan.gen_length
    if plan.gen_length % length:
        raise ValueError(f"generate: gen_length is {plan.gen_length}, expected a multiple of block_length {length}")
    num_blocks = plan.gen_length // length
    if steps_too and plan.steps % num_blocks:
        raise ValueError(
            f"generate: steps is {plan.steps}, expected a multiple of the {num_blocks} blocks "
            f"(gen_length {plan.gen_length} / block_length {length})"
        )


def steps_of_block(plan: Plan, block_length: int | None, step: int) -> tuple[int, int]:
    """Steps of each block, and which one of them `step` is."""
    steps = plan.steps * (block_length or plan.gen_length) // plan.gen_length
    return steps, step % steps


def block_of_step(plan: Plan, block_length: int | None, step: int) -> tuple[int, int]:
    """The first position of the block that `step` works on, and the one behind it."""
    length = block_length or plan.gen_length
    begin = step // (plan.steps * length // plan.gen_length) * length
    return begin, begin + length
