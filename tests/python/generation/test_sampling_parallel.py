"""Rules that decide how many tokens a step unmasks, against definitions in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fake_model import MASK as FAKE_MASK
from fake_model import FakeModel, prompt_of
from sampling_rules import (
    FAMILIES,
    expected_rows,
    open_logits,
    own_generation,
    rng,
    tiny_model,
)
from sparsed import DreamSampler, LLaDASampler, generate
from sparsed.generation.sampling import Candidates, Request

MASK = 0


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]


def choose(sampler, logits: np.ndarray, count: int = 1, seed: int = 0):
    n = len(logits)
    return sampler.choose(Request(n, n, MASK), Candidates(np.arange(n), count), logits, rng(seed))


def confident(values: list[float], vocabulary: int = 50) -> np.ndarray:
    """Logits whose largest token is 1, with these probabilities; the rest is spread evenly over all but the mask."""
    rows = [np.full(vocabulary, (1 - p) / (vocabulary - 2)) for p in values]
    for row, p in zip(rows, values, strict=True):
        row[MASK], row[1] = 1e-30, p
    return np.log(np.array(rows)).astype(np.float32)


# --- the rules --------------------------------------------------------------------------------------------------------

RULES = [
    {"threshold": 0.0},
    {"threshold": 0.3},
    {"threshold": 0.6},
    {"threshold": 0.95},
    {"threshold": 1.0},
    {"factor": 0.0},
    {"factor": 0.5},
    {"factor": 1.0},
    {"factor": 4.0},
    {"factor": 100.0},
    {"entropy_bound": 0.0},
    {"entropy_bound": 0.1},
    {"entropy_bound": 1.5},
    {"entropy_bound": 8.0},
    {"entropy_bound": 1e6},
]


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("spread", [0.5, 4.0, 12.0])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_a_rule_unmasks_what_its_definition_says(family, options, spread, n) -> None:
    sizes = []
    for seed in range(5):
        logits = (spread * rng(seed).standard_normal((n, 60))).astype(np.float32)
        logits[n // 2] = logits[0]  # a tie
        logits[:, MASK] += 5
        choice = choose(family(**options), logits, seed=seed)
        np.testing.assert_array_equal(choice.index, expected_rows(options, logits, MASK))
        np.testing.assert_array_equal(choice.tokens, open_logits(logits, MASK).argmax(axis=1)[choice.index])
        sizes.append(len(choice.index))
    if options in ({"threshold": 0.0}, {"factor": 100.0}, {"entropy_bound": 1e6}):
        assert sizes == [n] * 5
    if options in ({"threshold": 1.0}, {"factor": 0.0}, {"entropy_bound": 0.0}) and spread < 1:
        assert sizes == [1] * 5


@pytest.mark.parametrize(
    ("factor", "values", "expected"),
    [
        # (n + 1) * (1 - c): 0.2, 0.6, 1.2, 3.0
        (1.0, [0.6, 0.9, 0.8, 0.4], [1, 2]),
        (1.3, [0.7, 0.9, 0.8, 0.4], [0, 1, 2]),
        (0.1, [0.7, 0.9, 0.8, 0.4], [1]),
        (3.1, [0.7, 0.9, 0.8, 0.4], [0, 1, 2, 3]),
        (1.0, [0.1], [0]),
        # Fast-dLLM's code would take the last one too, because it cannot tell this end of its loop from the other.
        (1.0, [0.9, 0.1], [0]),
    ],
)
def test_factor_by_hand(family, factor, values, expected) -> None:
    np.testing.assert_array_equal(choose(family(factor=factor), confident(values)).index, expected)


def test_the_entropy_bound_leaves_the_largest_entropy_out_of_the_sum(family) -> None:
    logits = np.full((4, 9), -np.inf, np.float32)
    for row, tokens in enumerate((4, 1, 2, 8)):  # even over so many tokens: entropies ln 4, 0, ln 2, ln 8
        logits[row, 1 : 1 + tokens] = 0
    for bound, expected in ((0.0, [1, 2]), (0.7, [0, 1, 2]), (2.0, [0, 1, 2]), (2.1, [0, 1, 2, 3])):
        np.testing.assert_array_equal(choose(family(entropy_bound=bound), logits).index, expected)


def test_certain_tokens_go_together(family) -> None:
    logits = np.full((5, 9), -1e4, np.float32)
    logits[np.arange(5), [1, 3, 2, 7, 1]] = 1e4
    for options in ({"threshold": 1.0}, {"factor": 0.0}, {"entropy_bound": 0.0}):
        assert len(choose(family(**options), logits).index) == 5


def test_equal_confidences_go_to_the_lower_position(family) -> None:
    logits = np.tile((rng().standard_normal((1, 20))).astype(np.float32), (6, 1))
    for options in ({"threshold": 1.0}, {"factor": 0.0}, {"entropy_bound": 0.0}):
        np.testing.assert_array_equal(choose(family(**options), logits).index, [0])


@pytest.mark.parametrize("options", [{"threshold": 0.5}, {"factor": 2.0}, {"entropy_bound": 1.0}], ids=str)
def test_dream_compares_after_temperature_and_filters(options) -> None:
    logits = (2 * rng(1).standard_normal((12, 40))).astype(np.float32)
    logits[:, MASK] = -50
    kept = np.where(logits >= np.sort(logits, axis=1)[:, -3:-2], logits, -np.inf)
    choice = choose(DreamSampler(top_k=3, **options), logits)
    np.testing.assert_array_equal(choice.index, expected_rows(options, kept, MASK))
    # A small temperature leaves one likely token.
    assert len(choose(DreamSampler(temperature=1e-6, **options), logits).index) == 12


def test_dream_s_threshold_compares_the_token_that_was_drawn() -> None:
    logits = np.tile(confident([0.7], 8), (4000, 1))
    choice = choose(DreamSampler(threshold=0.5, temperature=1.0), logits)
    assert (choice.tokens == 1).all() and abs(len(choice.index) / 4000 - 0.7) < 0.03


def test_llada_compares_before_temperature() -> None:
    logits = (2 * rng(1).standard_normal((12, 40))).astype(np.float32)
    logits[:, MASK] = -50
    for temperature in (1e-9, 1e9):
        choice = choose(LLaDASampler(entropy_bound=3.0, temperature=temperature), logits)
        np.testing.assert_array_equal(choice.index, expected_rows({"entropy_bound": 3.0}, logits, MASK))


# --- whole generations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_length", [None, 8])
@pytest.mark.parametrize("options", [{"threshold": 0.2}, {"factor": 2.0}, {"entropy_bound": 5.0}], ids=str)
def test_a_generation_with_a_rule(family, options, block_length) -> None:
    model = tiny_model(family)
    mask = model.config.mask_token_id
    prompt = rng(3).integers(0, min(model.config.vocab_size, 100), 20)
    prompt[prompt == mask] += 1
    sampler = family(block_length=block_length, **options)
    result = generate(model, prompt, gen_length=24, steps=1, sampler=sampler)
    tokens, filled_at = own_generation(
        model, prompt, 24, block_length, lambda step, inside, logits: expected_rows(options, logits[:inside], mask)
    )
    np.testing.assert_array_equal(result.generated[0], tokens)
    np.testing.assert_array_equal(result.filled_at[0], filled_at)
    assert len(result.stats) == filled_at.max() + 1 <= 24


# --- it ends ---------------------------------------------------------------------------------------------------------


class Masking(FakeModel):
    """Would always choose the mask token."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        logits = super().forward(*args, **kwargs)
        logits[..., FAKE_MASK] = 50
        return logits


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.99},
        {"factor": 0.0},
        {"entropy_bound": 0.0},
        {"early_commit": True},
        {"early_commit": (0.0, 0.0, 0.0)},
        {"early_commit": True, "factor": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_ends_without_mask_tokens(family, options, temperature) -> None:
    sampler = family(temperature=temperature, block_length=4, **options)
    model = Masking(family is DreamSampler)
    result = generate(model, prompt_of(5), gen_length=8, steps=8, sampler=sampler, stop=(), seed=0)
    assert (result.generated != FAKE_MASK).all() and (result.filled_at >= 0).all()
    assert len(result.stats) <= 8


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.9, "factor": 1.0}, ValueError, "threshold and factor are given, expected at most one"),
        ({"threshold": 0.9, "factor": 1.0, "entropy_bound": 0.1}, ValueError, "threshold and factor and entropy_bound"),
        ({"factor": 1.0, "entropy_bound": 0.0}, ValueError, "factor and entropy_bound are given"),
        ({"factor": -1}, ValueError, "factor is -1, expected a number >= 0"),
        ({"factor": "one"}, TypeError, "factor is 'one', expected a number or None"),
        ({"entropy_bound": float("nan")}, ValueError, "entropy_bound is nan"),
        ({"entropy_bound": True}, TypeError, "entropy_bound is True"),
        ({"threshold": 1.5}, ValueError, "threshold is 1.5, expected a number from 0 to 1"),
        ({"early_commit": None}, TypeError, "early_commit is None, expected True, False or three gaps"),
        ({"early_commit": 5.0}, TypeError, "early_commit is 5.0, expected True, False or three gaps"),
        ({"early_commit": (1, 2)}, ValueError, "early_commit has 2 gaps, expected three"),
        ({"early_commit": (1, 2, -3)}, ValueError, r"early_commit\[2\] is -3, expected a number >= 0"),
        ({"early_commit": (1, "2", 3)}, TypeError, r"early_commit\[1\] is '2', expected a number"),
    ],
)
def test_options_are_checked(family, options, error, message) -> None:
    with pytest.raises(error, match=f"{family.__name__}: {message}"):
        family(**options)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LLaDASampler, {"remasking": "random", "threshold": 0.9}, "remasking is 'random' and threshold is 0.9"),
        (LLaDASampler, {"remasking": "random", "factor": 1}, "remasking is 'random' and factor is 1"),
        (LLaDASampler, {"remasking": "random", "entropy_bound": 0.1}, "remasking is 'random' and entropy_bound is 0.1"),
        (LLaDASampler, {"remasking": "random", "confidence_eos_eot_inf": True}, "confidence_eos_eot_inf is True and"),
        (LLaDASampler, {"entropy_bound": 1, "confidence_eos_eot_inf": True}, "True and entropy_bound is 1"),
        (DreamSampler, {"alg": "origin", "threshold": 0.9}, "alg is 'origin' and threshold is 0.9"),
        (DreamSampler, {"alg": "topk_margin", "factor": 1}, "alg is 'topk_margin' and factor is 1"),
        (DreamSampler, {"alg": "maskgit_plus", "entropy_bound": 1}, "alg is 'maskgit_plus' and entropy_bound is 1"),
        (DreamSampler, {"alg_temp": 0.5, "threshold": 0.9}, "alg_temp is 0.5 and threshold is 0.9"),
    ],
)
def test_options_that_exclude_each_other(cls, options, message) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: .*{message}.*, expected only one of them"):
        cls(**options)


def test_gaps_are_stored_as_numbers_of_python(family) -> None:
    sampler = family(early_commit=[np.float32(1), 2, np.int64(3)], factor=np.float32(0.5))
    assert sampler == family(early_commit=(1.0, 2.0, 3.0), factor=0.5)
    assert "np." not in repr(sampler) and hash(sampler) == hash(family(early_commit=(1.0, 2.0, 3.0), factor=0.5))


def test_steps_need_not_divide_where_the_model_decides_on_them(family) -> None:
    for options in ({"threshold": 0.5}, {"factor": 1.0}, {"entropy_bound": 0.1}):
        sampler = family(block_length=4, **options)
        sampler.check(Request(12, 5, MASK))
        assert sampler.num_steps(Request(12, 5, MASK)) is None
    sampler = family(block_length=4, early_commit=True)
    assert sampler.num_steps(Request(12, 6, MASK)) == 6
    with pytest.raises(ValueError, match="steps is 5, expected a multiple of the 3 blocks"):
        sampler.check(Request(12, 5, MASK))


def test_nothing_is_left_to_unmask(family) -> None:
    for options in ({"threshold": 0.5}, {"early_commit": True}, {"early_commit": True, "factor": 1.0}):
        found = family(**options).candidates(Request(6, 6, MASK), 3, np.zeros(6, bool), rng())
        assert found.count == 0 and len(found.positions) == 0
