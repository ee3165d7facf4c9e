"""`sparsed bench shared-cores` times a model step with and without a second process that does the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from .cases import SHARED_CORES_LENGTHS, SHARED_CORES_QUICK_LENGTHS
from .harness import Timing
from .machine import start_module
from .options import Options
from .report import TIME_COLUMNS, Column, Report, Row, milliseconds, percent, progress, ratio

COLUMNS: tuple[Column, ...] = (
    ("library", "library", str),
    ("first", "loaded first", str),
    ("processes", "processes", str),
    *TIME_COLUMNS,
    ("cpu_s", "CPU ms", milliseconds),
    ("over_alone", "over one process", ratio),
    ("over_baseline", "over baseline", percent),
)
NOTE = (
    "The steps are dense steps of the demo model. If two processes run at once, the row shows the slower one. CPU ms "
    "is the processor time of a step. over baseline: how much longer a step takes than with the module of --baseline."
)
_SECONDS, _QUICK_SECONDS = 3.0, 0.2


def run(options: Options, report: Report) -> None:
    """Measures each length with and without torch loaded first, with libraries and numbers of processes in turns."""
    libraries = {"baseline": options.baseline, "this": None} if options.baseline else {"this": None}
    seconds = _QUICK_SECONDS if options.quick else _SECONDS
    for length in options.lengths or (SHARED_CORES_QUICK_LENGTHS if options.quick else SHARED_CORES_LENGTHS):
        for dtype in options.dtypes or ("float32",):
            cases = [(name, first, n) for first in _loaded_first(report) for n in (1, 2) for name in libraries]
            steps: dict[tuple[str, str, int], list[list[Row]]] = {case: [] for case in cases}
            for number in range(options.repeat):
                for name, first, processes in cases:
                    progress(f"{length} tokens, {name}, {processes} at once, round {number + 1} of {options.repeat}")
                    given = {
                        "length": length,
                        "dtype": dtype,
                        "torch": first == "torch",
                        "module": None if libraries[name] is None else str(libraries[name]),
                        "seconds": seconds,
                    }
                    steps[name, first, processes].append(run_at_once(given, processes))
            progress("")
            rows = [
                {"length": length, "dtype": dtype, "library": name, "first": first, "processes": n} | _figures(rounds)
                for (name, first, n), rounds in steps.items()
            ]
            for row in rows:
                row["over_alone"] = _over(row, rows, processes=1)
                row["over_baseline"] = _over(row, rows, library="baseline")
            report.section(f"{length} tokens, {dtype}", COLUMNS, rows)
    report.note(NOTE)


def run_at_once(given: dict[str, Any], processes: int) -> list[Row]:
    """Runs processes that begin together, and returns the step times of each.

    Args:
        given: The arguments of `shared_cores_worker`.
        processes: The number of processes.

    Raises:
        RuntimeError: One of the processes failed.
    """
    workers = [start_module("shared_cores_worker", [json.dumps(given)]) for _ in range(processes)]
    try:
        for worker in workers:
            if worker.stdout is None or worker.stdout.readline() != "ready\n":
                raise RuntimeError("bench: shared_cores_worker failed")
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.write("go\n")
                worker.stdin.flush()
        printed = [worker.communicate()[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return [json.loads(text) for text in printed]


def _figures(rounds: Sequence[Sequence[Row]]) -> Row:
    """Returns the figures of the slower process of each round."""
    slower = [max(processes, key=lambda process: median(process["steps_s"])) for processes in rounds]
    timing = Timing(tuple(median(process["steps_s"]) for process in slower))
    return {**timing.fields(), "cpu_s": fmean(process["cpu_s"] for process in slower)}


def _over(row: Row, rows: Sequence[Row], **other: Any) -> float | None:
    """Compares the time of `row` with that of the row that differs from it only in `other`, if there is one."""
    wanted = {key: row[key] for key in ("library", "first", "processes")} | other
    for found in rows:
        if found is not row and all(found[key] == value for key, value in wanted.items()):
            change = row["median_s"] / found["median_s"]
            return float(change if "processes" in other else change - 1)
    return None


def _loaded_first(report: Report) -> tuple[str, ...]:
    """Returns the libraries that are loaded first: none, and torch with its OpenMP if it is installed."""
    if "torch" in report.machine["versions"]:
        return "-", "torch"
    report.skip("torch", "not installed")
    return ("-",)
