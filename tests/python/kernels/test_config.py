"""The settings: defaults, checks, and that they cannot change."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from sparsed import SlidingWindow, SparseConfig, StreamingLLM


def test_defaults_are_the_published_ones_except_for_the_generation() -> None:
    assert dataclasses.asdict(SparseConfig()) == {
        "skip": 0.2,
        "rho": 0.3,
        "block_size": 128,
        "selection": "paper",
        "selection_scale": None,
        "isolate": True,
        "refresh": (),
        "min_length": 2048,
        "generation": "dense",
    }
    assert SlidingWindow(window=100) == SlidingWindow(100, 128, "dense")
    assert StreamingLLM(window=100, sinks=4) == StreamingLLM(100, 4, 128, "dense")


def test_the_authors_code_has_no_dense_generation() -> None:
    assert SparseConfig(selection="reference").generation == "sparse"
    assert SparseConfig(selection="reference", generation="dense").generation == "dense"
    assert SparseConfig(generation="sparse").generation == "sparse"
    assert SlidingWindow(8, generation="sparse").generation == "sparse"
    assert StreamingLLM(8, 4, generation="sparse").generation == "sparse"


@pytest.mark.parametrize("config", [SparseConfig(), SlidingWindow(3), StreamingLLM(3, 4)])
def test_frozen_and_hashable(config: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.block_size = 64
    assert hash(config) == hash(dataclasses.replace(config))


def test_values_become_plain_python() -> None:
    config = SparseConfig(
        skip=np.float32(0.25), rho=1, block_size=np.int64(32), refresh=[0.5, np.float64(1)], min_length=np.int32(0)
    )
    assert [type(value) for value in (config.skip, config.rho, config.block_size, config.min_length)] == [
        float,
        float,
        int,
        int,
    ]
    assert config.refresh == (0.5, 1.0)
    assert config == SparseConfig(skip=0.25, rho=1.0, block_size=32, refresh=(0.5, 1.0), min_length=0)
    assert SparseConfig(refresh="every").refresh == "every"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"skip": 1.5}, ValueError, "SparseConfig: skip is 1.5, expected a number from 0 to 1"),
        ({"skip": float("nan")}, ValueError, "SparseConfig: skip is nan, expected a number from 0 to 1"),
        ({"skip": "0.2"}, TypeError, "SparseConfig: skip is '0.2', expected a number"),
        ({"rho": -0.1}, ValueError, "SparseConfig: rho is -0.1, expected a number from 0 to 1"),
        ({"rho": 10**400}, ValueError, "SparseConfig: rho is 1000000"),
        ({"rho": True}, TypeError, "SparseConfig: rho is True, expected a number"),
        ({"block_size": 100}, ValueError, "SparseConfig: block_size is 100, expected one of (16, 32, 64, 128, 256)"),
        ({"block_size": 128.0}, TypeError, "SparseConfig: block_size is 128.0, expected an integer"),
        (
            {"selection": "authors"},
            ValueError,
            "SparseConfig: selection is 'authors', expected one of 'paper', 'reference'",
        ),
        ({"selection": None}, ValueError, "SparseConfig: selection is None, expected"),
        ({"selection_scale": 0}, ValueError, "SparseConfig: selection_scale is 0.0, expected a finite number above 0"),
        ({"selection_scale": float("nan")}, ValueError, "SparseConfig: selection_scale is nan"),
        ({"selection_scale": float("inf")}, ValueError, "SparseConfig: selection_scale is inf"),
        ({"selection_scale": "1"}, TypeError, "SparseConfig: selection_scale is '1', expected a number"),
        ({"isolate": 1}, TypeError, "SparseConfig: isolate is 1, expected a bool"),
        ({"refresh": "always"}, ValueError, "SparseConfig: refresh is 'always', expected fractions or \"every\""),
        ({"refresh": 0.5}, TypeError, 'SparseConfig: refresh is 0.5, expected a tuple of fractions or "every"'),
        ({"refresh": (0.5, "1")}, TypeError, "SparseConfig: refresh[1] is '1', expected a number"),
        ({"refresh": (0.1,)}, ValueError, "SparseConfig: refresh[0] is 0.1, expected more than 0.2 (skip)"),
        ({"refresh": (0.5, 0.5)}, ValueError, "SparseConfig: refresh[1] is 0.5, expected more than 0.5 (the one bef"),
        ({"refresh": (0.5, 1.1)}, ValueError, "SparseConfig: refresh[1] is 1.1, expected a number from 0 to 1"),
        ({"generation": "full"}, ValueError, "SparseConfig: generation is 'full', expected one of 'dense', 'sparse'"),
        ({"generation": True}, ValueError, "SparseConfig: generation is True, expected one of 'dense', 'sparse'"),
        ({"min_length": -1}, ValueError, "SparseConfig: min_length is -1, expected an integer >= 0"),
        ({"min_length": 1e3}, TypeError, "SparseConfig: min_length is 1000.0, expected an integer"),
        ({"ratio": 0.3}, TypeError, "unexpected keyword argument 'ratio'"),
    ],
)
def test_sparse_config_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SparseConfig(**changes)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: SlidingWindow(window=0), ValueError, "SlidingWindow: window is 0, expected an integer >= 1"),
        (lambda: SlidingWindow(window=2.5), TypeError, "SlidingWindow: window is 2.5, expected an integer"),
        (lambda: SlidingWindow(window=8, block_size=8), ValueError, "SlidingWindow: block_size is 8, expected one of"),
        (lambda: SlidingWindow(), TypeError, "window"),
        (lambda: SlidingWindow(8, generation="none"), ValueError, "SlidingWindow: generation is 'none', expected one"),
        (lambda: StreamingLLM(8, 4, generation=1), ValueError, "StreamingLLM: generation is 1, expected one of 'den"),
        (lambda: StreamingLLM(window=2**70, sinks=1), ValueError, "StreamingLLM: window is 1180591620717411303424"),
        (lambda: StreamingLLM(window=8, sinks=-1), ValueError, "StreamingLLM: sinks is -1, expected an integer >= 0"),
        (lambda: StreamingLLM(window=8, sinks=None), TypeError, "StreamingLLM: sinks is None, expected an integer"),
    ],
)
def test_baseline_errors(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build()
