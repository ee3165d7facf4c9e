"""Times contenders in turns, and keeps medians and spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import Array

# A pause before each contender, in which the threads of the previous one or of the check stop spinning. OpenBLAS's
# threads spin for 105 ms on the machine of the results.
PAUSE = 0.15


@dataclass(frozen=True)
class Contender:
    """Something to time. `run` computes, and `array` converts its result to an array for the check."""

    name: str
    run: Callable[[], Any]
    array: Callable[[Any], Array] = lambda result: result


@dataclass(frozen=True)
class Timing:
    """The seconds of one contender's runs, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """The distance of the quartiles divided by the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def fields(self) -> dict[str, Any]:
        """Returns the fields for the JSON file."""
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
    """Times contenders in turns, A B C A B C ..., so that other load on the machine affects all alike.

    Each contender is warmed up first by two or more runs.

    Args:
        contenders: The functions to time, by name.
        repeat: The number of rounds.
        min_seconds: Runs that are shorter are repeated until a sample lasts about this long; the sample is their mean.
    """
    loops = {name: _calibrate(run, min_seconds) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, run in contenders.items():
            time.sleep(PAUSE)
            for _ in range(loops[name] // 2):  # the threads wake up, and may all start on one core
                run()
            began = time.perf_counter()
            for _ in range(loops[name]):
                run()
            seconds[name].append((time.perf_counter() - began) / loops[name])
    return {name: Timing(tuple(runs)) for name, runs in seconds.items()}


def time_long_runs(contenders: Sequence[Callable[[], object]], repeat: int) -> list[Timing]:
    """Times contenders that take seconds, in turns. A first round warms them up and does not count.

    Args:
        contenders: The functions to time.
        repeat: The number of rounds.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(repeat + 1):
        for run, runs in zip(contenders, seconds, strict=True):
            time.sleep(PAUSE)
            began = time.perf_counter()
            run()
            runs.append(time.perf_counter() - began)
    return [Timing(tuple(runs[1:])) for runs in seconds]


def _calibrate(run: Callable[[], object], min_seconds: float) -> int:
    """Returns the number of runs in a sample, from the fastest of some runs. The first, cold one does not count."""
    time.sleep(PAUSE)
    run()
    seconds: list[float] = []
    while not seconds or sum(seconds) < min_seconds:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return max(1, math.ceil(min_seconds / max(min(seconds), 1e-6)))


def median_ratio(a: Timing, b: Timing) -> float:
    """Returns the median of the ratios a / b of each round, in which load that lasts longer than a round cancels."""
    return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))
