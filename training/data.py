"""Makes the training data of the demo model: the tasks of `sparsed.eval` in the words of its vocabulary.

A row is `<bos> user : CONTEXT QUESTION assistant : ANSWER <eos> <eos> ...` and has exactly L tokens. The seed and the
number of the step determine a batch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsed.apps.eval.styles import SmallStyle
from sparsed.apps.eval.tasks import Maker, Niah, Text, frequent_words, niah, variable_tracking

from .vocabulary import BOS, EOS, MASK, Vocabulary

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_WORDS_PER_SENTENCE = 6.2
_MIN_RATIO = 0.1
# The kinds of rows and their frequencies: needles, several values of a key, variables, frequent words, plain text.
KINDS = ("niah", "multivalue", "vt", "fwe", "text")
_SHARES = (0.55, 0.06, 0.22, 0.07, 0.10)
_EOS_WEIGHT = 0.2
_HINT = 0.5


@dataclass(frozen=True)
class Row:
    """One text.

    Attributes:
        ids: (L,), the token ids.
        answer: The position at which the answer begins, or 0 for plain text.
        breaks: The positions at which sentences of the context begin.
        evidence: The (begin, end) positions of the sentences that contain the answer.
        hints: (position, token id) pairs: a mention of a key in the prompt, and the token that it leads to.
    """

    ids: IntArray
    answer: int
    breaks: IntArray
    evidence: tuple[tuple[int, int], ...]
    hints: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """Rows of one length, masked as in a denoising step.

    Attributes:
        ids: (B, L), the token ids with masks.
        early_ids: (B, L), the same rows at an earlier step, with more masks.
        positions: (B, L), the positions that RoPE uses. They increase and have gaps.
        rows, columns: (n,), the batch indices and the positions in a row of the tokens to predict.
        targets: (n,), the ids of the tokens to predict.
        weights: (n,), their weights in the loss.
        answers: (B,), the positions at which the answers begin.
        essential: (B, L), True for question, answer and the sentences that contain it, and for all of a plain text.
    """

    ids: IntArray
    early_ids: IntArray
    positions: IntArray
    rows: IntArray
    columns: IntArray
    targets: IntArray
    weights: FloatArray
    answers: IntArray
    essential: BoolArray


class Rows:
    """Makes rows and batches."""

    def __init__(self, vocabulary: Vocabulary, max_length: int) -> None:
        self.vocabulary = vocabulary
        self.style: SmallStyle = vocabulary.style()
        self._max_length = max_length

    def row(self, rng: np.random.Generator, length: int, *, asked: bool = False) -> Row:
        """Makes one row of `length` tokens. `asked` excludes plain text."""
        kind = KINDS[rng.choice(len(KINDS), p=_SHARES)]
        if kind == "text" and not asked:
            return self._plain(rng, length)
        if kind in ("niah", "text"):
            keys = int(rng.integers(1, max(3, min(length // 24, 40))))
            queries = int(rng.integers(1, min(keys, 8, length // 24) + 1))
            return self._asked(rng, length, niah(self.style, Niah(hay="noise", keys=keys, queries=queries)))
        if kind == "multivalue":
            return self._asked(rng, length, niah(self.style, Niah(hay="noise", values=int(rng.integers(2, 5)))))
        if kind == "vt":
            return self._asked(rng, length, variable_tracking(self.style, hops=int(rng.integers(1, 5))))
        return self._asked(rng, length, frequent_words(self.style, max(8, length // 50)), words=True)

    def batch(self, rng: np.random.Generator, length: int, rows: int, *, asked: bool = False) -> Batch:
        """Makes a batch. A random fraction of each row's answer is masked, and LLaDA's loss has weight 1 / fraction."""
        made = [self.row(rng, length, asked=asked) for _ in range(rows)]
        ids = np.stack([row.ids for row in made])
        early = ids.copy()
        essential = np.zeros(ids.shape, np.bool_)
        picked: list[tuple[int, int, int, float]] = []
        mask, eos = self.vocabulary[MASK], self.vocabulary[EOS]
        for i, row in enumerate(made):
            ratio = max(_MIN_RATIO, float(rng.random()))
            order = rng.random(length - row.answer)
            masked = row.answer + np.flatnonzero(order < ratio)
            if not len(masked):
                masked = np.array([row.answer + int(np.argmin(order))])
            sooner = row.answer + np.flatnonzero(order < ratio + (1 - ratio) * rng.random())
            tail = row.ids[row.answer :] == eos
            weight = np.where(tail & (np.cumsum(tail) > 1), _EOS_WEIGHT, 1.0) / (ratio * (1 + (~tail).sum()))
            picked += [(i, int(j), int(row.ids[j]), float(weight[j - row.answer])) for j in masked]
            picked += [(i, j, noted, _HINT / len(row.hints)) for j, noted in row.hints]
            ids[i, masked] = mask
            early[i, sooner] = mask
            early[i, masked] = mask
            for begin, end in (*row.evidence, (int(row.breaks[-1]) if len(row.breaks) else 0, length)):
                essential[i, begin:end] = True
        columns = list(zip(*picked, strict=True))
        return Batch(
            ids,
            early,
            np.stack([self._positions(rng, row, length) for row in made]),
            np.array(columns[0], np.int64),
            np.array(columns[1], np.int64),
            np.array(columns[2], np.int64),
            np.array(columns[3], np.float32),
            np.array([row.answer for row in made], np.int64),
            essential,
        )

    def _positions(self, rng: np.random.Generator, row: Row, length: int) -> IntArray:
        """Returns increasing positions with gaps between sentences, so that short rows teach long distances."""
        positions = np.arange(length)
        room = self._max_length - length
        if room > 0 and len(row.breaks) and rng.random() < 0.7:
            count = int(rng.integers(1, 5))
            where = rng.choice(row.breaks, count)
            total = int(room * rng.random())
            gaps = rng.multinomial(total, np.full(count, 1 / count))
            for place, gap in zip(where, gaps, strict=True):
                positions[place:] += gap
        return positions

    def _plain(self, rng: np.random.Generator, length: int) -> Row:
        words = self.vocabulary.ids(" ".join(self.style.hay(rng, "noise", length // 4 + 1)))
        ids = np.array([self.vocabulary[BOS], *words][:length], np.int64)
        return Row(ids, 0, np.empty(0, np.int64), (), ())

    def _asked(self, rng: np.random.Generator, length: int, maker: Maker, *, words: bool = False) -> Row:
        """Makes a row with a question and as much other text as fits."""
        # First comes a rough estimate of the number of sentences; `_laid_out` then drops those that do not fit.
        empty = maker(np.random.default_rng(rng.integers(2**32)), 0)
        fixed = len(self._around(empty)[0]) + len(self._around(empty)[1]) + sum(map(len, map(str.split, empty.units)))
        answer = len(empty.answer.split()) + 2
        room = length - fixed - answer - int(rng.integers(0, min(34, length // 12)))
        text = maker(rng, max(1, room if words else int(room / _WORDS_PER_SENTENCE * 1.1)))
        # In a task about counting, all words matter equally, so none of them is evidence.
        return self._laid_out(dataclasses.replace(text, evidence=()) if words else text, length)

    def _around(self, text: Text) -> tuple[list[int], list[int]]:
        ids = self.vocabulary.ids
        return ids(f"{BOS} user : {text.frame.before}"), ids(
            f"{text.frame.after} assistant : {text.frame.answer_prefix}"
        )

    def _laid_out(self, text: Text, length: int) -> Row:
        head, tail = self._around(text)
        answer = self.vocabulary.ids(text.answer)
        room = length - len(head) - len(tail) - len(answer) - 1
        kept, size = [], 0
        needed = set(text.evidence)
        units = [self.vocabulary.ids(unit) for unit in text.units]
        reserve = sum(len(units[i]) for i in needed)
        for i, unit in enumerate(units):  # keeps all the evidence, and other sentences while there is room
            if i in needed:
                reserve -= len(unit)
            elif size + len(unit) + reserve > room:
                continue
            kept.append((i, unit))
            size += len(unit)
        ids = list(head)
        breaks, evidence = [], []
        for i, unit in kept:
            breaks.append(len(ids))
            if i in needed:
                evidence.append((len(ids), len(ids) + len(unit)))
            ids += unit
        question = len(ids)
        ids += tail
        begin = len(ids)
        full = [*ids, *answer, *[self.vocabulary[EOS]] * length][:length]
        hints = self._hints(text, np.array(full), evidence, question, begin)
        breaks.append(question)
        return Row(np.array(full, np.int64), begin, np.array(breaks), tuple(evidence), hints)

    def _hints(
        self, text: Text, ids: IntArray, evidence: list[tuple[int, int]], question: int, begin: int
    ) -> tuple[tuple[int, int], ...]:
        """Returns mentions of keys in the question and of variables in the chain, with the token each leads to."""
        leads: dict[int, int] = {}
        for start, end in evidence:
            sentence = self.vocabulary.ids("is") + self.vocabulary.ids("=")
            for i in range(start + 1, end - 1):
                if ids[i] == sentence[0]:
                    leads.setdefault(int(ids[i - 1]), int(ids[i + 1]))
                elif ids[i] == sentence[1]:
                    leads.setdefault(int(ids[i + 1]), int(ids[i - 1]))
        places = [*range(question, begin), *(i for start, end in evidence for i in range(start, end))]
        variables = ids[evidence[0][0]] == self.vocabulary["var"] if evidence else False
        return tuple((i, leads[int(ids[i])]) for i in places if int(ids[i]) in leads and (variables or i >= question))
