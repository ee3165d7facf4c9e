"""Ctrl-C in `generate`: the text so far comes back."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

import sparsed
from fake_model import MASK, FakeModel, prompt_of
from sparsed import generate


def test_ctrl_c_returns_after_the_step() -> None:
    def interrupt(info: sparsed.StepInfo) -> None:
        if info.step == 2:
            signal.raise_signal(signal.SIGINT)

    options = {"gen_length": 16, "steps": 8, "history": True}
    full = generate(FakeModel(), prompt_of(5), **options)
    result = generate(FakeModel(), prompt_of(5), on_step=interrupt, progress=True, **options)
    assert result.interrupted and not full.interrupted
    assert len(result.stats) == 3 and result.history.shape == (4, 1, 21)
    np.testing.assert_array_equal(result.tokens, full.history[3])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_step_changes_nothing() -> None:
    result = generate(
        FakeModel(), prompt_of(5), gen_length=4, steps=1, on_step=lambda info: signal.raise_signal(signal.SIGINT)
    )
    assert not result.interrupted and (result.generated != MASK).all()


def test_a_second_ctrl_c_raises() -> None:
    def interrupt(info: sparsed.StepInfo) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        generate(FakeModel(), prompt_of(5), gen_length=16, steps=8, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_and_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    caught = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        result = generate(
            FakeModel(), prompt_of(5), gen_length=4, steps=4, on_step=lambda info: signal.raise_signal(signal.SIGINT)
        )
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert len(caught) == 4 and not result.interrupted

    results = []
    thread = threading.Thread(target=lambda: results.append(generate(FakeModel(), prompt_of(5), gen_length=4, steps=4)))
    thread.start()
    thread.join()
    assert (results[0].generated != MASK).all()
