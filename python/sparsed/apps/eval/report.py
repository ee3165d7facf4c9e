"""The report of an evaluation: tables as text, JSON and Markdown, and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...tables import format_table, markdown_table
from .earlier import keep_earlier
from .runner import Record
from .scoring import Interval, accuracy, paired_difference

_DPI = 150


@dataclass(frozen=True)
class Row:
    """The results of a method over all tasks, at one length or at all lengths together (None).

    Attributes:
        samples: Number of prompts.
        answers: Number of references that the prompts ask for.
        accuracy: In points, 0 ... 100, the mean over the tasks' samples, with its Wilson interval.
        difference: Accuracy minus that of dense on the same samples, in points, with the interval of Bonett and Price
            for paired answers; None for dense, or if dense did not run.
        seconds: Mean per answer.
        forwards: Mean per answer.
        density: Mean over the answers.
        tasks: Points by task.
    """

    length: int | None
    method: str
    samples: int
    answers: int
    accuracy: Interval
    difference: Interval | None
    seconds: float
    forwards: float
    density: float
    tasks: dict[str, float]


def summarise(records: Sequence[Record], baseline: str = "dense") -> list[Row]:
    """Returns a row per length and method, in the order of the records; with several lengths also their total."""
    if isinstance(records, str):
        raise TypeError(f"summarise: records is {records!r:.100}, expected a list of records")
    rows = []
    by_key = {record.key: record for record in records}
    records = list(by_key.values())  # two runs that share a folder may both have answered
    lengths: list[int | None] = [*sorted({record.length for record in records})]
    for length in [*lengths, None] if len(lengths) > 1 else lengths:
        for method in dict.fromkeys(record.method for record in records):
            found = [r for r in records if r.method == method and length in (None, r.length)]
            if not found:
                continue
            pairs = [
                (record.score, by_key[(baseline, *record.key[1:])].score)
                for record in found
                if method != baseline and (baseline, *record.key[1:]) in by_key
            ]
            tasks = dict.fromkeys(record.task for record in found)
            rows.append(
                Row(
                    length,
                    method,
                    len(found),
                    sum(record.answers for record in found),
                    accuracy([record.score for record in found]).scaled(100),
                    paired_difference([mine - other for mine, other in pairs]).scaled(100) if pairs else None,
                    float(np.mean([record.seconds for record in found])),
                    float(np.mean([record.forwards for record in found])),
                    float(np.mean([record.density for record in found])),
                    {
                        task: 100 * float(np.mean([record.score for record in found if record.task == task]))
                        for task in tasks
                    },
                )
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Returns three tables as text: accuracy and difference to dense, cost, and accuracy by task; then a legend."""
    accuracies = [
        (
            row.method,
            _length(row),
            str(row.samples),
            str(row.answers),
            f"{row.accuracy.mean:.2f}",
            row.accuracy.bounds(1),
            "" if row.difference is None else f"{row.difference.mean:+.2f}",
            "" if row.difference is None else row.difference.bounds(1, sign="+"),
        )
        for row in rows
    ]
    header = ("method", "length", "samples", "answers", "accuracy", "95 %", "minus dense", "95 %")
    costs = [
        (row.method, _length(row), f"{row.seconds:.2f}", f"{row.forwards:.1f}", f"{row.density:.2f}") for row in rows
    ]
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    by_task = [
        (row.method, _length(row), *(f"{row.tasks[task]:.1f}" if task in row.tasks else "-" for task in tasks))
        for row in rows
    ]
    parts = [
        format_table(header, accuracies),
        format_table(("method", "length", "s", "forwards", "density"), costs),
        format_table(("method", "length", *tasks), by_task),
        "\n".join(f"{name}: {meaning}" for name, meaning in LEGEND.items()),
    ]
    return "\n\n".join(parts)


LEGEND = {
    "length": "tokens of prompt and answer",
    "answers": "references that were asked for in the samples",
    "accuracy": "share of the references that the answers contain, in points (0 ... 100)",
    "95 %": "Wilson interval of the accuracy; Bonett-Price interval of the paired difference to dense",
    "minus dense": "accuracy minus that of dense attention on the same samples",
    "s": "seconds per answer",
    "forwards": "model calls per answer",
    "density": "share of the attention that was computed, mean over the steps that called the model (1: dense)",
}


def markdown(content: dict[str, Any]) -> str:
    """Returns the table of a report.json in Markdown, with the machine and the command below it."""
    rows = [
        Row(**{**row, **{key: row[key] and Interval(**row[key]) for key in ("accuracy", "difference")}})
        for row in content["rows"]
    ]
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    header = ["method", "length", "answers", "accuracy", "minus dense", "s", "density", *tasks]
    lines = [
        [
            row.method,
            _length(row),
            str(row.answers),
            _unbroken(row.accuracy, digits=1, sign=""),
            "" if row.difference is None else _unbroken(row.difference),
            f"{row.seconds:.2f}",
            f"{row.density:.2f}",
            *(f"{row.tasks[task]:.1f}" if task in row.tasks else "" for task in tasks),
        ]
        for row in rows
    ]
    found = content["machine"]
    where = f"{found['cpu']}, {found['threads']} threads, sparsed {found['sparsed']}: `{content['command']}`"
    legend = "; ".join(f"{name}: {meaning}" for name, meaning in LEGEND.items() if name not in ("95 %", "forwards"))
    return f"{markdown_table(header, lines)}\n\n{legend}; in brackets: 95 % intervals.\n\n{where}\n"


def _unbroken(interval: Interval, digits: int = 2, sign: str = "+") -> str:
    """The mean and the interval, with non-breaking spaces."""
    space = "\u00a0"
    return f"{interval.mean:{sign}.{digits}f}{space}({interval.bounds(1, sign, space)})"


def _length(row: Row) -> str:
    return "all" if row.length is None else str(row.length)


def write_report(folder: Path | str, rows: Sequence[Row], context: dict[str, Any]) -> list[Path]:
    """Writes report.txt, report.json and, if matplotlib is installed, report.png; returns their paths.

    An earlier report with other rows is renamed with a number.

    Args:
        folder: Folder of the files; it is created if it does not exist.
        rows: Result of `summarise`.
        context: Command, plan and machine, for the JSON.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("write_report: rows is empty, expected at least one row")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {**context, "rows": [asdict(row) for row in rows]}
    keep_earlier([folder / f"report.{kind}" for kind in ("txt", "json", "png")], rows=content["rows"])
    paths = [folder / "report.txt", folder / "report.json"]
    paths[0].write_text(f"{table(rows)}\n\n{context['command']}\n", encoding="utf-8")
    paths[1].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    picture = _picture(folder / "report.png", rows)
    return paths if picture is None else [*paths, picture]


def _picture(path: Path, rows: Sequence[Row]) -> Path | None:
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (accuracy, cost) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    lengths = sorted({row.length for row in rows if row.length is not None})
    methods = list(dict.fromkeys(row.method for row in rows))
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        by_length = {row.length: row for row in rows if row.method == method and row.length is not None}
        x = [j + (i - (len(methods) - 1) / 2) * width for j, length in enumerate(lengths) if length in by_length]
        found = [by_length[length] for length in lengths if length in by_length]
        means = [row.accuracy.mean for row in found]
        spread = [
            [row.accuracy.mean - row.accuracy.low for row in found],
            [row.accuracy.high - row.accuracy.mean for row in found],
        ]
        accuracy.bar(x, means, width, yerr=spread, label=method, capsize=2, error_kw={"linewidth": 0.8})
        cost.bar(x, [row.seconds for row in found], width)
    for axes, label in ((accuracy, "accuracy, points (95 % Wilson interval)"), (cost, "seconds per answer")):
        axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
    figure.legend(
        *accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(methods), 7), fontsize=8
    )
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
    return path
