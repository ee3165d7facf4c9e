"""Scores: what a reference may be, and the intervals of accuracies, paired differences and means."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from sparsed.apps.eval import (
    Interval,
    Question,
    RulerStyle,
    Sample,
    TaskSet,
    accuracy,
    bootstrap,
    head_report,
    method,
    paired_difference,
    read_samples,
    score,
    summarise,
    write_report,
    write_samples,
)
from sparsed.apps.eval.qa import read_squad
from sparsed.apps.eval.styles import Frame
from sparsed.apps.eval.tasks import Text


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ("123", TypeError, "outputs is '123', expected a list of texts"),
        (b"123", TypeError, "outputs is b'123', expected a list of texts"),
        (None, TypeError, "outputs is None, expected a list of texts"),
        (123, TypeError, "outputs is 123, expected a list of texts"),
        ({"123": 1}, TypeError, "outputs is {'123': 1}, expected a list of texts"),
        ([123], TypeError, "outputs[0] is 123, expected a text"),
        (["1", ["2"]], TypeError, "outputs[1] is ['2'], expected a text"),
        ([], ValueError, "outputs is empty, expected at least one text"),
        (["1", ""], ValueError, "outputs[1] is '', expected a text that is not blank"),
        ((" \n",), ValueError, "outputs[0] is ' \\n', expected a text that is not blank"),
    ],
)
def test_references_are_a_list_of_texts(outputs, error, message) -> None:
    for task in ("niah_single_1", "qa_1"):
        with pytest.raises(error, match=re.escape(f"score: {message}")):
            score(task, "the number is 123", outputs)
    with pytest.raises(error, match=re.escape(f"Sample: {message}")):
        Sample("vt", 0, "question", "", outputs, "", 8)
    with pytest.raises(error, match=re.escape(f"Text: {message}")):
        Text(Frame("", "", ""), ["unit"], " ", (), outputs, "")


def test_other_texts_of_a_sample() -> None:
    with pytest.raises(TypeError, match=re.escape("Text: units is 'unit', expected a list of texts")):
        Text(Frame("", "", ""), "unit", " ", (), ("a",), "")
    for change, message in (
        ({"input": ["a"]}, "input is ['a'], expected a text"),
        ({"answer": None}, "answer is None, expected a text"),
        ({"answer_prefix": None}, "answer_prefix is None, expected a text"),
        ({"task": 3}, "task is 3, expected a text"),
        ({"gen_length": "8"}, "gen_length is '8', expected an integer"),
    ):
        fields = {"task": "vt", "index": 0, "input": "a", "answer_prefix": "", "outputs": ["a"], "answer": ""}
        with pytest.raises(TypeError, match=re.escape(f"Sample: {message}")):
            Sample(**{**fields, "gen_length": 8, **change})
    assert Sample("vt", 0, "a", "", ["b", "c"], "", 8).outputs == ("b", "c")


def test_blank_answers_score_nothing() -> None:
    assert score("qa_1", "", ["a"]) == score("vt", " \n\x00", ["a", "b"]) == 0
    for prediction, task in ((None, "vt"), (["a"], "vt"), ("a", None)):
        with pytest.raises(TypeError, match="score: (task|prediction) is .*, expected a text"):
            score(task, prediction, ["a"])
    assert score("vt", "a b", iter(["A", "c"])) == 0.5


def test_an_answer_is_found_as_it_is_written() -> None:
    for reference in ("a\tb", "a\nb", "a\x1fb"):
        assert score("vt", f"it is {reference} .", [reference]) == 1


@pytest.mark.parametrize("task", ["qa", "qa_1", "QA_2", "qa-1", "Qa 1", "qa1"])
def test_the_rule_of_questions_holds_in_any_spelling(task) -> None:
    assert score(task, "it is a", ["a", "x"]) == 1
    assert score(task.replace("q", "no_q").replace("Q", "no_q"), "it is a", ["a", "x"]) == 0.5


@pytest.mark.parametrize("answers", [[{"text": " "}], [{"text": ["a", "b"]}], [{"text": 7}]])
def test_squad_with_answers_that_are_not_texts(tmp_path, answers) -> None:
    path = tmp_path / "squad.json"
    paragraph = {"context": "A text.", "qas": [{"question": "What?", "answers": answers}]}
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    with pytest.raises(ValueError, match=r"the answers to 'What\?'\[0\] is|lacks .*, expected a SQuAD file"):
        read_squad(path)


def test_paths_may_be_texts(tmp_path) -> None:
    sample = Sample("vt", 0, "a", "", ("b",), "", 8)
    write_samples(str(tmp_path / "x.jsonl"), [sample])
    assert read_samples(str(tmp_path / "x.jsonl"), "vt") == [sample]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: head_report(None, "abc", gen_length=4, sparse=None), TypeError, "head_report: prompts is 'abc', exp"),
        (
            lambda: head_report(None, [[1]], gen_length=4, sparse=None, rhos="0.3"),
            TypeError,
            "head_report: rhos is '0.3', expected a list",
        ),
        (lambda: summarise("abc"), TypeError, "summarise: records is 'abc', expected a list of records"),
        (
            lambda: Question("vt", 64, 0, lambda: None, "dense"),
            TypeError,
            "Question: methods is 'dense', expected a list of methods",
        ),
        (lambda: TaskSet(None, RulerStyle(), "64"), TypeError, "TaskSet: length is '64', expected an integer"),
        (lambda: method(["dense"], "paper", 64), TypeError, "method: name is ['dense'], expected a text"),
        (lambda: write_report("folder", [], {}), ValueError, "write_report: rows is empty, expected at least one row"),
    ],
)
def test_lists_where_lists_belong(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 1, 0, 0.7935),  # published values of the Wilson interval, for instance by R's binom.wilson
        (1, 1, 0.2065, 1),
        (0, 10, 0, 0.2775),
        (10, 10, 0.7225, 1),
        (3, 10, 0.1078, 0.6032),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals(right: int, n: int, low: float, high: float) -> None:
    interval = accuracy([1.0] * right + [0.0] * (n - right))
    assert interval.mean == pytest.approx(right / n)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@pytest.mark.parametrize(("better", "worse", "n"), [(1, 7, 21), (0, 0, 10), (10, 0, 10), (3, 3, 6), (0, 1, 1)])
def test_intervals_of_paired_differences(better: int, worse: int, n: int) -> None:
    """The formula of Bonett and Price for the discordant pairs of a 2 x 2 table."""
    interval = paired_difference([1.0] * better + [-1.0] * worse + [0.0] * (n - better - worse))
    p12, p21 = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert interval.mean == pytest.approx((better - worse) / n)
    assert interval.low == pytest.approx(max(p12 - p21 - half, -1), abs=1e-6)
    assert interval.high == pytest.approx(min(p12 - p21 + half, 1), abs=1e-6)


def test_intervals_cover() -> None:
    """The share of the intervals that hold the true value, exactly, over all outcomes of 20 questions."""
    n = 20
    for p in (0.05, 0.3, 0.5, 0.9):
        held = [accuracy([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
        chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        assert sum(c for i, c in zip(held, chance, strict=True) if i.low <= p <= i.high) > 0.92
    for better, worse in ((0.05, 0.05), (0.1, 0.3), (0.01, 0.0)):
        total = 0.0
        for b in range(n + 1):
            for w in range(n + 1 - b):
                ways = math.comb(n, b) * math.comb(n - b, w)
                chance = ways * better**b * worse**w * (1 - better - worse) ** (n - b - w)
                interval = paired_difference([1.0] * b + [-1.0] * w + [0.0] * (n - b - w))
                total += chance * (interval.low <= better - worse <= interval.high)
        assert total > 0.94


def test_bounds_as_text() -> None:
    assert Interval(0.0, -0.00001, 0.0967).bounds(4, sign="+") == "+0.0000...+0.0967"
    assert Interval(50.0, 2.54, 97.46).bounds(1, space=" ") == "2.5 ... 97.5"
    assert Interval(0.5, 0.25, 0.75).scaled(100) == Interval(50.0, 25.0, 75.0)


def test_intervals_have_width_and_hold_the_mean() -> None:
    random = rng()
    for values in ([0.0], [1.0], [1 / 3] * 5, random.random(7), [1.0] * 1000, [1e-9]):
        interval = accuracy(values)
        assert 0 <= interval.low <= interval.mean <= interval.high <= 1 and interval.low < interval.high
    for values in ([0.0], [1.0], [-1.0] * 50, [0.5] * 3, random.uniform(-1, 1, 9), [0.0] * 1000):
        interval = paired_difference(values)
        assert -1 <= interval.low <= interval.mean <= interval.high <= 1 and interval.low < interval.high
    assert type(accuracy(np.ones(3, np.float32)).mean) is float


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: accuracy([]), ValueError, "accuracy: scores has shape [0], expected at least one"),
        (lambda: accuracy("101"), ValueError, "accuracy: scores has shape [], expected at least one"),
        (lambda: accuracy(["1", "0"]), TypeError, "accuracy: scores has dtype <U1, expected numbers"),
        (lambda: accuracy([0.5, 50.0]), ValueError, "accuracy: scores[1] is 50.0, expected 0 ... 1"),
        (lambda: accuracy([float("nan")]), ValueError, "accuracy: scores[0] is nan, expected 0 ... 1"),
        (lambda: paired_difference([-2]), ValueError, "paired_difference: differences[0] is -2.0, expected -1 ... 1"),
        (lambda: bootstrap([1.0, float("inf")]), ValueError, "bootstrap: values[1] is inf, expected a finite number"),
    ],
)
def test_intervals_refuse(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_bootstrap() -> None:
    interval = bootstrap(rng().random(400))
    assert interval.low < interval.mean < interval.high
    assert abs((interval.high - interval.low) - 2 * 1.96 * np.sqrt(1 / 12 / 400)) < 0.01
    assert bootstrap([1.0, 1.0]) == bootstrap([1.0, 1.0]) and bootstrap([1.0]).low == 1
    with pytest.raises(ValueError, match="expected at least one"):
        bootstrap([])
