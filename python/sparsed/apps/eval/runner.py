"""Answers questions with each method: one record per answer, in a folder where a run can go on after a stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from ...generation.generate import generate
from ...generation.sampling import Sampler
from ...models import Model
from ...models.tokenizer import Tokenizer
from ..methods import Method
from .records import Log
from .scoring import score
from .tasks import Sample, require_known

Key = tuple[str, str, int, int]  # method, task, length, index


@dataclass(frozen=True)
class Record:
    """One answer of one method.

    Attributes:
        method: Name of the method.
        task: Name of the task.
        length: Tokens that prompt and answer were made for.
        index: Number of the sample in its task.
        tokens: Tokens of the prompt.
        score: 0 ... 1, see `score`.
        answers: Number of references, each of which the score counts.
        prediction: The generated text.
        seconds: Seconds of all steps.
        forwards: Calls of the model.
        density: Mean over the steps that called the model.
        phase_seconds: Seconds by phase ("dense", "select", "sparse", "cached"); empty in files of earlier versions.
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
    phase_seconds: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> Key:
        """Method, task, length and index: what this is the record of."""
        return self.method, self.task, self.length, self.index


@dataclass(frozen=True)
class Question:
    """A sample at a length, and the methods to answer it with.

    Attributes:
        task: Name of the task.
        length: Tokens that prompt and answer were made for.
        index: Number of the sample in its task.
        sample: Makes the sample when it is needed.
        methods: The methods, each of which answers once.
        steps: Denoising steps; None: one per token.
    """

    task: str
    length: int
    index: int
    sample: Callable[[], Sample]
    methods: Sequence[Method]
    steps: int | None = None

    def __post_init__(self) -> None:
        """Refuses a name where a list of methods belongs."""
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
    """Answers the questions that the log has no record of. Ctrl-C ends it with KeyboardInterrupt.

    Args:
        model: What `load_model` returns.
        tokenizer: What `load_tokenizer` returns.
        questions: The questions.
        sampler: The sampler; a method may change its block length, or have its own.
        log: Gets a record of each answer.
        seed: Sample i is answered with the seed `seed + i`.
        progress: Show a bar on stderr.

    Raises:
        ValueError: Most words of a prompt are unknown to the tokenizer.
    """
    done = {record.key for record in log.records}
    for record in answers(model, tokenizer, questions, sampler, done=done, seed=seed, progress=progress):
        log.add(record)


def answers(
    model: Model,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    sampler: Sampler,
    *,
    done: Collection[Key] = (),
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Record]:
    """Answers the questions one by one, without those in `done`; the other arguments are those of `run`.

    For each question the methods take turns, so that the load of the machine affects all of them alike.
    """
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
                yield _answer(model, tokenizer, question, sample, prompt, method, sampler, seed)
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
        steps=sample.gen_length if question.steps is None else question.steps,
        sparse=method.sparse,
        kv_cache=method.kv_cache,
        sampler=method.sampler(sampler, sample.gen_length),
        stop=method.stop,
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
        phase_seconds={phase: round(seconds, 4) for phase, seconds in result.stats.phase_seconds.items() if seconds},
    )
