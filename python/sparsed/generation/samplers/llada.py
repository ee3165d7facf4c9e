"""LLaDA's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...checks import Checker, store_plain_numbers
from ...kernels import ops
from .base import NOTHING, Candidates, Request, Sampler, block_of_step, check_blocks, steps_of_block
from .logits import FloatArray, IntArray, checked, gumbel_max, in_parts


@dataclass(frozen=True)
class LLaDASampler(Sampler):
    """LLaDA's semi-autoregressive sampler.

    Attributes:
        block_length: Blocks of this many tokens are unmasked one after the other; None: the whole generation is one.
        temperature: Above 0, Gumbel noise (float64) enters the choice of tokens, not their confidence.
        cfg_scale: Above 0, classifier-free guidance: un + (cfg_scale + 1) * (cond - un), the prompt masked in `un`.
        remasking: "low_confidence" keeps the tokens of highest probability, "random" keeps random ones.
        threshold: Unmask all positions of the block whose confidence reaches it, at least one a step. The confidences
            then decide how many steps there are (at most gen_length); `steps` is not used.

    Raises:
        TypeError, ValueError: An option of another type or outside its range.

    Source: ML-GSAI/LLaDA generate.py; threshold: NVlabs/Fast-dLLM llada/generate.py.
    """

    block_length: int | None = None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    threshold: float | None = None

    def __post_init__(self) -> None:
        check = Checker(type(self).__name__)
        check.integer("block_length", self.block_length, low=1, optional=True)
        check.number("temperature", self.temperature, low=0)
        check.number("cfg_scale", self.cfg_scale, low=0)
        check.choice("remasking", self.remasking, ("low_confidence", "random"))
        check.number("threshold", self.threshold, low=0, high=1, optional=True)
        store_plain_numbers(self)

    def check(self, request: Request) -> None:
        check_blocks(request, self.block_length, steps_too=self.threshold is None)

    def num_steps(self, request: Request) -> int | None:
        return request.steps if self.threshold is None else None

    def block(self, request: Request, step: int, masked: NDArray[np.bool_]) -> tuple[int, int]:
        """Returns the block of the step or, with a threshold, that of the first masked position."""
        if self.threshold is None:
            return block_of_step(request, self.block_length, step)
        length = self.block_length or request.gen_length
        begin = int(np.argmax(masked)) // length * length
        return begin, begin + length

    def candidates(
        self, request: Request, step: int, masked: NDArray[np.bool_], rng: np.random.Generator
    ) -> Candidates:
        """Returns the masked positions up to the end of the block; its tokens are spread evenly over its steps."""
        begin, end = self.block(request, step, masked)
        count = 1
        if self.threshold is None:
            steps, i = steps_of_block(request, self.block_length, step)
            count = (end - begin) // steps + (i < (end - begin) % steps)
        positions = np.flatnonzero(masked[:end])
        return Candidates(positions, count) if count and len(positions) else NOTHING

    def score(self, request: Request, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Returns the (noisy) arg-max and its softmax probability without noise, or a random confidence."""
        if self.threshold is not None:
            logits = logits.copy()
            logits[:, request.mask_token_id] = -np.inf
            logits = checked(logits)
        if self.temperature == 0:
            tokens, confidence = ops.token_confidence(logits, "probability")
        else:
            tokens, confidence = in_parts(lambda part: gumbel_max(part, float(self.temperature), rng), logits)
        if self.remasking == "random":
            confidence = rng.random(len(tokens), dtype=np.float32)
        return tokens, confidence

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """Returns the `count` most confident ones, or with a threshold all that reach it."""
        if self.threshold is not None:
            count = max(count, int(np.count_nonzero(confidence >= np.float32(self.threshold))))
        return super().pick(confidence, count, rng)
