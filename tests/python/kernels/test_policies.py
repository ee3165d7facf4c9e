"""The named policies: what their sources say, and that each can be used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sparsed import SlidingWindow, SparseConfig, StreamingLLM, policies


def test_settings_are_those_of_the_sources() -> None:
    published = {"skip": 0.2, "rho": 0.3, "block_size": 128, "min_length": 0, "generation": "sparse"}
    assert policies.sparsed() == SparseConfig(**published)  # type: ignore[arg-type]
    assert policies.reference() == SparseConfig(**published, selection="reference")  # type: ignore[arg-type]
    assert policies.early() == SparseConfig(skip=0, rho=0.3, block_size=128, min_length=0, generation="dense")
    assert policies.early().phases(4) == ["select", "sparse", "sparse", "sparse"]
    assert policies.sparsed().phases(10).index("select") == 1
    assert policies.reference().phases(10).index("select") == 3


@pytest.mark.parametrize(("length", "window", "sinks"), [(1000, 256, 100), (2048, 1024, 204), (8192, 4096, 819)])
def test_windows_are_those_of_the_papers_baselines(length: int, window: int, sinks: int) -> None:
    assert policies.sliding_window(length) == SlidingWindow(window, 128, "sparse")
    assert policies.streaming(length) == StreamingLLM(window, sinks, 128, "sparse")


@pytest.mark.parametrize("name", policies.__all__)
def test_each_has_its_source(name: str) -> None:
    policy = getattr(policies, name)
    assert "\n    Source: " in policy.__doc__
    assert dataclasses.replace(policy(), block_size=32).block_size == 32


@pytest.mark.parametrize("length", [0, 1.5, None])
def test_a_length_is_a_number_of_tokens(length: Any) -> None:
    for name in ("sliding_window", "streaming"):
        with pytest.raises((TypeError, ValueError), match=f"policies.{name}: length is {length}, expected an integer"):
            getattr(policies, name)(length)
