"""Samples in the file format of RULER: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ...checks import Checker
from ...models.files import decode_text
from .styles import RULER_BUDGETS
from .tasks import Sample, kind_of


def write_samples(path: Path | str, samples: Iterable[Sample]) -> None:
    """Writes index, input, outputs, answer_prefix and gen_length of each sample.

    Raises:
        FileExistsError: The file exists with other content.
    """
    path = Path(path)
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
    content = "".join(f"{line}\n" for line in lines)
    if path.exists() and path.read_bytes() != content.encode("utf-8"):
        raise FileExistsError(f"write_samples: {path} exists with other samples, expected a new file")
    path.write_text(content, encoding="utf-8")


def read_samples(path: Path | str, task: str, gen_length: int | None = None) -> list[Sample]:
    """Reads the samples of a JSONL file that RULER or `write_samples` wrote.

    Args:
        path: The file; lines have "input" and "outputs", perhaps "index", "answer_prefix" and "gen_length".
        task: Their task; it decides the scoring.
        gen_length: Tokens to generate where the file does not say; None: RULER's budget for the task.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is something else; the message has its number.
    """
    Checker("read_samples").text("task", task)
    path = Path(path)
    samples = []
    budget = RULER_BUDGETS.get(kind_of(task)) if gen_length is None else gen_length
    with path.open("rb") as file:  # only "\n" ends a line, because texts may hold all other line ends
        for number, line in enumerate(file):
            if line.strip():
                samples.append(_sample(line, f"read_samples: line {number + 1} of {path}", task, number, budget))
    return samples


def _sample(line: bytes, where: str, task: str, number: int, budget: int | None) -> Sample:
    try:
        row = json.loads(decode_text(line, "it"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("input"), str) or not row["input"].strip():
        raise ValueError(f'{where} has no text "input", expected RULER\'s format')
    outputs = row.get("outputs")
    if (
        not isinstance(outputs, list)
        or not outputs
        or not all(isinstance(text, str) and text.strip() for text in outputs)
    ):
        raise ValueError(f'{where} has "outputs" {outputs!r:.100}, expected a list of texts, none of them blank')
    prefix, index = row.get("answer_prefix", ""), row.get("index", number)
    if not isinstance(prefix, str):
        raise ValueError(f'{where} has "answer_prefix" {prefix!r:.100}, expected a text')
    if type(index) is not int or index < 0:
        raise ValueError(f'{where} has "index" {index!r:.100}, expected an integer of at least 0')
    gen_length = row.get("gen_length") if row.get("gen_length") is not None else budget
    if gen_length is None:
        raise ValueError(f"{where}: task is {task!r}, expected a known one or gen_length")
    if type(gen_length) is not int or gen_length < 1:
        raise ValueError(f'{where} has "gen_length" {gen_length!r:.100}, expected an integer of at least 1')
    return Sample(task, index, row["input"], prefix, tuple(outputs), "", gen_length)
