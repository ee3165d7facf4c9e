"""Questions on documents, from a SQuAD or HotpotQA file of the user."""

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
class DocumentQuestion:
    """A question on documents.

    Attributes:
        text: The question.
        answers: The right answers.
        documents: Indices of the documents that hold the answers.
        near: Indices of documents on the same subject.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    near: tuple[int, ...] = ()


class DocumentQuestions(Sequence[DocumentQuestion]):
    """The questions of a file and all its documents, each once, sorted."""

    def __init__(self, questions: Sequence[DocumentQuestion], documents: Sequence[str]) -> None:
        self._questions = questions
        self._documents = documents

    def __getitem__(self, index: Any) -> Any:
        return self._questions[index]

    def __len__(self) -> int:
        return len(self._questions)

    def documents_for(self, rng: np.random.Generator, question: DocumentQuestion, count: int) -> list[str]:
        """Returns about `count` documents: all that hold the answers, then near ones, then any others."""
        answering = [*question.documents]
        near = [i for i in question.near if i not in answering]
        wanted = count - len(answering)
        if wanted <= len(near):
            picked = [near[i] for i in rng.choice(len(near), max(wanted, 0), replace=False)]
        else:
            used = {*answering, *near}
            others = [i for i in range(len(self._documents)) if i not in used]
            size = min(wanted - len(near), len(others))
            picked = near + [others[i] for i in rng.choice(len(others), size, replace=False)]
        return [self._documents[i] for i in answering + picked]


def read_squad(path: Path) -> DocumentQuestions:
    """Reads SQuAD 1.1 or 2.0 as published; questions without an answer are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a SQuAD file.
    """
    content = _read(path)
    try:
        articles = content["data"]
        documents = sorted({paragraph["context"] for article in articles for paragraph in article["paragraphs"]})
        number = {document: i for i, document in enumerate(documents)}
        questions = [
            DocumentQuestion(
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


def read_hotpotqa(path: Path) -> DocumentQuestions:
    """Reads HotpotQA (distractor setting) as published.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a HotpotQA file.
    """
    rows = _read(path)
    try:
        contexts = [[f"{title}\n{''.join(lines)}" for title, lines in row["context"]] for row in rows]
        documents = sorted({document for context in contexts for document in context})
        number = {document: i for i, document in enumerate(documents)}
        questions = [
            DocumentQuestion(
                row["question"], (row["answer"],), tuple(dict.fromkeys(number[document] for document in context))
            )
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


def _some(questions: list[DocumentQuestion], documents: list[str], path: Path) -> DocumentQuestions:
    check = Checker(str(path))
    for question in questions:
        try:
            check.text("question", question.text)
            check.texts(f"the answers to {question.text!r:.100}", question.answers)
        except TypeError as error:
            raise ValueError(str(error)) from error
    if not questions:
        raise ValueError(f"{path} holds no question with an answer, expected at least one")
    return DocumentQuestions(questions, documents)
