"""Generations that end at an end token: the same text, fewer steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsed
from fake_model import MASK, VOCABULARY, FakeModel, prompt_of
from paths import DATA
from sparsed import DreamSampler, DualCache, LLaDASampler, SparseConfig, generate

BLOCKS: list[tuple[bool, Any]] = [
    (False, LLaDASampler(block_length=8)),
    (False, LLaDASampler(block_length=8, threshold=0.3)),
    (True, DreamSampler(block_length=8)),
]


def ended_at(row: np.ndarray, stop: int) -> int:
    """The tokens of a row up to its first end token, that one included."""
    return int(np.flatnonzero(row == stop)[0]) + 1


@pytest.mark.parametrize(("shift", "sampler"), BLOCKS)
@pytest.mark.parametrize("sparse", [None, SparseConfig(block_size=16, skip=0.2, min_length=0)])
def test_the_text_is_the_same_up_to_the_end(shift, sampler, sparse) -> None:
    prompts = np.stack([prompt_of(40, seed) for seed in range(3)])
    options: dict[str, Any] = {"gen_length": 32, "steps": 32, "sampler": sampler, "sparse": sparse}
    whole = generate(FakeModel(shift), prompts, **options)
    stop = int(whole.generated[0, 9])
    model = FakeModel(shift)
    short = generate(model, prompts, stop=[stop], **options)
    assert (short.generated != MASK).all()
    assert len(model.ids) < sum(generate(FakeModel(shift), row, **options).stats.forwards for row in prompts)
    for row, expected in zip(short.generated, whole.generated, strict=True):
        end = ended_at(expected, stop) if (expected == stop).any() else len(expected)
        np.testing.assert_array_equal(row[:end], expected[:end])
        filled = row[end:] != expected[end:]
        assert (row[end:][filled] == stop).all()
    behind = np.isnan(short.confidence)
    assert behind.any() and (short.filled_at >= 0).all() and (short.generated[behind] == stop).all()
    assert short.stats.unmasked == 96 - np.count_nonzero(behind)


def test_a_row_goes_on_while_a_position_before_the_end_is_open() -> None:
    whole = generate(FakeModel(), prompt_of(20), gen_length=16, steps=16, history=True)
    last = int(np.argmax(whole.filled_at[0]))  # the position that is set last
    for position in range(16):
        stop = int(whole.generated[0, position])
        result = generate(FakeModel(), prompt_of(20), gen_length=16, steps=16, stop=[stop])
        end = ended_at(whole.generated[0], stop)
        needed = int(whole.filled_at[0, :end].max()) + 1
        assert result.stats.forwards == needed
        np.testing.assert_array_equal(result.generated[0, :end], whole.generated[0, :end])
        assert result.stats.forwards == 16 or end <= last


def test_the_models_end_tokens_are_the_default_with_blocks() -> None:
    options: dict[str, Any] = {"gen_length": 32, "steps": 32}
    blocks = LLaDASampler(block_length=8)
    whole = generate(FakeModel(), prompt_of(20), sampler=blocks, **options)
    ends = (int(whole.generated[0, 9]), int(whole.generated[0, 3]))
    model = FakeModel()
    model.config.end_token_ids = ends
    by_default = generate(model, prompt_of(20), sampler=blocks, **options)
    given = generate(FakeModel(), prompt_of(20), sampler=blocks, stop=ends, **options)
    np.testing.assert_array_equal(by_default.generated, given.generated)
    assert by_default.stats.forwards == given.stats.forwards < whole.stats.forwards
    np.testing.assert_array_equal(
        generate(model, prompt_of(20), sampler=blocks, stop=(), **options).tokens, whole.tokens
    )
    one_block = generate(model, prompt_of(20), **options)
    assert one_block.stats.forwards == 32


def test_rows_that_have_ended_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    prompts = np.random.default_rng(1).integers(0, 100, (3, 40))
    options: dict[str, Any] = {"gen_length": 32, "steps": 32, "sampler": LLaDASampler(block_length=8)}
    whole = generate(model, prompts, stop=(), **options)
    in_row = [set(row.tolist()) for row in whole.generated[:, :20]]
    stop = next(int(token) for token in whole.generated[1, 2:20] if token not in in_row[0])
    computed: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **more: computed.append(len(ids)) or forward(ids, **more))
    seen: list[sparsed.StepInfo] = []
    short = generate(model, prompts, stop=[stop], on_step=seen.append, **options)
    ends = [int(row.max()) for row in np.where(np.isnan(short.confidence), -1, short.filled_at)]
    rows = [sum(step <= end for end in ends) for step in range(max(ends) + 1)]
    assert computed == rows and rows[0] == 3 and rows[-1] < 3
    assert len(short.stats) == len(seen) == max(ends) + 1  # nothing is left to do
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(
            short.generated[row], generate(model, prompts[row], stop=[stop], **options).generated[0]
        )
        behind = np.flatnonzero(np.isnan(short.confidence[row]))
        np.testing.assert_array_equal(seen[end].filled[row] - 40, behind)
        assert (short.filled_at[row, behind] == end).all()


def test_filling_behind_the_end_saves_more_steps() -> None:
    options: dict[str, Any] = {"gen_length": 16, "steps": 16, "history": True}
    prompt = prompt_of(20)
    whole = generate(FakeModel(), prompt, **options)
    position = int(np.argmin(whole.filled_at[0, :12]))  # it is set while positions before it are open
    after = int(whole.filled_at[0, position]) + 1
    stop = int(whole.generated[0, position])
    assert stop not in whole.history[after, 0, 20 : 20 + position]
    result = generate(FakeModel(), prompt, stop=[stop], fill_behind_end=True, **options)
    behind = whole.history[after, 0, 20 + position :]
    np.testing.assert_array_equal(result.history[after, 0, 20 + position :], np.where(behind == MASK, stop, behind))
    still_open = np.count_nonzero(whole.history[after, 0, 20 : 20 + position] == MASK)
    assert 0 < still_open and result.stats.forwards <= after + still_open < 16


def test_ends_with_a_cache_and_real_weights() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    prompt = np.random.default_rng(0).integers(0, 100, 60)
    options: dict[str, Any] = {
        "gen_length": 32,
        "steps": 32,
        "sampler": LLaDASampler(block_length=8),
        "kv_cache": DualCache(),
    }
    whole = generate(model, prompt, stop=(), **options)
    stop = int(whole.generated[0, 9])
    short = generate(model, prompt, stop=[stop], **options)
    end = ended_at(whole.generated[0], stop)
    np.testing.assert_array_equal(short.generated[0, :end], whole.generated[0, :end])
    assert short.stats.forwards < whole.stats.forwards


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stop": [VOCABULARY]}, ValueError, rf"stop\[0\] is {VOCABULARY}, expected 0 ... {VOCABULARY - 1}"),
        ({"stop": [[1]]}, ValueError, "stop has shape"),
        ({"stop": "</s>"}, TypeError, "stop is a str, expected integers"),
        ({"stop": [1.5]}, TypeError, "stop has dtype float64"),
        ({"stop": [MASK]}, ValueError, "stop holds the mask token 9"),
        ({"fill_behind_end": 1}, TypeError, "fill_behind_end is 1, expected True or False"),
        ({"fill_behind_end": True, "stop": ()}, ValueError, "fill_behind_end is True and stop holds no token"),
    ],
)
def test_generate_refuses(options, error, message) -> None:
    with pytest.raises(error, match=message):
        generate(FakeModel(), [1, 2], gen_length=4, steps=4, **options)
