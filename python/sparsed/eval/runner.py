"""Runs methods on samples, one record per answer, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..generate import generate
from ..models import Transformer
from ..sampling import Sampler
from ..tokenizer import Tokenizer
from .methods import Method
from .scoring import score
from .tasks import Sample

RECORDS = "records.jsonl"
PLAN = "plan.json"


@dataclass(frozen=True)
class Record:
    """One answer of one method.

    Attributes:
        tokens: Of the prompt.
        score: 0 ... 1, see `score`.
        answers: References, each of which the score counts.
        density: Mean over the steps that called the model.
    """

    method: str
    task: str
    length: int
    index: int
    tokens: int
    score: float
    answers: int
    prediction: str
    seconds: float
    forwards: int
    density: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What it is the record of."""
        return self.method, self.task, self.length, self.index


class Log:
    """The records of a folder; each is on disk before the next answer begins.

    Args:
        folder: Made where it does not exist.
        plan: What decides the answers. A folder with another plan is refused.

    Raises:
        ValueError: The folder has another plan, or a damaged line (but for the last one, which a crash may cut).
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / RECORDS
        plan = json.loads(json.dumps(plan))
        if (folder / PLAN).is_file():
            found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            for key in sorted(plan.keys() | found.keys()):
                if plan.get(key) != found.get(key):
                    raise ValueError(
                        f"eval: {key} is {plan.get(key)!r}, expected {found.get(key)!r} as {folder / PLAN} has it "
                        "(choose another --out to begin anew)"
                    )
        else:
            (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        self.records: list[Record] = []
        if self._path.is_file():
            self._read()

    def _read(self) -> None:
        text = self._path.read_text(encoding="utf-8")
        lines, rest = text.split("\n")[:-1], text.rpartition("\n")[2]
        for number, line in enumerate(lines, start=1):
            try:
                self.records.append(Record(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"eval: line {number} of {self._path} is damaged: {error}") from error
        if rest:
            self._path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def add(self, record: Record) -> None:
        """Appends a record, on disk too."""
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Question:
    """A sample at a length, and the methods to answer it with; `sample` makes it when it is needed."""

    task: str
    length: int
    index: int
    sample: Callable[[], Sample]
    methods: Sequence[Method]


def run(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    sampler: Sampler,
    log: Log,
    *,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Answers what the log has no record of. The methods take turns, so that the machine's load meets all alike.

    T, the denoising steps, is the number of tokens to generate. Ctrl-C ends it with KeyboardInterrupt.
    """
    done = {record.key for record in log.records}
    todo = [
        (
            question,
            [m for m in question.methods if (m.name, question.task, question.length, question.index) not in done],
        )
        for question in questions
    ]
    with tqdm(total=sum(len(methods) for _, methods in todo), unit="answer", disable=not progress) as bar:
        for question, methods in todo:
            if not methods:
                continue
            sample = question.sample()
            prompt = sample.prompt_ids(tokenizer)
            for method in methods:
                bar.set_description(f"{question.task} {question.length} {method.name}")
                log.add(_answer(model, tokenizer, question, sample, prompt, method, sampler, seed))
                bar.update()


def _answer(
    model: Transformer,
    tokenizer: Tokenizer,
    question: Question,
    sample: Sample,
    prompt: list[int],
    method: Method,
    sampler: Sampler,
    seed: int,
) -> Record:
    result = generate(
        model,
        prompt,
        gen_length=sample.gen_length,
        steps=sample.gen_length,
        sparse=method.sparse,
        cache=method.cache,
        sampler=method.sampler(sampler, sample.gen_length),
        seed=seed + sample.index,
    )
    text = tokenizer.text(result.require_whole().generated[0])
    return Record(
        method=method.name,
        task=question.task,
        length=question.length,
        index=question.index,
        tokens=len(prompt),
        score=score(sample.task, text, sample.outputs),
        answers=len(sample.outputs),
        prediction=text,
        seconds=round(result.stats.seconds, 4),
        forwards=result.stats.forwards,
        density=round(result.stats.density, 4),
    )
