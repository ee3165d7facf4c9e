"""Samples in RULER's own file format: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..files import read_text
from .styles import RULER_BUDGETS
from .tasks import Sample, kind_of


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes index, input, outputs, answer_prefix and gen_length of each sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "index": sample.index,
                "input": sample.input,
                "outputs": list(sample.outputs),
                "answer_prefix": sample.answer_prefix,
                "gen_length": sample.gen_length,
            },
            ensure_ascii=False,
        )
        for sample in samples
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_samples(path: Path, task: str, gen_length: int | None = None) -> list[Sample]:
    """The samples of a JSONL file that RULER or `write_samples` wrote.

    Args:
        path: The file; lines have "input" and "outputs", perhaps "index" and "answer_prefix".
        task: Their task; it decides the scoring.
        gen_length: Tokens to generate; None: the file's "gen_length", else RULER's budget for the task.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is something else; the message has its number.
    """
    samples = []
    for number, line in enumerate(read_text(path).splitlines()):
        if not line.strip():
            continue
        where = f"read_samples: line {number + 1} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("input"), str):
            raise ValueError(f'{where} has no text "input", expected RULER\'s format')
        outputs = row.get("outputs")
        if not isinstance(outputs, list) or not outputs or not all(isinstance(text, str) for text in outputs):
            raise ValueError(f'{where} has "outputs" {outputs!r:.100}, expected a list of texts')
        budget = gen_length or row.get("gen_length") or RULER_BUDGETS.get(kind_of(task))
        if not isinstance(budget, int):
            raise ValueError(f"{where}: task is {task!r}, expected a known one or gen_length")
        index = int(row.get("index", number))
        samples.append(Sample(task, index, row["input"], row.get("answer_prefix", ""), tuple(outputs), "", budget))
    return samples
