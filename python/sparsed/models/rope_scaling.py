"""RoPE, and the rules that slow its rotation down, so that a model reads sequences longer than it was trained on.

D rotary dimensions, b base, T trained length, T' target length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class RopeScaling(Protocol):
    """A rule that changes the angles of RoPE."""

    @property
    def attention_factor(self) -> float:
        """The factor of cosines and sines."""

    def frequencies(self, theta: float, dim: int) -> FloatArray:
        """Returns the angle per position of each pair of features, (D / 2,), for the base `theta`."""


@dataclass(frozen=True)
class Rope:
    """How queries and keys are rotated.

    Attributes:
        theta: The base b, before any scaling.
        dim: D, the number of features of each head that are rotated, from the first one on; even. The pairs are
            (j, j + D / 2).
        scaling: The rule that scales the angles. None leaves them as they are.
    """

    theta: float
    dim: int
    scaling: RopeScaling | None = None

    @property
    def attention_factor(self) -> float:
        """The factor of cosines and sines."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor

    def frequencies(self) -> FloatArray:
        """Returns the angle by which each pair of features turns per position, (D / 2,)."""
        if self.scaling is None:
            return plain_frequencies(self.theta, self.dim)
        return self.scaling.frequencies(self.theta, self.dim)


def plain_frequencies(theta: float, dim: int) -> FloatArray:
    """Returns b^(-2j / D) for each pair j, (D / 2,)."""
    return np.asarray(np.float32(1) / _wavelengths(theta, dim))


def _wavelengths(theta: float, dim: int) -> FloatArray:
    # This rounds to float32 where the published code does: from about position 1000 on, the logits show a difference.
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (theta ** exponents.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class LinearScaling:
    """Divides all angles by `factor`. Source: `_compute_linear_scaling_rope_parameters` of transformers 5.24."""

    factor: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, dim: int) -> FloatArray:
        """Returns the scaled angles, (D / 2,)."""
        return plain_frequencies(theta, dim) / np.float32(self.factor)


@dataclass(frozen=True)
class BaseScaling:
    """Multiplies the base by `factor`, which slows the pairs that turn slowly most ("NTK-aware").

    Source: LongLLaDA (arXiv 2506.14429) and its llada_wrapper.py, where LLaDA has the factors 4, 14 and 31 for 8k, 16k
        and 24k tokens and Dream has 5.
    """

    factor: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, dim: int) -> FloatArray:
        """Returns the angles of the larger base, (D / 2,)."""
        return plain_frequencies(theta * self.factor, dim)


def base_factor(theta: float, dim: int, trained: float, target: float) -> float:
    """Returns the factor of the base with which a model trained on T tokens reads T'.

    The pairs up to the critical dimension d = 2 ceil(D / 2 log_b(T / 2 pi)) have made a whole turn in training. The
    larger base (T' / 2 pi)^(D / d) lets the last of them make one in T' tokens. A factor is at least 1.

    Source: LongLLaDA, arXiv 2506.14429, section 4. UltraLLaDA (arXiv 2510.10481) has the same rule with 2 T and 2 T',
        because a token sees others on both sides.
    """
    longer_base = _power(target / (2 * math.pi), dim / _critical_dim(theta, dim, trained))
    return max(1.0, longer_base / theta)


def base_length(theta: float, dim: int, trained: float, factor: float) -> float:
    """Returns the length T' for which `base_factor` returns `factor`; it is at least T."""
    turns = _power(theta * factor, _critical_dim(theta, dim, trained) / dim)
    return max(trained, 2 * math.pi * turns)


def _power(base: float, exponent: float) -> float:
    """Returns base^exponent, infinity where it overflows."""
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _critical_dim(theta: float, dim: int, trained: float) -> int:
    return 2 * math.ceil(dim / 2 * math.log(trained / (2 * math.pi), theta))


@dataclass(frozen=True)
class YarnScaling:
    """Divides the angles of slow pairs by `factor`, keeps those of fast pairs, and blends in between.

    Source: arXiv 2309.00071; `_compute_yarn_parameters` of transformers 5.24.
    """

    factor: float
    trained: float
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def frequencies(self, theta: float, dim: int) -> FloatArray:
        """Returns the scaled angles, (D / 2,)."""
        low, high = (self._pair_of(turns, theta, dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
        wavelengths = _wavelengths(theta, dim)
        slow = np.float32(1) / (np.float32(self.factor) * wavelengths)
        fast = np.float32(1) / wavelengths
        kept = np.float32(1) - ramp
        return np.asarray(slow * (np.float32(1) - kept) + fast * kept, np.float32)

    def _pair_of(self, turns: float, theta: float, dim: int) -> float:
        """Returns which pair makes this number of turns within the trained length."""
        return dim * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(theta))


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Returns the factor of cosines and sines that YaRN's authors suggest. Source: as `YarnScaling`."""

    def of(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)


@dataclass(frozen=True)
class Llama3Scaling:
    """Divides the angles of pairs with long waves by `factor`, keeps those of short waves, and blends in between.

    Source: `_compute_llama3_parameters` of transformers 5.24.
    """

    factor: float
    trained: float
    low_freq_factor: float
    high_freq_factor: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, dim: int) -> FloatArray:
        """Returns the scaled angles, (D / 2,)."""
        plain = plain_frequencies(theta, dim)
        waves = np.float32(2 * math.pi) / plain
        low, high, factor = (np.float32(value) for value in (self.low_freq_factor, self.high_freq_factor, self.factor))
        is_long, is_short = waves > self.trained / self.low_freq_factor, waves < self.trained / self.high_freq_factor
        smooth = (np.float32(self.trained) / waves - low) / (high - low)
        blended = (np.float32(1) - smooth) * plain / factor + smooth * plain
        return np.where(is_long, plain / factor, np.where(is_short, plain, blended)).astype(np.float32)
