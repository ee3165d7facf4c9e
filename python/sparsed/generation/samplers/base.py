"""The interface of samplers that `generate` drives, and the blocks that a generation is cut into."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .logits import FloatArray, IntArray, checked


class Request(NamedTuple):
    """What one generation asks of its sampler.

    Attributes:
        gen_length: Tokens to generate.
        steps: Denoising steps.
        mask_token_id: Marks the positions that are still masked.
        end_token_ids: The tokens that end a text. The first one is the model's eos.
    """

    gen_length: int
    steps: int
    mask_token_id: int
    end_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """What a step may unmask of one row.

    Attributes:
        positions: (n,) ascending from the first generated token, the positions whose logits the step needs.
        count: How many of them it unmasks.
        among: (k,) ascending indices into `positions`, which it unmasks `count` of; None: all of them.
        commit_gap: If the mean gap between the two largest logits of all positions reaches it, the step unmasks all of
            them; None: never.
    """

    positions: IntArray
    count: int
    among: IntArray | None = None
    commit_gap: float | None = None


@dataclass(frozen=True)
class Choice:
    """What a step unmasks: `index` (k,) ascending into the candidates, `tokens` (k,), `confidence` (k,)."""

    index: IntArray
    tokens: IntArray
    confidence: FloatArray


NOTHING = Candidates(np.empty(0, np.int64), 0)


class Sampler(abc.ABC):
    """The interface that `generate` drives."""

    # > 0: logits are guided by a second batch row whose prompt is masked.
    cfg_scale: float = 0.0
    # Blocks of this many tokens are unmasked one after the other; None: the whole generation is one.
    block_length: int | None = None

    def check(self, request: Request) -> None:
        """Raises ValueError if the sampler cannot serve the request. Most can serve any."""
        return

    def num_steps(self, request: Request) -> int | None:
        """Returns the steps of the whole generation; None if they depend on the confidences."""
        return request.steps

    def block(self, request: Request, step: int, masked: NDArray[np.bool_]) -> tuple[int, int]:
        """Returns the part of a row that the step works on: its first position, and the one behind it."""
        return 0, request.gen_length

    @abc.abstractmethod
    def candidates(
        self, request: Request, step: int, masked: NDArray[np.bool_], rng: np.random.Generator
    ) -> Candidates:
        """Returns what the step may unmask of one row; NOTHING if it unmasks nothing. masked: (gen_length,)."""

    @abc.abstractmethod
    def score(self, request: Request, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Returns a token and its confidence per candidate, (n,) each. logits: (n, V), of the candidates."""

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """Returns the `count` candidates to unmask: the most confident ones."""
        return np.argsort(-confidence, kind="stable")[:count]

    def choose(self, request: Request, candidates: Candidates, logits: FloatArray, rng: np.random.Generator) -> Choice:
        """Returns what the step unmasks, given the logits (n, V) of its candidates.

        Raises:
            ValueError: A logit is NaN, or no token of a candidate has one above -inf.
        """
        tokens, confidence = self.score(request, checked(logits), rng)
        index = np.sort(self.pick(confidence, candidates.count, rng))
        return Choice(index, tokens[index], confidence[index])


def check_blocks(request: Request, block_length: int | None) -> None:
    """Raises ValueError if blocks do not divide gen_length, or if their number does not divide the steps."""
    length = block_length or request.gen_length
    if request.gen_length % length:
        raise ValueError(f"generate: gen_length is {request.gen_length}, expected a multiple of block_length {length}")
    num_blocks = request.gen_length // length
    if request.steps % num_blocks:
        raise ValueError(
            f"generate: steps is {request.steps}, expected a multiple of the {num_blocks} blocks "
            f"(gen_length {request.gen_length} / block_length {length})"
        )


def steps_of_block(request: Request, block_length: int | None, step: int) -> tuple[int, int]:
    """Returns the number of steps of each block, and the index of `step` among them."""
    steps = request.steps * (block_length or request.gen_length) // request.gen_length
    return steps, step % steps


def block_of_step(request: Request, block_length: int | None, step: int) -> tuple[int, int]:
    """Returns the first position of the block that `step` works on, and the one behind it."""
    length = block_length or request.gen_length
    begin = step // (request.steps * length // request.gen_length) * length
    return begin, begin + length
