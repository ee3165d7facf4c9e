"""Timing: contenders alternate, medians and spread are kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .arrays import Array

# A pause before each contender, in which the threads of the one before, or of the check, stop spinning: OpenBLAS's
# take 105 ms on the machine of the results.
_PAUSE = 0.15


@dataclass(frozen=True)
class Contender:
    """Something to time: `run` computes, `array` makes an array of its result for the check."""

    name: str
    run: Callable[[], Any]
    array: Callable[[Any], Array] = lambda result: result


@dataclass(frozen=True)
class Timing:
    """Seconds of the runs of one contender, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def fields(self) -> dict[str, Any]:
        """What the JSON holds of it."""
        low, high = self.quartiles
        return {
            "median_s": self.median,
            "min_s": self.minimum,
            "q1_s": low,
            "q3_s": high,
            "spread": self.spread,
            "runs_s": list(self.seconds),
        }


def time_in_turns(contenders: Mapping[str, Callable[[], object]], repeat: int, min_seconds: float) -> dict[str, Timing]:
    """Runs A B C A B C ...: the machine's load meets all alike. Each is warmed up first, by two runs or more.

    Args:
        contenders: What runs, by name.
        repeat: Rounds.
        min_seconds: A sample repeats a shorter run until it lasts about this long, and counts the mean.
    """
    loops = {name: _calibrate(run, min_seconds) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, run in contenders.items():
            time.sleep(_PAUSE)
            for _ in range(loops[name] // 2):  # its threads wake up, on one core at first
                run()
            began = time.perf_counter()
            for _ in range(loops[name]):
                run()
            seconds[name].append((time.perf_counter() - began) / loops[name])
    return {name: Timing(tuple(runs)) for name, runs in seconds.items()}


def _calibrate(run: Callable[[], object], min_seconds: float) -> int:
    """Runs of one sample, by the fastest run for as long. The first, which may be cold, does not count."""
    time.sleep(_PAUSE)
    run()
    seconds: list[float] = []
    while not seconds or sum(seconds) < min_seconds:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return max(1, math.ceil(min_seconds / max(min(seconds), 1e-6)))


def median_ratio(a: Timing, b: Timing) -> float:
    """The median over the rounds of a's seconds over b's: load that lasts longer than a round cancels."""
    return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))
