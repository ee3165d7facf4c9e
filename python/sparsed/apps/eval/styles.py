"""The wording of the tasks: RULER's for real models, that of a small vocabulary for the demo model."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ...models.tokenizer import Tokenizer
from . import words

RULER_BUDGETS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_SMALL_NOISE = (
    "the grass is green .",
    "the sky is blue .",
    "the sun is yellow .",
    "here we go .",
    "there and back again .",
    "rivers run to the sea .",
    "a small bird sings at dawn .",
    "the old clock ticks in the hall .",
    "rain falls on the quiet town .",
    "she reads a long letter by the fire .",
)


class Frame(NamedTuple):
    """The text `before` a context, the question `after` it, and the beginning of the answer."""

    before: str
    after: str
    answer_prefix: str


class Style(abc.ABC):
    """The wording of the tasks.

    Attributes:
        name: "ruler" or "small".
        tasks: The tasks that it can word.
        gen_lengths: Tokens to generate by kind of task: niah, vt, cwe, fwe, qa.
        most_names: Number of different names.
        vt_example: Whether a solved example precedes the question for variables.
        joiner: The text between two sentences of a context.
        word_joiner: The text between two words of a coded text or a list.
    """

    name: str
    tasks: tuple[str, ...]
    gen_lengths: dict[str, int]
    most_names: float = math.inf
    vt_example = False
    joiner = "\n"
    word_joiner = " "

    @abc.abstractmethod
    def names(self, rng: np.random.Generator, kind: str, count: int) -> list[str]:
        """Returns `count` different keys, variables or words.

        Kinds are "words", "uuids", "variables", "example variables", "coded" and "common".
        """

    @abc.abstractmethod
    def value(self, rng: np.random.Generator, kind: str) -> str:
        """Returns a value; kind: "numbers", "uuids", "variables"."""

    @abc.abstractmethod
    def needle(self, kind: str, key: str, value: str) -> str:
        """Returns the sentence that gives the value of a key."""

    @abc.abstractmethod
    def hay(self, rng: np.random.Generator, kind: str, count: int) -> list[str]:
        """Returns `count` sentences that say nothing; kind: "noise", "essay"."""

    @abc.abstractmethod
    def assignment(self, variable: str, value: str, *, first: bool) -> str:
        """Returns the sentence that gives a variable a number (first) or another variable."""

    @abc.abstractmethod
    def niah_frame(self, kind: str, queries: Sequence[str], single: bool) -> Frame:
        """Returns the question for the values of `queries`; single: there is only one value."""

    @abc.abstractmethod
    def vt_frame(self, value: str, count: int) -> Frame:
        """Returns the question for the `count` variables that are assigned `value`."""

    @abc.abstractmethod
    def cwe_frame(self) -> Frame:
        """Returns the question for the ten most common words."""

    @abc.abstractmethod
    def fwe_frame(self) -> Frame:
        """Returns the question for the three most frequent coded words."""

    @abc.abstractmethod
    def niah_answer(self, queries: Sequence[str], values: Sequence[Sequence[str]]) -> str:
        """Returns the answer of a perfect model."""

    def list_answer(self, names: Sequence[str]) -> str:
        """Returns the answer of a perfect model to a question for words."""
        return ", ".join(names)


class RulerStyle(Style):
    """RULER's sentences.

    Args:
        budgets: Tokens to generate: "ruler" (128 niah, 30 vt, 120 cwe, 50 fwe, 32 qa) or "paper", the 32, 64 and 128
            of SparseD's runs.

    Source: arXiv 2404.06654; NVIDIA/RULER scripts/data/synthetic/constants.py, niah.py, variable_tracking.py. Keys,
        hay other than its noise, and coded words come from the generator of this package.
    """

    name = "ruler"
    tasks = (
        *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
        *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
    )
    vt_example = True

    def __init__(self, budgets: Literal["ruler", "paper"] = "ruler") -> None:
        self.gen_lengths = dict(RULER_BUDGETS)
        if budgets == "paper":
            self.gen_lengths = {kind: 1 << (budget - 1).bit_length() for kind, budget in RULER_BUDGETS.items()}

    def names(self, rng: np.random.Generator, kind: str, count: int) -> list[str]:
        if kind == "words":
            return words.keys(rng, count)
        if kind == "common":
            return words.made_words(rng, count)
        found: dict[str, None] = {}
        while len(found) < count:
            if kind == "uuids":
                name = words.identifier(rng)
            elif kind == "coded":
                name = words.coded_word(rng, 6)
            else:
                name = words.coded_word(rng, 5 if kind == "variables" else 3, upper=True)
            if name != "VAR":
                found[name] = None
        return list(found)

    def value(self, rng: np.random.Generator, kind: str) -> str:
        if kind == "uuids":
            return words.identifier(rng)
        return words.number(rng, 5 if kind == "variables" else 7)

    def needle(self, kind: str, key: str, value: str) -> str:
        return f"One of the special magic {kind} for {key} is: {value}."

    def hay(self, rng: np.random.Generator, kind: str, count: int) -> list[str]:
        return [_NOISE] * count if kind == "noise" else [words.sentence(rng) for _ in range(count)]

    def assignment(self, variable: str, value: str, *, first: bool) -> str:
        return f"VAR {variable} = {'' if first else 'VAR '}{value}"

    def niah_frame(self, kind: str, queries: Sequence[str], single: bool) -> Frame:
        query = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
        what, verb = (kind[:-1], "is") if single else (kind, "are")
        some, ask = ("A", "What is the") if single else ("Some", "What are all the")
        return Frame(
            f"{some} special magic {what} {verb} hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {what} afterwards.\n",
            f"\n{ask} special magic {what} for {query} mentioned in the provided text?",
            f" The special magic {what} for {query} mentioned in the provided text {verb}",
        )

    def vt_frame(self, value: str, count: int) -> Frame:
        return Frame(
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
            f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
            f" Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
            f"assigned the value {value}, they are: ",
        )

    def cwe_frame(self) -> Frame:
        return Frame(
            "Below is a numbered list of words. In these words, some appear more often than others. "
            "Memorize the ones that appear most often.\n",
            "\nQuestion: What are the 10 most common words in the above list?",
            " Answer: The top 10 words that appear most often in the list are:",
        )

    def fwe_frame(self) -> Frame:
        return Frame(
            "Read the following coded text and track the frequency of each coded word. "
            "Find the three most frequently appeared coded words. ",
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
            "What are the three most frequently appeared words in the above coded text?",
            " Answer: According to the coded text above, the three most frequently appeared words are:",
        )

    def niah_answer(self, queries: Sequence[str], values: Sequence[Sequence[str]]) -> str:
        return ", ".join(value for row in values for value in row)


class SmallStyle(Style):
    """The sentences of a model that knows names, the numbers 100 ... 999 and a few dozen words, one token each.

    Answers are short, and so are the budgets: four keys with their numbers take 17 tokens with the end, a chain of
    five variables 7.

    Args:
        names: Words that serve as keys, variables and coded words.
    """

    name = "small"
    tasks = ("niah_single_1", "niah_multikey_1", "niah_multiquery", "niah_multivalue", "vt", "fwe")
    gen_lengths = {"niah": 20, "vt": 8, "fwe": 8}  # noqa: RUF012
    joiner = " "

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self.most_names = len(self._names)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SmallStyle:
        """Returns the style of a tokenizer whose vocabulary has the names between "9" and "one".

        Raises:
            ValueError: The tokenizer has another vocabulary.
        """
        if not cls.fits(tokenizer):
            raise ValueError(
                "SmallStyle: the tokenizer has not '0' ... '9', names, 'one' and '100' ... '999' in this order, "
                "expected the demo model's or one that training/ made"
            )
        first, last = tokenizer.token_id("9"), tokenizer.token_id("one")
        return cls([tokenizer.decode([token]) for token in range((first or 0) + 1, last or 0)])

    @staticmethod
    def fits(tokenizer: Tokenizer) -> bool:
        """Returns whether a tokenizer is of this kind; a large vocabulary has these words too, but not in a row."""
        digits, one, numbers = (
            [tokenizer.token_id(str(word)) for word in words] for words in (range(10), ["one"], range(100, 1000))
        )
        if None in (*digits, *one, *numbers):
            return False
        begins = [tokenizer.token_id(word) or 0 for word in ("0", "one", "100")]
        rows = (digits, one, numbers)
        return begins == sorted(begins) and all(
            row == list(range(begin, begin + len(row))) for begin, row in zip(begins, rows, strict=True)
        )

    @staticmethod
    def sentence_words() -> list[str]:
        """Returns every word of the sentences except for names and numbers, in a fixed order."""
        style = SmallStyle(["N"])
        frames = [style.niah_frame("numbers", ["N", "N"], False), style.vt_frame("V", 5), style.fwe_frame()]
        texts = [*_SMALL_NOISE, style.needle("numbers", "N", "V"), style.assignment("N", "V", first=True)]
        texts += [text for frame in frames for text in frame]
        texts += [style.niah_answer(["N"], [["V", "V"]]), style.list_answer(["N"]), "user : assistant : ..."]
        return list(dict.fromkeys(word for text in texts for word in text.split() if word not in ("N", "V")))

    def names(self, rng: np.random.Generator, kind: str, count: int) -> list[str]:
        # Every kind has the same names.
        if count > len(self._names):
            raise ValueError(f"SmallStyle: {count} names needed, expected at most the {len(self._names)} there are")
        return [self._names[i] for i in rng.choice(len(self._names), count, replace=False)]

    def value(self, rng: np.random.Generator, kind: str) -> str:
        return words.number(rng, 3)

    def needle(self, kind: str, key: str, value: str) -> str:
        return f"the magic number for {key} is {value} ."

    def hay(self, rng: np.random.Generator, kind: str, count: int) -> list[str]:
        # Noise and essay are the same.
        return [_SMALL_NOISE[i] for i in rng.integers(len(_SMALL_NOISE), size=count)]

    def assignment(self, variable: str, value: str, *, first: bool) -> str:
        return f"var {variable} = {value} ."

    def niah_frame(self, kind: str, queries: Sequence[str], single: bool) -> Frame:
        return Frame("", f" question : what are the magic numbers for {' and '.join(queries)} ?", "")

    def vt_frame(self, value: str, count: int) -> Frame:
        return Frame("", f" question : find all variables of the value {value} .", f" the variables of {value}")

    def cwe_frame(self) -> Frame:
        raise ValueError(f"SmallStyle: task is 'cwe', expected one of {self.tasks}")

    def fwe_frame(self) -> Frame:
        return Frame("", " question : what are the frequent words ?", " the frequent words are")

    def niah_answer(self, queries: Sequence[str], values: Sequence[Sequence[str]]) -> str:
        return " ".join(f"{query} is {' '.join(row)} ;" for query, row in zip(queries, values, strict=True))

    def list_answer(self, names: Sequence[str]) -> str:
        return f"{' '.join(names)} ;"
