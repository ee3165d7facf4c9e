"""RULER's scores, and confidence intervals of accuracies, of paired differences and of means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...checks import Checker
from .tasks import kind_of

_DRAWS = 2000
_Z = NormalDist().inv_cdf(0.975)
_CONTROL = re.compile(r"[\x00-\x1f]")


def score(task: str, prediction: str, outputs: Iterable[str]) -> float:
    """Returns the share of the references that the prediction contains in any case; for "qa" 1 if it contains one.

    Control characters, such as tabs, count as line feeds.

    Args:
        task: Its kind decides the rule: names that begin with qa, in any case, have a rule of their own.
        prediction: The answer; a blank one scores 0.
        outputs: The references, at least one, none of them blank.

    Raises:
        TypeError: `outputs` is a single text, or something is not a text.
        ValueError: `outputs` is empty or holds a blank text, which every answer would contain.

    Source: NVIDIA/RULER scripts/eval/evaluate.py and scripts/eval/synthetic/constants.py.
    """
    check = Checker("score")
    check.text("task", task)
    check.text("prediction", prediction)
    references = check.texts("outputs", outputs)
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    found = [_CONTROL.sub("\n", reference).lower() in text for reference in references]
    return float(any(found)) if kind_of(task) == "qa" else sum(found) / len(found)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Returns the interval in other units, for instance in points (factor 100)."""
        return Interval(factor * self.mean, factor * self.low, factor * self.high)

    def bounds(self, digits: int, sign: str = "", space: str = "") -> str:
        """Returns both ends as text; sign "+" shows the sign of positive numbers."""
        low, high = (round(end, digits) + 0.0 for end in (self.low, self.high))  # + 0.0 turns -0.0 into 0.0
        return f"{low:{sign}.{digits}f}{space}...{space}{high:{sign}.{digits}f}"


def accuracy(scores: ArrayLike) -> Interval:
    """Returns the mean of scores (n,), each 0 ... 1, and its Wilson score interval, which is never of width zero.

    The interval is that of n yes-or-no answers with this mean. A score between 0 and 1 varies less than a yes-or-no
    answer of the same mean, so that the interval is at most too wide for it.

    Raises:
        TypeError: The scores are not numbers.
        ValueError: There is no score, or one is outside 0 ... 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927); A.
    Agresti and B. A. Coull, "Approximate is better than 'exact' for interval estimation of binomial proportions", The
    American Statistician 52 (1998).
    """
    values = _numbers("accuracy", "scores", scores, low=0, high=1)
    n, mean = len(values), float(values.mean())
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    # Rounding must not exclude a mean of 0 or 1.
    return Interval(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def paired_difference(differences: ArrayLike) -> Interval:
    """Returns the mean of paired differences (n,), each -1 ... 1, and an interval that is never of width zero.

    For yes-or-no answers to the same questions this is the adjusted Wald interval of Bonett and Price: it takes two
    more pairs into account, one that differs by +1 and one that differs by -1. The same rule serves for scores between
    0 and 1.

    Raises:
        TypeError: The differences are not numbers.
        ValueError: There is no difference, or one is outside -1 ... 1.

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", Journal of Educational and Behavioral Statistics 37 (2012); recommended by M. W. Fagerland,
    S. Lydersen and P. Laake, Statistics in Medicine 33 (2014).
    """
    values = _numbers("paired_difference", "differences", differences, low=-1, high=1)
    mean, adjusted = float(values.mean()), np.append(values, (1.0, -1.0))
    half = _Z * float(adjusted.std()) / math.sqrt(len(adjusted))
    centre = float(adjusted.mean())
    return Interval(mean, max(-1.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def bootstrap(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Returns the mean of values (n,) and its percentile bootstrap interval: samples are drawn with replacement.

    For a paired difference, give the differences per sample. For scores of 0 ... 1 use `accuracy` and
    `paired_difference`: where all scores are equal, the bootstrap has no width.

    Raises:
        TypeError: The values are not numbers.
        ValueError: There is no value, or one is not finite.
    """
    scores = _numbers("bootstrap", "values", values)
    rng = np.random.default_rng(seed)
    means = np.array([scores[rng.integers(0, scores.size, scores.size)].mean() for _ in range(_DRAWS)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(scores.mean()), float(low), float(high))


def _numbers(
    owner: str, name: str, values: ArrayLike, low: float = -math.inf, high: float = math.inf
) -> NDArray[np.float64]:
    """Finite numbers (n,) from `low` to `high`."""
    array = np.asarray(values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{owner}: {name} has shape {list(array.shape)}, expected at least one")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{owner}: {name} has dtype {array.dtype}, expected numbers")
    numbers = array.astype(np.float64)
    outside = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= low) & (numbers <= high)))
    if outside.size:
        expected = "a finite number" if math.isinf(low) else f"{low} ... {high}"
        raise ValueError(f"{owner}: {name}[{outside[0]}] is {numbers[outside[0]]}, expected {expected}")
    return numbers
