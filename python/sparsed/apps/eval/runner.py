"""Runs methods on samples, one record per answer, and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ...generation.generate import generate
from ...generation.sampling import Sampler
from ...models import Model
from ...models.tokenizer import Tokenizer
from .log import Log
from .methods import Method
from .scoring import score
from .tasks import Sample, require_known


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


@dataclass(frozen=True)
class Question:
    """A sample at a length, and the methods to answer it with; `sample` makes it when it is needed."""

    task: str
    length: int
    index: int
    sample: Callable[[], Sample]
    methods: Sequence[Method]

    def __post_init__(self) -> None:
        """Refuses a name where the methods belong."""
        if isinstance(self.methods, str):
            raise TypeError(f"Question: methods is {self.methods!r:.100}, expected a list of methods (see `method`)")


def run(
    model: Model,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    sampler: Sampler,
    log: Log[Record],
    *,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Answers what the log has no record of. The methods take turns, so that the machine's load meets all alike.

    T, the denoising steps, is the number of tokens to generate. Ctrl-C ends it with KeyboardInterrupt.

    Raises:
        ValueError: A prompt in words that the tokenizer does not know.
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
            require_known(tokenizer, prompt, question.task)
            for method in methods:
                bar.set_description(f"{question.task} {question.length} {method.name}")
                log.add(_answer(model, tokenizer, question, sample, prompt, method, sampler, seed))
                bar.update()


def _answer(
    model: Model,
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
        kv_cache=method.kv_cache,
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
