"""Ctrl-C in `generate`: the text so far comes back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sparsed
from fake_model import MASK, FakeModel, prompt_of
from sparsed import generate
from sparsed.apps import cli
from sparsed.apps.eval import heads, runner
from sparsed.generation import likelihood


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


@pytest.mark.parametrize("row", [0, 1])
def test_ctrl_c_gives_up_the_pass_that_runs(row: int) -> None:
    class Pressed(FakeModel):
        """Ctrl-C comes in the middle of a forward pass of step 2."""

        def forward(self, ids, attend=None, positions=None, position_ids=None, key_mask=None):
            if len(self.ids) == 4 + row:
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("the forward pass went on")
            return super().forward(ids, attend, positions, position_ids, key_mask)

    ids = [prompt_of(5, 0), prompt_of(5, 1)]
    options = {
        "gen_length": 16,
        "steps": 8,
        "history": True,
        "sampler": sparsed.LLaDASampler(threshold=1.0),
    }  # rows run one by one
    full = generate(FakeModel(), ids, **options)
    result = generate(Pressed(), ids, **options)
    assert result.interrupted and len(result.stats) == 2 + row
    np.testing.assert_array_equal(result.tokens[0], full.history[2 + row, 0])  # row 0 ended its step before row 1
    np.testing.assert_array_equal(result.tokens[1], full.history[2, 1])
    assert len(result.history) == 3 + row and (result.history[-1] == result.tokens).all()
    assert result.stats[-1].unmasked == (1 if row else 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_step_is_told() -> None:
    result = generate(
        FakeModel(), prompt_of(5), gen_length=4, steps=1, on_step=lambda info: signal.raise_signal(signal.SIGINT)
    )
    assert result.interrupted and (result.generated != MASK).all()
    with pytest.raises(KeyboardInterrupt):
        result.require_whole()


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


@pytest.fixture
def press_in_step_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every generation of the library's own callers is interrupted."""

    def interrupted(model, prompt_ids, **options):
        return generate(model, prompt_ids, **options, on_step=lambda info: signal.raise_signal(signal.SIGINT))

    for module in (heads, runner, likelihood):
        monkeypatch.setattr(module, "generate", interrupted)


@pytest.mark.parametrize(
    "call",
    [
        lambda: likelihood.is_greedy(FakeModel(), prompt_of(5), [1, 2, 3]),
        lambda: likelihood.is_greedy(FakeModel(), prompt_of(5), [1]),
        lambda: heads.head_report(FakeModel(), [prompt_of(5)], gen_length=4, sparse=sparsed.SparseConfig()),
    ],
    ids=["is_greedy", "is_greedy, one step", "heads"],
)
def test_callers_raise(press_in_step_0: None, call: Callable[[], object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        call()


def test_eval_stops(press_in_step_0: None, tmp_path: Path) -> None:
    options = ["--lengths", "128", "--tasks", "niah_single_1", "--methods", "dense", "--out", str(tmp_path)]
    assert cli.main(["eval", *options]) == 130
    assert not (tmp_path / "records.jsonl").exists()


def test_the_demo_stops(press_in_step_0: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--length", "256", "--prompts", "1", "--needles", "1"]) == 130
    assert capsys.readouterr().out == ""
