"""RULER's tasks for any tokenizer, length and wording; the same seed makes the same sample."""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...checks import Checker
from ...models.tokenizer import Tokenizer
from .qa import DocumentQuestions, read_hotpotqa, read_squad
from .styles import Frame, Style

# RULER draws the coded words of fwe from a zeta distribution of exponent 2.
_ZETA_2 = math.pi**2 / 6


class Niah(NamedTuple):
    """A needle task: the kinds of hay, keys and values, and the numbers of keys, values per key and queried keys."""

    hay: str = "essay"
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


# Source: NVIDIA/RULER scripts/synthetic.yaml; a task has at least as many keys as queries there too.
NIAH = {
    "niah_single_1": Niah(hay="noise"),
    "niah_single_2": Niah(),
    "niah_single_3": Niah(value="uuids"),
    "niah_multikey_1": Niah(keys=4),
    "niah_multikey_2": Niah(hay="needle"),
    "niah_multikey_3": Niah(hay="needle", key="uuids", value="uuids"),
    "niah_multivalue": Niah(values=4),
    "niah_multiquery": Niah(keys=4, queries=4),
}
_FIRST_LETTERS = re.compile("[a-z]+")
_VT_HOPS = 4
_VT_EXAMPLE_NOISE = 10
_FWE_ANSWERS = 3
_CWE_ANSWERS = 10
_QA_TASK = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
# A sample that fills this share of its length is long enough.
_FULL = 0.98


@dataclass(frozen=True)
class Text:
    """A sample in parts.

    Attributes:
        frame: The text around the context.
        units: The context's sentences, documents or words.
        joiner: The text between two units.
        evidence: Indices of the units that hold the answer.
        outputs: The references.
        answer: The answer of a perfect model.
    """

    frame: Frame
    units: Sequence[str]
    joiner: str
    evidence: Sequence[int]
    outputs: tuple[str, ...]
    answer: str

    def __post_init__(self) -> None:
        """Refuses a text in place of a list, and references that are missing or blank."""
        check = Checker("Text")
        if isinstance(self.units, str):
            raise TypeError(f"Text: units is {self.units!r:.100}, expected a list of texts")
        object.__setattr__(self, "outputs", check.texts("outputs", self.outputs))

    @property
    def input(self) -> str:
        """The prompt without the beginning of the answer."""
        return f"{self.frame.before}{self.joiner.join(self.units)}{self.frame.after}"


# Draws a text with the given number of units.
Maker = Callable[[np.random.Generator, int], Text]


@dataclass(frozen=True)
class Sample:
    """One question, with the fields of a line in RULER's JSONL.

    Attributes:
        task: A name such as "niah_single_1".
        index: Its number in the task.
        input: The message of the user.
        answer_prefix: How the answer begins.
        outputs: The references.
        answer: The answer of a perfect model; "" if a file does not have it.
        gen_length: Tokens to generate.
    """

    task: str
    index: int
    input: str
    answer_prefix: str
    outputs: tuple[str, ...]
    answer: str
    gen_length: int

    def __post_init__(self) -> None:
        """Refuses a text in place of a list, and references that are missing or blank."""
        check = Checker("Sample")
        check.integer("index", self.index, low=0)
        check.integer("gen_length", self.gen_length, low=0)
        for name in ("task", "input", "answer_prefix", "answer"):
            check.text(name, getattr(self, name))
        object.__setattr__(self, "outputs", check.texts("outputs", self.outputs))

    def prompt_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Returns the ids of the chat prompt (without a chat template: the text) and of the answer's beginning."""
        if tokenizer.chat_template is None:
            return tokenizer.encode(self.input + self.answer_prefix)
        text = tokenizer.apply_chat_template([{"role": "user", "content": self.input}])
        return tokenizer.encode(text + self.answer_prefix)


def require_known(tokenizer: Tokenizer, ids: Sequence[int], what: str) -> None:
    """Refuses a prompt of `what` that is mostly unknown to the tokenizer, because no answer would mean anything.

    Raises:
        ValueError: More than half of the tokens are unknown.
    """
    unknown = tokenizer.count_unknown(ids)
    if 2 * unknown > len(ids):
        raise ValueError(
            f"eval: {unknown} of {len(ids)} tokens of {what} are unknown to the tokenizer, expected at most half "
            "(--style chooses the wording: small for the demo model's vocabulary, else ruler)"
        )


def kind_of(task: str) -> str:
    """Returns the kind of a task: "niah", "vt", "cwe", "fwe" or "qa", in any case; else the first word of its name."""
    found = _FIRST_LETTERS.match(task.lower())
    return found[0] if found else ""


def niah(style: Style, spec: Niah) -> Maker:
    """Makes needles in a haystack. A unit is a sentence of hay."""

    def make(rng: np.random.Generator, count: int) -> Text:
        num_keys = max(spec.keys, spec.queries)
        others = count if spec.hay == "needle" else 0
        names = style.names(rng, spec.key, num_keys + others)
        values = [[style.value(rng, spec.value) for _ in range(spec.values)] for _ in range(num_keys)]
        if spec.hay == "needle":
            hay = [style.needle(spec.value, name, style.value(rng, spec.value)) for name in names[num_keys:]]
        else:
            hay = style.hay(rng, spec.hay, count)
        asked = sorted(int(i) for i in rng.choice(num_keys, spec.queries, replace=False))
        queries, answers = [names[i] for i in asked], [values[i] for i in asked]
        needles = [
            (key in queries, style.needle(spec.value, key, value))
            for key, row in zip(names, values, strict=False)
            for value in row
        ]
        order = rng.permutation(len(needles))
        units, evidence = _scatter(rng, hay, [needles[i] for i in order])
        outputs = tuple(value for row in answers for value in row)
        frame = style.niah_frame(spec.value, queries, len(outputs) == 1)
        joiner = " " if spec.hay == "essay" else style.joiner
        return Text(frame, units, joiner, evidence, outputs, style.niah_answer(queries, answers))

    return make


def variable_tracking(style: Style, hops: int = _VT_HOPS) -> Maker:
    """Makes a chain of assignments, in order, in noise. A unit is a piece of noise.

    RULER's style shows a solved example before it, with other names in a little noise.
    """

    def chain(rng: np.random.Generator, kind: str, count: int) -> Text:
        names = style.names(rng, kind, hops + 1)
        value = style.value(rng, "variables")
        assignments = [
            (True, style.assignment(name, source, first=source is value))
            for name, source in zip(names, [value, *names], strict=False)
        ]
        units, evidence = _scatter(rng, style.hay(rng, "noise", count), assignments)
        frame = style.vt_frame(value, len(names))
        return Text(frame, units, style.joiner, evidence, tuple(names), style.list_answer(names))

    def make(rng: np.random.Generator, count: int) -> Text:
        if not style.vt_example:
            return chain(rng, "variables", count)
        shown, asked = chain(rng, "example variables", _VT_EXAMPLE_NOISE), chain(rng, "variables", count)
        solved = f"{shown.input}{shown.frame.answer_prefix}{' '.join(shown.outputs)}\n\n"
        return dataclasses.replace(asked, frame=asked.frame._replace(before=solved + asked.frame.before))

    return make


def common_words(style: Style, length: int) -> Maker:
    """Makes a numbered list in which ten words are more frequent than the others. A unit is a word of the list.

    Below 4096 tokens the common words come 6 times and the others once, from there on 30 and 3 times. A small
    solved example precedes the list.
    """
    repeats, example = ((6, 1), (20, 3, 1)) if length < 4096 else ((30, 3), (40, 10, 3))

    def numbered(rng: np.random.Generator, size: int, common: int, rare: int) -> tuple[list[str], list[str]]:
        names = style.names(rng, "common", max(size, _CWE_ANSWERS + 1))
        listed = [*names[:_CWE_ANSWERS] * common, *names[_CWE_ANSWERS:] * rare]
        order = rng.permutation(len(listed))
        return [f"{i + 1}. {listed[j]}" for i, j in enumerate(order)], names[:_CWE_ANSWERS]

    def make(rng: np.random.Generator, count: int) -> Text:
        shown, shown_answer = numbered(rng, *example)
        units, names = numbered(rng, count // repeats[1], *repeats)
        frame = style.cwe_frame()
        answer = " ".join(f"{i + 1}. {name}" for i, name in enumerate(shown_answer))
        solved = f"{frame.before}{' '.join(shown)}{frame.after}{frame.answer_prefix} {answer}\n"
        return Text(
            frame._replace(before=solved + frame.before), units, " ", (), tuple(names), style.list_answer(names)
        )

    return make


def frequent_words(style: Style, vocabulary: int) -> Maker:
    """Makes coded words whose counts fall as 1 / rank^2; dots are the most frequent one. A unit is a word."""

    def make(rng: np.random.Generator, count: int) -> Text:
        names = ["...", *style.names(rng, "coded", vocabulary - 1)]
        counts = (count / _ZETA_2 / np.arange(1, vocabulary + 1) ** 2).astype(int)
        listed = [name for name, times in zip(names, counts, strict=True) for _ in range(times)]
        units = [listed[i] for i in rng.permutation(len(listed))]
        outputs = names[1 : 1 + _FWE_ANSWERS]
        evidence = [i for i, unit in enumerate(units) if unit in outputs]
        return Text(style.fwe_frame(), units, style.word_joiner, evidence, tuple(outputs), style.list_answer(outputs))

    return make


def question_answering(questions: DocumentQuestions, index: int) -> Maker:
    """Makes a question on documents that stand among others. A unit is a document."""

    def make(rng: np.random.Generator, count: int) -> Text:
        question = questions[index % len(questions)]
        documents = questions.documents_for(rng, question, count)
        order = rng.permutation(len(documents))
        units = [f"Document {i + 1}:\n{documents[j]}" for i, j in enumerate(order)]
        evidence = [i for i, j in enumerate(order) if j < len(question.documents)]
        frame = Frame(
            f"{_QA_TASK}\n\nThe following are given documents.\n\n",
            f"\n\n{_QA_TASK}\n\nQuestion: {question.text}",
            " Answer:",
        )
        return Text(frame, units, "\n\n", evidence, question.answers, question.answers[0])

    return make


def _scatter(
    rng: np.random.Generator, hay: list[str], needles: Sequence[tuple[bool, str]]
) -> tuple[list[str], list[int]]:
    """The hay with the needles, in order, at random places; and the places of the marked needles."""
    places = np.sort(rng.choice(len(hay) + len(needles), len(needles), replace=False))
    units = list(hay)
    for place, (_, needle) in zip(places, needles, strict=True):
        units.insert(int(place), needle)
    return units, [int(place) for place, (marked, _) in zip(places, needles, strict=True) if marked]


class TaskSet:
    """The samples of the tasks for one tokenizer, wording and length.

    Args:
        tokenizer: Counts the tokens.
        style: Words the tasks.
        length: Tokens of a prompt, its chat template and the tokens to generate, at most.
        seed: With task, length and index it decides a sample.
        files: For "qa_1" a SQuAD file, for "qa_2" a HotpotQA file, both JSON as published.
    """

    def __init__(
        self, tokenizer: Tokenizer, style: Style, length: int, *, seed: int = 0, files: dict[str, Path] | None = None
    ) -> None:
        check = Checker("TaskSet")
        check.integer("length", length, low=1)
        check.integer("seed", seed, low=0)
        self._tokenizer = tokenizer
        self._style = style
        self._length = length
        self._seed = seed
        self._files = files or {}
        self._questions: dict[str, DocumentQuestions] = {}
        self._units: dict[str, int] = {}

    def sample(self, task: str, index: int) -> Sample:
        """Returns sample `index` of a task.

        Raises:
            ValueError: The style has no such task, a file is needed, or the length has no room for the question.
        """
        if task not in self._style.tasks:
            raise ValueError(f"TaskSet: task is {task!r}, expected one of {self._style.tasks}")
        return self.custom(task, index, self._maker(task, index), self._style.gen_lengths[kind_of(task)])

    def custom(self, task: str, index: int, maker: Maker, gen_length: int) -> Sample:
        """Returns sample `index` of a task that `maker` writes; the length leaves room for `gen_length` tokens."""
        if task not in self._units:  # every search begins there, so that the order of the samples does not matter
            self._units[task] = max(1, self._fit(task, 0, maker, gen_length, 1 + self._length // 16)[1])
        return self._fit(task, index, maker, gen_length, self._units[task])[0]

    def _maker(self, task: str, index: int) -> Maker:
        if task in NIAH:
            return niah(self._style, NIAH[task])
        if task == "vt":
            return variable_tracking(self._style)
        if task == "cwe":
            return common_words(self._style, self._length)
        if task == "fwe":
            # Words of a higher rank would occur less than once.
            return frequent_words(self._style, int(min(max(8, self._length // 50), 1 + self._style.most_names)))
        return question_answering(self._questions_of(task), index)

    def _questions_of(self, task: str) -> DocumentQuestions:
        if task not in self._questions:
            if task not in self._files:
                raise ValueError(
                    f"TaskSet: task {task} needs a file, expected one in files (SQuAD qa_1, HotpotQA qa_2)"
                )
            self._questions[task] = (read_squad if task == "qa_1" else read_hotpotqa)(self._files[task])
        return self._questions[task]

    def _fit(self, task: str, index: int, maker: Maker, gen_length: int, count: int) -> tuple[Sample, int]:
        """The sample with about as many units as fit, and their number; the search begins at `count`."""
        room = self._length - gen_length

        def build(count: int) -> tuple[Sample, int]:
            key = [self._seed, zlib.crc32(task.encode()), self._length, index]
            text = maker(np.random.default_rng(key), count)
            sample = Sample(task, index, text.input, text.frame.answer_prefix, text.outputs, text.answer, gen_length)
            return sample, len(sample.prompt_ids(self._tokenizer))

        best, empty = build(0)
        if empty > room:
            raise ValueError(f"TaskSet: length is {self._length}, expected at least {empty + gen_length} for {task}")
        fits, too_many = 0, room + 1
        while fits < count < too_many:
            sample, tokens = build(count)
            if tokens <= room:
                best, fits = sample, count
                if tokens > _FULL * room:
                    break
            else:
                too_many = count
            per_unit = max((tokens - empty) / count, 1.0)
            count = max(fits + 1, min(too_many - 1, int((room - empty) / per_unit)))
        return best, fits
