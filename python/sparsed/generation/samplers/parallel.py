"""Rules that unmask as many tokens in a step as the model is sure of, so that a generation needs fewer steps.

All families have them as the same options.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import Checker
from .base import NOTHING, Candidates, Choice, Request, Sampler, block_of_step, check_blocks
from .logits import FloatArray, IntArray, checked, mean_gap, without

# Prophet's gaps in the first, the second and the last third of the generation, and where the thirds end.
PROPHET_GAPS = (7.5, 5.0, 2.5)
_EARLY_END, _MIDDLE_END = 0.33, 0.67


def reach_threshold(confidence: FloatArray, threshold: float) -> NDArray[np.bool_]:
    """Returns which of the probabilities (n,), descending, reach the threshold.

    Source: NVlabs/Fast-dLLM, llada/generate.py, get_transfer_index; dream/model/generation_utils_block.py,
        alg "confidence_threshold".
    """
    return np.asarray(confidence >= np.float32(threshold))


def reach_factor(confidence: FloatArray, factor: float) -> NDArray[np.bool_]:
    """Returns which of the probabilities c (n,), descending, have (i + 1) * (1 - c[i]) <= factor, i from 1.

    Source: arXiv 2505.22618; NVlabs/Fast-dLLM, llada/generate.py, get_transfer_index_dynamic. That code also takes the
        last candidate if no other one misses its bound; the paper's rule does not.
    """
    number = np.arange(1, len(confidence) + 1)
    return np.asarray(confidence >= 1 - factor / (number + 1))


def stay_in_entropy_bound(confidence: FloatArray, bound: float) -> NDArray[np.bool_]:
    """Returns which of the entropies -confidence (n,), ascending, have at most `bound` before them in sum.

    The sum of the entropies less the largest one bounds how much the tokens that are unmasked together tell about each
    other.

    Source: EB-Sampler, arXiv 2505.24857; transformers, generation_diffusion_gemma.py, EntropyBoundSampler.
    """
    entropy = np.maximum(-confidence.astype(np.float64), 0)  # Dream's 1e-10 makes that of a certain token negative
    return np.asarray(np.concatenate([[0.0], np.cumsum(entropy[:-1])]) <= bound)


_RULES: dict[str, Callable[[FloatArray, float], NDArray[np.bool_]]] = {
    "threshold": reach_threshold,
    "factor": reach_factor,
    "entropy_bound": stay_in_entropy_bound,
}


@dataclass(frozen=True)
class ParallelSampler(Sampler, abc.ABC):
    """The options that all samplers have to unmask more tokens in a step.

    With `threshold`, `factor` or `entropy_bound` (at most one of them) the model decides how many steps there are, at
    most gen_length; `steps` is not used, and the last block may be shorter than the others. A step unmasks at least one
    token of the first block that has a masked one. With any of the four options the mask token is never chosen.

    Attributes:
        threshold: Unmask the tokens whose probability is at least this.
        factor: Unmask the n most probable tokens for the largest n with (n + 1) * (1 - c) <= factor, c the probability
            of the n-th one.
        entropy_bound: Unmask the tokens with the least entropy (of the probabilities of a position, in nats) as long as
            the sum of the entropies less the largest one is at most this.
        early_commit: Unmask all tokens of the generation as soon as the gap between the two largest logits, before
            any temperature, is large enough in the mean over all masked positions. True: at least 7.5 in the first
            third of the generation, 5 in the second and 2.5 in the last one; or three other gaps. The progress after
            step i (from 0) is (i + 1) / steps; where the model decides how many steps there are, it is the share of
            tokens that are unmasked before the step, and one more. Each step then needs the logits of all masked
            positions, which DualCache computes in addition to the block. Steps after the commit do not call the model.

    Raises:
        TypeError, ValueError: An option of another type or outside its range; several of the first three options.

    Source: threshold, factor: NVlabs/Fast-dLLM, arXiv 2505.22618. entropy_bound: EB-Sampler, arXiv 2505.24857, as in
        transformers' EntropyBoundSampler for DiffusionGemma (entropy_exit of diffuse-cpp is another rule: it compares
        the entropy of each token with a bound). early_commit: Prophet, arXiv 2508.19982, pixeli99/Prophet
        generate_earlyexit.py, where the mean runs over five positions of the answer that the caller names.
    """

    threshold: float | None = field(default=None, kw_only=True)
    factor: float | None = field(default=None, kw_only=True)
    entropy_bound: float | None = field(default=None, kw_only=True)
    early_commit: bool | tuple[float, float, float] = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check = Checker(owner)
        check.integer("block_length", self.block_length, low=1, optional=True)
        check.number("threshold", self.threshold, low=0, high=1, optional=True)
        check.number("factor", self.factor, low=0, optional=True)
        check.number("entropy_bound", self.entropy_bound, low=0, optional=True)
        object.__setattr__(self, "early_commit", _checked_gaps(check, self.early_commit))
        given = [name for name in _RULES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{owner}: {' and '.join(given)} are given, expected at most one of them (each says by itself which "
                "tokens a step unmasks)"
            )

    @property
    def rule(self) -> str | None:
        """The option that decides how many tokens a step unmasks; None: the number of steps does."""
        return next((name for name in _RULES if getattr(self, name) is not None), None)

    def refuse_with_rule(self, name: str, why: str) -> None:
        """Raises ValueError if there is a rule, because option `name` has a value that it cannot work with."""
        if self.rule is not None:
            raise ValueError(
                f"{type(self).__name__}: {name} is {getattr(self, name)!r} and {self.rule} is "
                f"{getattr(self, self.rule)}, expected only one of them ({why})"
            )

    def check(self, request: Request) -> None:
        if self.rule is None:
            check_blocks(request, self.block_length)

    def num_steps(self, request: Request) -> int | None:
        return request.steps if self.rule is None else None

    def block(self, request: Request, step: int, masked: NDArray[np.bool_]) -> tuple[int, int]:
        """Returns the block of the step or, if the model decides on the steps, that of the first masked position."""
        if self.rule is None:
            return block_of_step(request, self.block_length, step)
        length = self.block_length or request.gen_length
        begin = int(np.argmax(masked)) // length * length
        return begin, min(begin + length, request.gen_length)

    @abc.abstractmethod
    def scheduled(
        self, request: Request, step: int, positions: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, int]:
        """Returns which of the positions a step may unmask if their number is fixed, and how many it unmasks.

        positions: (n,) ascending, the masked ones up to the end of the block.
        """

    def candidates(
        self, request: Request, step: int, masked: NDArray[np.bool_], rng: np.random.Generator
    ) -> Candidates:
        """Returns the masked positions up to the end of the block and, with early_commit, those behind it."""
        positions, count = np.flatnonzero(masked[: self.block(request, step, masked)[1]]), 1
        if self.rule is None:
            positions, count = self.scheduled(request, step, positions, rng)
        if not count or not len(positions):
            return NOTHING
        if not self.early_commit:
            return Candidates(positions, count)
        everything = np.flatnonzero(masked)
        done = step if self.rule is None else request.gen_length - len(everything)
        progress = (done + 1) / (request.steps if self.rule is None else request.gen_length)
        return Candidates(everything, count, np.searchsorted(everything, positions), self._gap(progress))

    def _gap(self, progress: float) -> float:
        gaps = PROPHET_GAPS if isinstance(self.early_commit, bool) else self.early_commit
        return gaps[0 if progress < _EARLY_END else 1 if progress < _MIDDLE_END else 2]

    def impossible(self, request: Request) -> tuple[int, ...]:
        """Returns the tokens that are never chosen."""
        return () if self.rule is None and not self.early_commit else (request.mask_token_id,)

    def choose(self, request: Request, candidates: Candidates, logits: FloatArray, rng: np.random.Generator) -> Choice:
        """Returns what the step unmasks: all candidates if their mean gap is large enough, else what the rule says."""
        logits = checked(without(logits, self.impossible(request)))
        everything = np.arange(len(logits))
        if candidates.commit_gap is not None and mean_gap(logits) >= candidates.commit_gap:
            return Choice(everything, *self.score(request, logits, rng))
        among = everything if candidates.among is None else candidates.among
        if len(among) < len(logits):
            logits = logits[among]
        tokens, confidence = self.score(request, logits, rng)
        index = np.sort(self.pick(confidence, candidates.count, rng))
        return Choice(among[index], tokens[index], confidence[index])

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """Returns the `count` most confident ones, or as many as the rule says, at least one."""
        order = super().pick(confidence, len(confidence), rng)
        if self.rule is not None:
            fits = _RULES[self.rule](confidence[order], getattr(self, self.rule))
            count = max(1, int(np.argmin(np.append(fits, False))))
        return order[:count]


def _checked_gaps(check: Checker, gaps: Any) -> bool | tuple[float, ...]:
    if isinstance(gaps, bool):
        return gaps
    if not isinstance(gaps, (tuple, list)):
        raise TypeError(f"{check.owner}: early_commit is {gaps!r}, expected True, False or three gaps")
    if len(gaps) != 3:
        raise ValueError(f"{check.owner}: early_commit has {len(gaps)} gaps, expected three (early, middle, late)")
    for i, gap in enumerate(gaps):
        check.number(f"early_commit[{i}]", gap, low=0)
    return tuple(map(float, gaps))
