"""RULER's scores, and how sure they are: bootstrap intervals, paired differences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .tasks import kind_of

_DRAWS = 2000
_CONTROL = re.compile(r"[\x00-\x1f]")


def score(task: str, prediction: str, outputs: Sequence[str]) -> float:
    """The share of the references that the prediction contains, whatever their case; for "qa" 1 if it contains any.

    Source: NVIDIA/RULER scripts/eval/evaluate.py and scripts/eval/synthetic/constants.py.
    """
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    found = [reference.lower() in text for reference in outputs]
    return float(any(found)) if kind_of(task) == "qa" else sum(found) / len(found)


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval of 95 %."""

    mean: float
    low: float
    high: float


def bootstrap(values: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean of values (n,) and the percentile bootstrap interval of it: samples are drawn with replacement.

    For a paired difference, give the differences per sample.

    Raises:
        ValueError: There is no value.
    """
    scores: NDArray[np.float64] = np.asarray(values, np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"bootstrap: values has shape {list(scores.shape)}, expected at least one")
    rng = np.random.default_rng(seed)
    means = np.array([scores[rng.integers(0, scores.size, scores.size)].mean() for _ in range(_DRAWS)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(scores.mean()), float(low), float(high))
