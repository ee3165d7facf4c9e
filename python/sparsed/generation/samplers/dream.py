"""Dream's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ...checks import Checker, store_plain_numbers
from ...kernels import ops
from .base import Request, steps_of_block
from .logits import HOTTEST, FloatArray, IntArray, draw, filtered, in_parts, tempered
from .parallel import ParallelSampler


@dataclass(frozen=True)
class DreamSampler(ParallelSampler):
    """Dream's sampler. The options of `ParallelSampler` are its options too.

    Of n masked tokens, step i unmasks int(n * (1 - t[i+1] / t[i])), t = linspace(1, eps, steps + 1).

    Attributes:
        alg: The confidence: "entropy" (negative entropy), "maskgit_plus" (probability), "topk_margin" (difference of
            the two largest probabilities). "origin" unmasks each position with probability 1 - t[i+1] / t[i] instead.
            A threshold, factor or entropy_bound says itself what it compares: the probability of the token that was
            taken, or the entropy. `alg` then stays "entropy" or names the same.
        temperature: 0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature).
        top_p: Restricts tokens and softmax to the likeliest whose mass first exceeds it; None: no filter. Tokens as
            likely as the last one kept are kept too.
        top_k: Restricts tokens and softmax to the top_k likeliest; None: no filter. Ties as in top_p.
        alg_temp: Above 0, positions are drawn without replacement from softmax(confidence / alg_temp).
        eps: The last timestep.
        block_length: Blocks of this many tokens are unmasked one after the other, each by the rule above in its share
            of the steps; None: the whole generation is one.

    Raises:
        TypeError, ValueError: An option of another type or outside its range; options that exclude each other.

    Source: Dream-org generation_utils.py (there top_k is 50 by inheritance where nothing sets it); block_length,
        threshold: NVlabs/Fast-dLLM dream/model/generation_utils_block.py (which unmasks only the first token in a
        block's first step). Probabilities and entropies are those after temperature, top_p and top_k, as there.
    """

    alg: Literal["entropy", "maskgit_plus", "topk_margin", "origin"] = "entropy"
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    alg_temp: float = 0.0
    eps: float = 1e-3
    block_length: int | None = None

    _KINDS: ClassVar[dict[str, ops.ConfidenceKind]] = {
        "entropy": "entropy",
        "maskgit_plus": "probability",
        "topk_margin": "margin",
        "origin": "probability",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check = Checker(type(self).__name__)
        check.choice("alg", self.alg, tuple(self._KINDS))
        check.number("temperature", self.temperature, low=0)
        check.number("top_p", self.top_p, low=0, high=1, optional=True)
        check.integer("top_k", self.top_k, low=1, optional=True)
        check.number("alg_temp", self.alg_temp, low=0)
        check.number("eps", self.eps, low=0, high=1)
        if self.alg not in ("entropy", *(("maskgit_plus",) if self.entropy_bound is None else ())):
            self.refuse_with_rule("alg", "the rule says itself what it compares: leave alg out")
        if self.alg_temp > 0:
            self.refuse_with_rule("alg_temp", "the rule draws no positions")
        store_plain_numbers(self)

    def scheduled(
        self, request: Request, step: int, positions: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, int]:
        """Returns all positions, or for "origin" drawn ones; the last step unmasks the rest."""
        count = len(positions)
        steps, i = steps_of_block(request, self.block_length, step)
        if i < steps - 1:
            share = np.float32(1) - _timestep(i + 1, steps, self.eps) / _timestep(i, steps, self.eps)
            if self.alg == "origin":
                positions = positions[rng.random(count) < share]
                count = len(positions)
            else:
                count = int(np.float32(count) * share)
        return positions, count

    def score(self, request: Request, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Returns a token under the filtered softmax, and the confidence that `alg` or the rule names."""
        if self.temperature > 0:
            logits = tempered(logits, float(self.temperature))
        logits = filtered(logits, self.top_k, self.top_p)
        kind = "probability" if self.rule in ("threshold", "factor") else self._KINDS[self.alg]
        tokens, confidence = ops.token_confidence(logits, kind)
        if self.temperature > 0:
            tokens, probability = in_parts(lambda part: draw(part, rng), logits)
            confidence = probability if kind == "probability" else confidence
        return tokens, confidence

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """Returns the most confident ones, or with alg_temp a draw without replacement (by the Gumbel top-k trick)."""
        if self.alg_temp == 0 or self.alg == "origin":
            return super().pick(confidence, count, rng)
        # confidence / alg_temp + noise, times alg_temp, which no small alg_temp overflows. Where the noise is too small
        # to change a sum, equal confidences are still drawn by it.
        noise = rng.gumbel(size=len(confidence))
        noisy = confidence.astype(np.float64) + min(float(self.alg_temp), HOTTEST) * noise
        return np.lexsort((-noise, -noisy))[:count]


def _timestep(i: int, steps: int, eps: float) -> np.float32:
    """Element i of linspace(1, eps, steps + 1) in float32, from the nearer end as torch rounds it."""
    start, end = np.float32(1), np.float32(eps)
    width = (end - start) / np.float32(steps)
    if i < (steps + 1) // 2:
        return np.float32(start + width * np.float32(i))
    return np.float32(end - width * np.float32(steps - i))
