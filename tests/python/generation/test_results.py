"""Results, statistics and settings: compared by content, copied, pickled; the tables of the statistics."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

import sparsed
from fake_model import FakeModel, prompt_of
from generations import demo_generation, hostile_generation
from sparsed.apps.eval import HeadReport, Interval, Likelihood, Record, Row, Sample
from sparsed.apps.eval.held_out import TextRecord
from sparsed.generation.stats import GroupStep, StepStats

COPIES = [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy]


def generation(seed: int = 0, **options: Any) -> tuple[sparsed.GenerationResult, list[sparsed.StepInfo]]:
    seen: list[sparsed.StepInfo] = []
    sampler = sparsed.LLaDASampler(temperature=1.0)
    options = {"gen_length": 8, "steps": 4, "history": True, "sampler": sampler, "on_step": seen.append} | options
    return sparsed.generate(FakeModel(), prompt_of(5), seed=seed, **options), seen


def test_equal_runs_give_equal_results() -> None:
    first, second = generation(), generation()
    assert first == second and first[0].stats.seconds != second[0].stats.seconds
    assert first[1] == second[1] and not first[0] != second[0]
    assert first[0] != generation(seed=1)[0]
    assert first[0] != generation(history=False)[0]
    assert first[0] != first[0].stats and first[0] != None  # noqa: E711
    with pytest.raises(TypeError, match="unhashable"):
        hash(first[0])


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": np.zeros((1, 13), np.int64)},
        {"tokens": np.zeros((2, 13), np.int64)},
        {"history": None},
        {"stats": sparsed.GenerationStats()},
        {"groups": ()},
        {"prompt_length": 4},
        {"filled_at": np.zeros((1, 8), np.int32)},
        {"confidence": np.full((1, 8), np.nan, np.float32)},
        {"interrupted": True},
    ],
)
def test_results_differ_by_each_field(change: dict[str, Any]) -> None:
    result = generation()[0]
    assert dataclasses.replace(result, **change) != result


@pytest.mark.parametrize("copied", COPIES)
def test_results_are_copied(copied: Any) -> None:
    for result in (demo_generation()[0], hostile_generation()[0], generation()[0]):
        other = copied(result)
        assert other == result and other is not result
        assert other.stats.phase_seconds == result.stats.phase_seconds and repr(other) == repr(result)
    result = demo_generation()[0]
    other = copied(result)
    assert other.groups[0].patterns.pattern(3) == result.groups[0].patterns.pattern(3)
    assert other._repr_html_() == result._repr_html_()
    if copied is not copy.copy:  # which shares the groups
        other.groups[0].patterns.reset()
        assert other != result


@pytest.mark.parametrize("copied", COPIES)
def test_parts_of_a_result_are_copied(copied: Any) -> None:
    result, seen = generation()
    for value in (*seen, result.stats, *demo_generation()[0].groups):
        assert copied(value) == value and not copied(value) != value


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize(
    "value",
    [
        StepStats(0, "dense", 0.1, 1.0, 2, 1, 1, 0),
        GroupStep("dense", 0.1, 1.0, 1, 1, 0, [np.array([3])], [np.ones(1, np.float32)], [np.array([], int)]),
        sparsed.SparseConfig(refresh=(0.5,)),
        sparsed.SlidingWindow(64),
        sparsed.StreamingLLM(64, 4),
        sparsed.LLaDASampler(temperature=0.5, cfg_scale=1.0),
        sparsed.DreamSampler(top_p=0.9),
        sparsed.PrefixCache(),
        sparsed.DualCache(),
        sparsed.DelayedCache(),
        Record("dense", "vt", 64, 0, 60, 1.0, 1, "x", 0.5, 8, 1.0),
        TextRecord("dense", 64, 0, [1.0, 2.0]),
        Interval(0.5, 0.2, 0.8),
        Row(64, "dense", 1, 1, Interval(0.5, 0.2, 0.8), None, 1.0, 8.0, 1.0, {"vt": 50.0}),
        Sample("vt", 0, "text", "", ("a",), "a", 8),
        Likelihood(1.5, np.array([1.0, 2.0])),
        HeadReport(0, *[np.full((2, 1, 1), np.nan)] * 3, (0.3,), np.zeros((1, 1, 1))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_copied_and_compared(value: Any, copied: Any) -> None:
    assert copied(value) == value and not copied(value) != value
    assert value != "another type"


def test_values_that_differ() -> None:
    info = generation()[1][0]
    assert dataclasses.replace(info, tokens=info.tokens + 1) != info
    assert dataclasses.replace(info, seconds=9.0) == info
    assert Likelihood(1.5, np.array([1.0, 2.0])) != Likelihood(1.5, np.array([1.0, 3.0]))
    assert Likelihood(1.5, np.ones(2)) != Likelihood(1.5, np.ones(2, np.float32))
    group = demo_generation()[0].groups[0]
    assert dataclasses.replace(group, patterns=None) != group and dataclasses.replace(group, padding=1) != group


def test_settings_hold_plain_numbers() -> None:
    for settings in (
        sparsed.DelayedCache(np.int64(4)),
        sparsed.PrefixCache(np.int32(2)),
        sparsed.SparseConfig(rho=np.float64(0.5), min_length=np.int64(0), refresh=(np.float32(0.5),)),
        sparsed.SlidingWindow(np.int64(64), np.int32(16)),
    ):
        assert "np." not in repr(settings) and settings == eval(repr(settings), vars(sparsed))


def test_tables_explain_their_columns() -> None:
    result = demo_generation()[0]
    text, html = result.stats.table(), result._repr_html_()
    for name in ("density: share of the attention that was computed", "forwards: model calls", "tokens: those"):
        assert name in text and name in html
    assert "np." not in text + html and "np." not in repr(result.stats)
    assert "the number is the density" in result.groups[0].patterns._repr_html_()
    assert "the number is the density" in result.groups[0].patterns.pattern(0)._repr_html_()
