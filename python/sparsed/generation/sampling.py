"""Samplers: which masked positions a denoising step fills, and with which tokens.

A sampler is a frozen set of options. It keeps no state: a step follows from its number, the row's masked positions and
the row's own random generator, so rows never influence each other. `generate` drives every family through the same two
calls, `candidates` (whose logits does this step need?) and `choose` (which of them are filled, with what?).

Equal confidences go to the lower position. A token may be the mask token itself, as in the published code: its position
then stays masked and remains a candidate (with `threshold`, where that would not end, the mask token is excluded).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import Checker
from ..kernels import ops

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# Values of one float64 temporary of sampling with noise, 128 MiB; more rows are sampled in parts.
_CHUNK_VALUES = 1 << 24
# Likeliest tokens among which top_p looks for its cut before it sorts the whole vocabulary.
_NUCLEUS_GUESS = 1024
_LEAST_TEMPERATURE = 1e-30  # below it logits / temperature leave float32


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


_NOTHING = Candidates(np.empty(0, np.int64), 0)


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
        """What the step fills, given the logits (n, V) of its candidates."""
        tokens, confidence = self.score(plan, logits, rng)
        index = np.sort(self.pick(confidence, candidates.count, rng))
        return Choice(index, tokens[index], confidence[index])


@dataclass(frozen=True)
class LLaDASampler(Sampler):
    """LLaDA's semi-autoregressive sampler.

    Attributes:
        block_length: Blocks of this many tokens are filled one after the other; None: the whole generation is one.
        temperature: Above 0, Gumbel noise (float64) enters the choice of tokens, not their confidence.
        cfg_scale: Above 0, classifier-free guidance: un + (cfg_scale + 1) * (cond - un), the prompt masked in `un`.
        remasking: "low_confidence" keeps the tokens of highest probability, "random" keeps random ones.
        threshold: Fill all positions of the block whose confidence reaches it, at least one a step. The confidences
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

    def check(self, plan: Plan) -> None:
        """Raises ValueError where blocks do not divide gen_length, or the number of blocks does not divide steps."""
        _check_blocks(plan, self.block_length, steps_too=self.threshold is None)

    def num_steps(self, plan: Plan) -> int | None:
        """`steps`, or None with a threshold."""
        return plan.steps if self.threshold is None else None

    def block(self, plan: Plan, step: int, masked: NDArray[np.bool_]) -> tuple[int, int]:
        """The current block: by the step, or with a threshold that of the first masked position."""
        if self.threshold is None:
            return _block_of_step(plan, self.block_length, step)
        length = self.block_length or plan.gen_length
        begin = int(np.argmax(masked)) // length * length
        return begin, begin + length

    def candidates(self, plan: Plan, step: int, masked: NDArray[np.bool_], rng: np.random.Generator) -> Candidates:
        """Masked positions up to the end of the current block; the block's tokens are spread evenly over its steps."""
        begin, end = self.block(plan, step, masked)
        count = 1
        if self.threshold is None:
            steps, i = _steps_of_block(plan, self.block_length, step)
            count = (end - begin) // steps + (i < (end - begin) % steps)
        positions = np.flatnonzero(masked[:end])
        return Candidates(positions, count) if count and len(positions) else _NOTHING

    def score(self, plan: Plan, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """The (noisy) arg-max and its softmax probability without noise, or a random confidence."""
        if self.threshold is not None:
            logits = logits.copy()
            logits[:, plan.mask_token_id] = np.finfo(np.float32).min
        if self.temperature == 0:
            tokens, confidence = ops.token_confidence(logits, "probability")
        else:
            tokens, confidence = _in_parts(lambda part: _gumbel_max(part, self.temperature, rng), logits)
        if self.remasking == "random":
            confidence = rng.random(len(tokens), dtype=np.float32)
        return tokens, confidence

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """The most confident ones: `count`, or with a threshold all that reach it."""
        if self.threshold is not None:
            count = max(count, int(np.count_nonzero(confidence >= np.float32(self.threshold))))
        return super().pick(confidence, count, rng)


@dataclass(frozen=True)
class DreamSampler(Sampler):
    """Dream's sampler: of n masked tokens, step i fills int(n * (1 - t[i+1] / t[i])), t = linspace(1, eps, steps + 1).

    Attributes:
        alg: The confidence: "entropy" (negative entropy), "maskgit_plus" (probability), "topk_margin" (difference of
            the two largest probabilities). "origin" fills each position with probability 1 - t[i+1] / t[i] instead.
        temperature: 0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature).
        top_p: Restricts tokens and softmax to the likeliest whose mass first exceeds it; None: no filter. Tokens as
            likely as the last one kept are kept too.
        top_k: Restricts tokens and softmax to the top_k likeliest; None: no filter. Ties as in top_p.
        alg_temp: Above 0, positions are drawn without replacement from softmax(confidence / alg_temp).
        eps: The last timestep.
        block_length: Blocks of this many tokens are filled one after the other, each by the rule above in its share of
            the steps; None: the whole generation is one.

    Raises:
        TypeError, ValueError: An option of another type or outside its range.

    Source: Dream-org generation_utils.py (there top_k is 50 by inheritance where nothing sets it); block_length:
        NVlabs/Fast-dLLM dream/model/generation_utils_block.py (which fills only the first token in a block's first
        step).
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
        check = Checker(type(self).__name__)
        check.choice("alg", self.alg, tuple(self._KINDS))
        check.number("temperature", self.temperature, low=0)
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"DreamSampler: temperature is {self.temperature}, expected 0 or at least {_LEAST_TEMPERATURE}"
            )
        check.number("top_p", self.top_p, low=0, high=1, optional=True)
        check.integer("top_k", self.top_k, low=1, optional=True)
        check.number("alg_temp", self.alg_temp, low=0)
        check.number("eps", self.eps, low=0, high=1)
        check.integer("block_length", self.block_length, low=1, optional=True)

    def check(self, plan: Plan) -> None:
        """Raises ValueError where blocks do not divide gen_length, or the number of blocks does not divide steps."""
        _check_blocks(plan, self.block_length, steps_too=True)

    def block(self, plan: Plan, step: int, masked: NDArray[np.bool_]) -> tuple[int, int]:
        """The current block."""
        return _block_of_step(plan, self.block_length, step)

    def candidates(self, plan: Plan, step: int, masked: NDArray[np.bool_], rng: np.random.Generator) -> Candidates:
        """All masked positions of the block, or for "origin" those drawn; its last step fills all that are left."""
        positions = np.flatnonzero(masked[: self.block(plan, step, masked)[1]])
        count = len(positions)
        steps, i = _steps_of_block(plan, self.block_length, step)
        if i < steps - 1:
            share = np.float32(1) - _timestep(i + 1, steps, self.eps) / _timestep(i, steps, self.eps)
            if self.alg == "origin":
                positions = positions[rng.random(count) < share]
                count = len(positions)
            else:
                count = int(np.float32(count) * share)
        return Candidates(positions, count) if count else _NOTHING

    def score(self, plan: Plan, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """A token under the filtered softmax, and the confidence that `alg` names."""
        if self.temperature > 0:
            logits = logits / np.float32(self.temperature)
        logits = _filtered(logits, self.top_k, self.top_p)
        kind = self._KINDS[self.alg]
        tokens, confidence = ops.token_confidence(logits, kind)
        if self.temperature > 0:
            tokens, probability = _in_parts(lambda part: _draw(part, rng), logits)
            confidence = probability if kind == "probability" else confidence
        return tokens, confidence

    def pick(self, confidence: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
        """The most confident ones, or with alg_temp a draw without replacement (by the Gumbel top-k trick)."""
        if self.alg_temp > 0 and self.alg != "origin":
            confidence = (confidence / self.alg_temp + rng.gumbel(size=len(confidence))).astype(np.float32)
        return super().pick(confidence, count, rng)


# The published sampler of each model family.
SAMPLERS: dict[str, type[LLaDASampler] | type[DreamSampler]] = {"llada": LLaDASampler, "dream": DreamSampler}


def _timestep(i: int, steps: int, eps: float) -> np.float32:
    """Element i of linspace(1, eps, steps + 1) in float32, from the nearer end as torch rounds it."""
    start, end = np.float32(1), np.float32(eps)
    width = (end - start) / np.float32(steps)
    if i < (steps + 1) // 2:
        return np.float32(start + width * np.float32(i))
    return np.float32(end - width * np.float32(steps - i))


def _check_blocks(plan: Plan, block_length: int | None, *, steps_too: bool) -> None:
    length = block_length or plan.gen_length
    if plan.gen_length % length:
        raise ValueError(f"generate: gen_length is {plan.gen_length}, expected a multiple of block_length {length}")
    num_blocks = plan.gen_length // length
    if steps_too and plan.steps % num_blocks:
        raise ValueError(
            f"generate: steps is {plan.steps}, expected a multiple of the {num_blocks} blocks "
            f"(gen_length {plan.gen_length} / block_length {length})"
        )


def _steps_of_block(plan: Plan, block_length: int | None, step: int) -> tuple[int, int]:
    """Steps of each block, and which one of them `step` is."""
    steps = plan.steps * (block_length or plan.gen_length) // plan.gen_length
    return steps, step % steps


def _block_of_step(plan: Plan, block_length: int | None, step: int) -> tuple[int, int]:
    """The first position of the block that `step` works on, and the one behind it."""
    length = block_length or plan.gen_length
    begin = step // (plan.steps * length // plan.gen_length) * length
    return begin, begin + length


def _in_parts(
    function: Callable[[FloatArray], tuple[IntArray, FloatArray]], logits: FloatArray
) -> tuple[IntArray, FloatArray]:
    """`function` over parts of the rows of logits (n, V), n > 0, so that its temporaries stay small."""
    rows = max(1, _CHUNK_VALUES // logits.shape[1])
    parts = [function(logits[start : start + rows]) for start in range(0, len(logits), rows)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _softmax(logits: FloatArray) -> FloatArray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _at(values: FloatArray, index: IntArray) -> FloatArray:
    """Takes one value per row of values (n, V)."""
    return np.take_along_axis(values, index[:, None], axis=1)[:, 0]


def _gumbel_max(logits: FloatArray, temperature: float, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """Takes the arg-max of exp(logits) / (-log u) ** temperature, in logarithms; probability without the noise."""
    tokens = np.argmax(logits + temperature * rng.gumbel(size=logits.shape), axis=1)
    return tokens, _at(_softmax(logits), tokens)


def _draw(logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """One token per row from softmax(logits), by inversion of its cumulative sum, and its probability."""
    probability = _softmax(logits)
    mass = np.cumsum(probability, axis=1, dtype=np.float64)
    target = np.minimum(rng.random(len(logits)) * mass[:, -1], np.nextafter(mass[:, -1], 0))
    tokens = np.argmax(mass > target[:, None], axis=1)
    return tokens, _at(probability, tokens)


def _filtered(logits: FloatArray, top_k: int | None, top_p: float | None) -> FloatArray:
    """Logits with the smallest float32 in place of the tokens that top_k or top_p drops."""
    cutoff = np.full((len(logits), 1), -np.inf, np.float32)
    if top_p is not None and top_p < 1:
        cutoff = _top_p_cutoff(logits, top_p)
    if top_k is not None and top_k < logits.shape[1]:
        kth = logits.shape[1] - top_k
        cutoff = np.maximum(cutoff, np.partition(logits, kth, axis=1)[:, kth : kth + 1])
    if not np.isfinite(cutoff).any():
        return logits
    return np.where(logits < cutoff, np.finfo(np.float32).min, logits)


def _top_p_cutoff(logits: FloatArray, top_p: float) -> FloatArray:
    """(n, 1): the logit of the token with which the mass of the likeliest tokens first exceeds top_p."""
    vocabulary = logits.shape[1]
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, keepdims=True)
    size = min(vocabulary, _NUCLEUS_GUESS)
    while True:
        likeliest = -np.sort(-np.partition(logits, vocabulary - size, axis=1)[:, vocabulary - size :], axis=1)
        exceeds = np.cumsum(np.exp(likeliest - peak) / total, axis=1) > top_p
        if size == vocabulary or exceeds[:, -1].all():
            break
        size = vocabulary
    last = np.where(exceeds[:, -1], np.argmax(exceeds, axis=1), size - 1)
    return np.take_along_axis(likeliest, last[:, None], axis=1)
