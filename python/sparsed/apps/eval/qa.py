"""Questions on documents, from the user's own SQuAD or HotpotQA file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...checks import Checker
from ...models.files import read_text


@dataclass(frozen=True)
class Question:
    """A question: its answers, the documents that hold them, and others that are near (indices)."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    near: tuple[int, ...] = ()


class Questions(Sequence[Question]):
    """The questions of a file and all its documents, each once, sorted."""

    def __init__(self, questions: Sequence[Question], documents: Sequence[str]) -> None:
        self._questions = questions
        self._documents = documents

    def __getitem__(self, index: Any) -> Any:
        return self._questions[index]

    def __len__(self) -> int:
        return len(self._questions)

    def documents_for(self, rng: np.random.Generator, question: Question, count: int) -> list[str]:
        """`count` documents: the question's own first, then near ones, then any; at least its own, at most all."""
        own = [*question.documents]
        near = [i for i in question.near if i not in own]
        wanted = count - len(own)
        if wanted <= len(near):
            picked = [near[i] for i in rng.choice(len(near), max(wanted, 0), replace=False)]
        else:
            used = {*own, *near}
            others = [i for i in range(len(self._documents)) if i not in used]
            size = min(wanted - len(near), len(others))
            picked = near + [others[i] for i in rng.choice(len(others), size, replace=False)]
        return [self._documents[i] for i in own + picked]


def read_squad(path: Path) -> Questions:
    """SQuAD 1.1 or 2.0 as published; questions without an answer are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no SQuAD file.
    """
    content = _read(path)
    try:
        articles = content["data"]
        documents = sorted({paragraph["context"] for article in articles for paragraph in article["paragraphs"]})
        number = {document: i for i, document in enumerate(documents)}
        questions = [
            Question(
                qa["question"],
                tuple(dict.fromkeys(answer["text"] for answer in qa["answers"])),
                (number[paragraph["context"]],),
                tuple(dict.fromkeys(number[other["context"]] for other in article["paragraphs"])),
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
            if qa["answers"] and not qa.get("is_impossible", False)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"read_squad: {path} lacks {error}, expected a SQuAD file") from error
    return _some(questions, documents, path)


def read_hotpotqa(path: Path) -> Questions:
    """HotpotQA (distractor setting) as published.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no HotpotQA file.
    """
    rows = _read(path)
    try:
        contexts = [[f"{title}\n{''.join(lines)}" for title, lines in row["context"]] for row in rows]
        documents = sorted({document for context in contexts for document in context})
        number = {document: i for i, document in enumerate(documents)}
        questions = [
            Question(row["question"], (row["answer"],), tuple(dict.fromkeys(number[document] for document in context)))
            for row, context in zip(rows, contexts, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"read_hotpotqa: {path} lacks {error}, expected a HotpotQA file") from error
    return _some(questions, documents, path)


def _read(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _some(questions: list[Question], documents: list[str], path: Path) -> Questions:
    check = Checker(str(path))
    for question in questions:
        try:
            check.text("question", question.text)
            check.texts(f"the answers to {question.text!r:.100}", question.answers)
        except TypeError as error:
            raise ValueError(str(error)) from error
    if not questions:
        raise ValueError(f"{path} holds no question with an answer, expected at least one")
    return Questions(questions, documents)
