"""The samplers at the edge of the numbers: temperatures near 0 and infinity, infinite logits, certain rows, ties.

Warnings are errors here: nothing may divide by 0 or overflow on the way.
"""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fake_model import FakeModel, prompt_of
from sparsed import DelayedCache, DreamSampler, DualCache, LLaDASampler, generate
from sparsed.generation.samplers.logits import guided
from sparsed.generation.sampling import Candidates, Request, Sampler

MASK, N, VOCABULARY = 0, 12, 30
ALGORITHMS = ("entropy", "maskgit_plus", "topk_margin")
COLD = (1e-9, 1e-30, 1e-38, 1e-45, 1e-300, 5e-324)
HOT = (1e30, 1e38, 3.5e38, 1e300, 1.7e308)
PLAN = Request(N, 4, MASK)
INF = np.float32(np.inf)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def logits_of(spread: float = 3.0) -> np.ndarray:
    return (spread * rng(5).standard_normal((N, VOCABULARY))).astype(np.float32)


def choose(sampler: Sampler, logits: np.ndarray, count: int = 5, seed: int = 0) -> Any:
    return sampler.choose(PLAN, Candidates(np.arange(len(logits)), count), logits, rng(seed))


def same_choice(first: Any, second: Any) -> None:
    np.testing.assert_array_equal(first.index, second.index)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_allclose(first.confidence, second.confidence, rtol=1e-6)


# --- alg_temp


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("alg_temp", COLD)
def test_a_small_alg_temp_is_none(alg: str, alg_temp: float) -> None:
    for count in range(N + 1):
        expected = choose(DreamSampler(alg=alg), logits_of(), count)
        same_choice(choose(DreamSampler(alg=alg, alg_temp=alg_temp), logits_of(), count), expected)


def shares(sampler: DreamSampler, confidence: Any, count: int) -> np.ndarray:
    """How often each position is among the first `count`."""
    generator, draws = rng(1), 4000
    picked = [sampler.pick(np.asarray(confidence, np.float32), count, generator) for _ in range(draws)]
    assert all(len(set(row.tolist())) == count for row in picked)
    return np.bincount(np.concatenate(picked), minlength=len(confidence)) / draws


@pytest.mark.parametrize("alg_temp", [1e-3, 1e-12, 1e-17, 1e-40, 1e-300])
def test_equal_confidences_are_drawn_evenly(alg_temp: float) -> None:
    found = shares(DreamSampler(alg_temp=alg_temp), [0.5, 0.9, 0.5, 0.5, 0.1], 2)
    np.testing.assert_allclose(found, [1 / 3, 1, 1 / 3, 1 / 3, 0], atol=0.04)


@pytest.mark.parametrize("alg_temp", HOT)
def test_a_large_alg_temp_draws_evenly(alg_temp: float) -> None:
    np.testing.assert_allclose(shares(DreamSampler(alg_temp=alg_temp), [0.5, 0.9, 0.0, -3], 1), [0.25] * 4, atol=0.04)


def test_tiny_confidences_keep_their_order() -> None:
    confidence = np.array([1e-30, 1e-20, 1e-38, 1e-45, 0], np.float32)
    np.testing.assert_array_equal(DreamSampler(alg_temp=1e-300).pick(confidence, 5, rng()), [1, 0, 2, 3, 4])


# --- temperature


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 3}, {"top_p": 0.5, "top_k": 2}])
@pytest.mark.parametrize("alg", [*ALGORITHMS, "origin"])
@pytest.mark.parametrize("temperature", COLD)
def test_a_cold_dream_takes_the_likeliest(temperature: float, alg: str, filters: dict[str, Any]) -> None:
    choice = choose(DreamSampler(alg=alg, temperature=temperature, **filters), logits_of(), N)
    np.testing.assert_array_equal(choice.tokens, logits_of().argmax(axis=1))
    np.testing.assert_allclose(choice.confidence, 0 if alg == "entropy" else 1, atol=1e-6)


@pytest.mark.parametrize("temperature", COLD)
def test_a_cold_llada_takes_the_likeliest(temperature: float) -> None:
    same_choice(choose(LLaDASampler(temperature=temperature), logits_of()), choose(LLaDASampler(), logits_of()))


@pytest.mark.parametrize("temperature", HOT)
@pytest.mark.parametrize("family", [LLaDASampler, DreamSampler])
def test_a_hot_sampler_draws_evenly_among_what_is_possible(family: Any, temperature: float) -> None:
    logits = np.tile(np.array([5, -INF, 0, -5], np.float32), (4000, 1))
    tokens = family(temperature=temperature).score(PLAN, logits, rng(2))[0]
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.04)


@pytest.mark.parametrize("temperature", [1e-45, 1e-3, 1.0])
@pytest.mark.parametrize("scale", [1e9, 1e30, 3e37])
def test_large_logits(scale: float, temperature: float) -> None:
    logits = logits_of() * np.float32(scale)
    expected = logits.argmax(axis=1)
    for sampler in (LLaDASampler(temperature=temperature), DreamSampler(temperature=temperature, top_p=0.9)):
        np.testing.assert_array_equal(sampler.score(PLAN, logits, rng())[0], expected)


@pytest.mark.parametrize("value", [Fraction(1, 2), np.float32(0.5), np.float16(0.5), np.float64(0.5)])
def test_numbers_of_any_type(value: Any) -> None:
    for family in (LLaDASampler, DreamSampler):
        same_choice(choose(family(temperature=value), logits_of()), choose(family(temperature=0.5), logits_of()))
    same_choice(choose(DreamSampler(alg_temp=value), logits_of()), choose(DreamSampler(alg_temp=0.5), logits_of()))


def test_numbers_are_stored_as_python_s() -> None:
    half, three = np.float32(0.5), np.int64(3)
    llada = LLaDASampler(block_length=three, temperature=half, cfg_scale=half, threshold=half)
    dream = DreamSampler(temperature=half, top_p=half, top_k=three, alg_temp=half, eps=half, block_length=three)
    for options in (llada, dream, DelayedCache(refresh=three), DualCache(refresh=three)):
        assert "np." not in repr(options)
        json.dumps(dataclasses.asdict(options))


# --- filters


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("top_p", [0.0, 5e-324, 1e-45, 1e-7])
def test_a_small_top_p_keeps_the_likeliest(top_p: float, temperature: float) -> None:
    choice = choose(DreamSampler(alg="maskgit_plus", top_p=top_p, temperature=temperature), logits_of(), N)
    np.testing.assert_array_equal(choice.tokens, logits_of().argmax(axis=1))
    np.testing.assert_array_equal(choice.confidence, 1)


@pytest.mark.parametrize("options", [{"top_p": 1.0}, {"top_p": 1 - 1e-12}, {"top_k": VOCABULARY}, {"top_k": 10**30}])
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_filters_that_keep_everything(options: dict[str, Any], alg: str) -> None:
    same_choice(choose(DreamSampler(alg=alg, **options), logits_of()), choose(DreamSampler(alg=alg), logits_of()))


def test_filters_beside_impossible_tokens() -> None:
    logits = np.array([[1, -INF, 0, -INF], [-INF, -INF, -INF, 2]], np.float32)
    for options in ({"top_k": 3}, {"top_p": 0.999}, {"top_k": 1}):
        for seed in range(20):
            sampler = DreamSampler(alg="maskgit_plus", temperature=1.0, **options)
            choice = choose(sampler, logits, 2, seed)
            assert choice.tokens[0] in (0, 2) and choice.tokens[1] == 3
            assert choice.confidence[1] == 1


# --- logits that are no numbers


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 0.8, 1e300])
@pytest.mark.parametrize(
    "sampler", [LLaDASampler, *(lambda a=a, **k: DreamSampler(alg=a, **k) for a in ALGORITHMS)], ids=lambda s: None
)
def test_an_infinite_logit_is_certain(sampler: Any, temperature: float) -> None:
    logits = logits_of()
    logits[3, 7] = np.inf
    choice = choose(sampler(temperature=temperature), logits, N)
    assert choice.tokens[3] == 7
    assert choice.confidence[3] >= np.delete(choice.confidence, 3).max() - 1e-6
    assert np.isfinite(choice.confidence).all()


@pytest.mark.parametrize(
    "sampler",
    [
        LLaDASampler(),
        LLaDASampler(temperature=1.0),
        LLaDASampler(threshold=0.9),
        DreamSampler(),
        DreamSampler(top_p=0.9),
    ],
)
def test_rows_without_an_answer_are_refused(sampler: Sampler) -> None:
    logits = logits_of()
    logits[3, 7] = np.nan
    with pytest.raises(ValueError, match="generate: the model's logits for 1 of 12 positions have NaN, expected"):
        choose(sampler, logits)
    logits[3], logits[4] = -np.inf, -np.inf
    with pytest.raises(ValueError, match="the model's logits for 2 of 12 positions have no token above -inf"):
        choose(sampler, logits)


def test_generate_refuses_a_model_that_overflowed() -> None:
    class Overflowed(FakeModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return np.full_like(super().forward(*args, **kwargs), np.nan)

    for shift in (False, True):
        with pytest.raises(ValueError, match="the model's logits for . of . positions have NaN"):
            generate(Overflowed(shift), prompt_of(5), gen_length=4, steps=2)


def test_only_the_mask_token_is_possible() -> None:
    logits = np.full((3, 5), -INF)
    logits[:, MASK] = 1
    assert (choose(LLaDASampler(), logits).tokens == MASK).all()
    with pytest.raises(ValueError, match="have no token above -inf"):  # it would never end
        choose(LLaDASampler(threshold=0.5), logits)


# --- guidance


def test_guidance_in_its_usual_range() -> None:
    first, second = logits_of(), logits_of(1.0)
    np.testing.assert_array_equal(guided(first, second, 1.5), second + np.float32(2.5) * (first - second))


@pytest.mark.parametrize("cfg_scale", [1e37, 1e39, 1e300, 1.7e308])
def test_strong_guidance_takes_the_largest_difference(cfg_scale: float) -> None:
    first, second = logits_of(), logits_of(1.0)[::-1]
    logits = guided(first, second, cfg_scale)
    np.testing.assert_array_equal(logits.argmax(axis=1), (first - second).argmax(axis=1))
    choice = choose(LLaDASampler(), logits, N)
    np.testing.assert_array_equal(choice.confidence, 1)


def test_guidance_of_impossible_tokens() -> None:
    first = np.array([[1, -INF, 2, -INF], [1, 2, -INF, 3]], np.float32)
    second = np.array([[1, -INF, 1, 5], [0, 0, 0, -INF]], np.float32)
    found = guided(first, second, 0.5)
    np.testing.assert_array_equal(found[0], np.array([1, -INF, 2.5, -INF]) - 2.5)
    assert found[1, 3] == np.inf and found[1, 2] == -np.inf
    result = generate(FakeModel(), prompt_of(5), gen_length=4, steps=4, sampler=LLaDASampler(cfg_scale=1e300))
    assert (result.filled_at >= 0).all()


# --- certain rows, thresholds, random remasking


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_certain_rows_are_filled_from_the_left(alg: str) -> None:
    logits = np.full((6, 8), -1e4, np.float32)
    logits[np.arange(6), [1, 5, 2, 7, 3, 4]] = 1e4
    choice = choose(DreamSampler(alg=alg), logits, 3)
    np.testing.assert_array_equal(choice.index, [0, 1, 2])
    np.testing.assert_array_equal(choice.tokens, [1, 5, 2])
    np.testing.assert_allclose(choice.confidence, 0 if alg == "entropy" else 1, atol=1e-6)


@pytest.mark.parametrize(("threshold", "filled"), [(0.0, 6), (5e-324, 6), (1.0, 2), (1 - 1e-12, 2)])
def test_thresholds_at_the_ends(threshold: float, filled: int) -> None:
    logits = np.zeros((6, 8), np.float32)
    logits[[1, 4], [3, 5]] = 1e4
    choice = choose(LLaDASampler(threshold=threshold), logits, 1)
    assert len(choice.index) == filled
    assert {1, 4} <= set(choice.index.tolist())


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e300])
def test_random_remasking_of_few_positions(temperature: float) -> None:
    sampler = LLaDASampler(remasking="random", temperature=temperature)
    for left in range(1, 4):
        choice = choose(sampler, logits_of()[:left], 3)
        np.testing.assert_array_equal(choice.index, np.arange(left))


@pytest.mark.parametrize("alg_temp", [0.0, 1e-300, 1e300])
@pytest.mark.parametrize("eps", [0.0, 5e-324, 1e-300, 1.0])
def test_the_last_step_fills_what_is_left(eps: float, alg_temp: float) -> None:
    sampler = DreamSampler(eps=eps, alg_temp=alg_temp)
    result = generate(FakeModel(True), prompt_of(5), gen_length=7, steps=3, sampler=sampler, seed=0)
    assert (result.filled_at >= 0).all()
