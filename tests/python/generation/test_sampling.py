"""The samplers against the goldens, step by step, and against rules written out here."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from goldens import Golden
from sparsed import DreamSampler, LLaDASampler
from sparsed.generation.samplers import dream
from sparsed.generation.samplers import logits as logit_math
from sparsed.generation.sampling import Candidates, Request

MASK = 0  # of the plans made up here
ALGORITHMS = ("entropy", "maskgit_plus", "topk_margin")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def logits_for(n: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (spread * rng(seed).standard_normal((n, vocabulary))).astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    return reference.softmax(logits)[0]


def counts_of(sampler, plan: Request) -> list[int]:
    """Tokens filled per step when each step fills the first candidates."""
    masked = np.ones(plan.gen_length, bool)
    counts = []
    for step in range(plan.steps):
        found = sampler.candidates(plan, step, masked, rng())
        assert masked[found.positions].all()
        masked[found.positions[: found.count]] = False
        counts.append(found.count)
    assert not masked.any()
    return counts


# --- goldens


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_golden_steps(golden: Golden, attention: str) -> None:
    before = golden.arrays[f"{attention}_x"].astype(np.int64)
    after = np.concatenate([before[1:], golden.arrays[f"{attention}_tokens"]])
    logits = golden.arrays[f"{attention}_logits"]
    sampler = golden.options()["sampler"]
    shift = int(isinstance(sampler, DreamSampler))
    plan = Request(golden.meta["gen_length"], golden.meta["steps"], golden.config["mask_token_id"])
    sampler.check(plan)
    assert sampler.num_steps(plan) == len(before)
    for step in range(plan.steps):
        generated = before[step, -plan.gen_length :].copy()
        found = sampler.candidates(plan, step, generated == plan.mask_token_id, rng())
        own = logits[step][found.positions + 1 - shift]  # the first logits are those of position p - 1
        choice = sampler.choose(plan, found, own, rng())
        generated[found.positions[choice.index]] = choice.tokens
        np.testing.assert_array_equal(generated, after[step, -plan.gen_length :])


# --- which positions, how many


@pytest.mark.parametrize(
    ("gen_length", "steps", "block_length", "expected"),
    [
        (96, 15, 32, [7, 7, 6, 6, 6] * 3),
        (300, 8, 300, [38] * 4 + [37] * 4),
        (8, 8, None, [1] * 8),
        (6, 4, 3, [2, 1] * 2),
        (4, 8, 2, [1, 1, 0, 0] * 2),
    ],
)
def test_llada_spreads_each_block_over_its_steps(gen_length, steps, block_length, expected) -> None:
    assert counts_of(LLaDASampler(block_length=block_length), Request(gen_length, steps, MASK)) == expected


def test_llada_candidates_end_with_the_block_and_include_positions_left_masked_before() -> None:
    masked = np.array([0, 1, 0, 0, 1, 1, 1, 1], bool)  # position 1 took the mask token in the first block
    found = LLaDASampler(block_length=4).candidates(Request(8, 4, MASK), 2, masked, rng())
    np.testing.assert_array_equal(found.positions, [1, 4, 5, 6, 7])
    assert found.count == 2


@pytest.mark.parametrize(
    ("block_length", "gen_length", "steps", "message"),
    [
        (7, 32, 32, "gen_length is 32, expected a multiple of block_length 7"),
        (64, 32, 32, "gen_length is 32, expected a multiple of block_length 64"),
        (8, 32, 6, "steps is 6, expected a multiple of the 4 blocks"),
    ],
)
def test_llada_refuses_plans_that_do_not_divide(block_length, gen_length, steps, message) -> None:
    with pytest.raises(ValueError, match=message):
        LLaDASampler(block_length=block_length).check(Request(gen_length, steps, MASK))


@pytest.mark.parametrize("steps", [1, 3, 12, 50, 100, 128, 512])
@pytest.mark.parametrize("eps", [1e-3, 1e-2])
def test_dream_counts_follow_the_timesteps(steps: int, eps: float) -> None:
    gen_length = 100
    counts = counts_of(DreamSampler(eps=eps), Request(gen_length, steps, MASK))
    times = 1 - (1 - eps) * np.arange(steps + 1) / steps
    left = gen_length
    for step, count in enumerate(counts):
        exact = left * (1 - times[step + 1] / times[step]) if step < steps - 1 else left
        assert abs(count - np.floor(exact + 1e-4)) <= (abs(exact - round(exact)) < 1e-3)
        left -= count


@pytest.mark.parametrize("steps", [1, 2, 7, 37, 512])
def test_timesteps_are_those_of_linspace(steps: int) -> None:
    times = np.array([dream._timestep(i, steps, 1e-3) for i in range(steps + 1)])
    assert times.dtype == np.float32
    assert times[0] == 1 and times[-1] == np.float32(1e-3)
    np.testing.assert_allclose(times, np.linspace(1, 1e-3, steps + 1), rtol=1e-5, atol=1e-7)


def test_dream_origin_fills_a_binomial_share_and_everything_at_the_end() -> None:
    plan, sampler, masked = Request(4000, 4, MASK), DreamSampler(alg="origin", eps=0.0), np.ones(4000, bool)
    generator = rng()
    for step, share in enumerate((1 / 4, 1 / 3, 1 / 2)):
        found = sampler.candidates(plan, step, masked, generator)
        assert found.count == len(found.positions)
        assert abs(found.count / 4000 - share) < 0.03
    assert sampler.candidates(plan, 3, masked, generator).count == 4000


# --- which tokens, how confident


def test_equal_confidences_go_to_the_lower_position() -> None:
    logits = np.tile(logits_for(1, 20), (6, 1))
    for sampler in (LLaDASampler(), DreamSampler(), DreamSampler(alg="topk_margin")):
        choice = sampler.choose(Request(6, 2, MASK), Candidates(np.arange(6), 3), logits, rng())
        np.testing.assert_array_equal(choice.index, [0, 1, 2])


def test_choice_is_ascending_and_holds_the_most_confident() -> None:
    logits = logits_for(40, 30)
    probability = probabilities(logits).max(axis=1)
    choice = LLaDASampler().choose(Request(40, 4, MASK), Candidates(np.arange(40), 10), logits, rng())
    np.testing.assert_array_equal(choice.index, np.sort(np.argsort(-probability)[:10]))
    np.testing.assert_array_equal(choice.tokens, logits.argmax(axis=1)[choice.index])
    np.testing.assert_allclose(choice.confidence, probability[choice.index], rtol=1e-5)


def naive_filter(logits: np.ndarray, top_p: float | None, top_k: int | None) -> np.ndarray:
    """Published filters in float64, one row and one token at a time; -inf where a token is dropped."""
    rows = []
    for row in logits.astype(np.float64):
        if top_p is not None and top_p < 1:
            kept, mass = [], 0.0
            probability = probabilities(row[None])[0]
            for token in np.argsort(-row, kind="stable"):
                if mass > top_p:
                    break
                kept.append(token)
                mass += probability[token]
            row = np.where(np.isin(np.arange(len(row)), kept), row, -np.inf)
        if top_k is not None:
            row = np.where(row >= np.sort(row)[-min(top_k, len(row))], row, -np.inf)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize(
    ("top_p", "top_k"), [(None, None), (0.9, None), (None, 5), (0.7, 3), (0.0, None), (1.0, 500), (0.5, 1)]
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_dream_confidence(alg: str, top_p: float | None, top_k: int | None, temperature: float) -> None:
    logits = logits_for(12, 60)
    sampler = DreamSampler(alg=alg, top_p=top_p, top_k=top_k, temperature=temperature)
    tokens, confidence = sampler.score(Request(12, 4, MASK), logits, rng())
    probability = probabilities(naive_filter(logits / (temperature or 1), top_p, top_k))
    assert (probability[np.arange(12), tokens] > 0).all()
    if temperature == 0:
        np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
    largest = np.sort(probability, axis=1)
    expected = {
        "entropy": (probability * np.log(probability + 1e-10)).sum(axis=1),
        "maskgit_plus": probability[np.arange(12), tokens],
        "topk_margin": largest[:, -1] - largest[:, -2],
    }[alg]
    np.testing.assert_allclose(confidence, expected, rtol=1e-4, atol=1e-6)


def test_filters_keep_ties_with_the_last_token_kept() -> None:
    logits = np.array([[2.0, 1.0, 1.0, 0.0]], np.float32)
    kept = logit_math.filtered(logits, 2, None) == logits
    np.testing.assert_array_equal(kept, [[True, True, True, False]])
    kept = logit_math.filtered(logits, None, 0.5) == logits  # the probabilities are 0.53, 0.20, 0.20, 0.07
    np.testing.assert_array_equal(kept, [[True, False, False, False]])
    kept = logit_math.filtered(logits, None, 0.6) == logits
    np.testing.assert_array_equal(kept, [[True, True, True, False]])


@pytest.mark.parametrize("spread", [0.01, 8.0])  # flat: more tokens than the first guess holds; peaked: few
def test_top_p_over_a_large_vocabulary(spread: float) -> None:
    logits = logits_for(3, 3000, spread=spread)
    kept = logit_math.filtered(logits, None, 0.9) == logits
    probability = probabilities(logits)
    for row in range(3):
        mass = probability[row][kept[row]].sum()
        assert mass > 0.9 - 1e-5
        assert mass - probability[row][kept[row]].min() <= 0.9 + 1e-5
        assert probability[row][kept[row]].min() > probability[row][~kept[row]].max()


@pytest.mark.parametrize(
    "sampler",
    [LLaDASampler(temperature=0.8), DreamSampler(alg="maskgit_plus", temperature=0.8)],
    ids=["llada", "dream"],
)
def test_temperature_draws_from_the_softmax(sampler) -> None:
    n = 20000
    logits = np.tile(logits_for(1, 6, spread=1.0), (n, 1))
    tokens, confidence = sampler.score(Request(n, 4, MASK), logits, rng(1))
    np.testing.assert_allclose(np.bincount(tokens, minlength=6) / n, probabilities(logits[:1] / 0.8)[0], atol=0.015)
    # LLaDA's confidence is without noise and temperature, Dream's is under the tempered softmax.
    expected = probabilities(logits if isinstance(sampler, LLaDASampler) else logits / 0.8)
    np.testing.assert_allclose(confidence, expected[np.arange(n), tokens], rtol=1e-4)


@pytest.mark.parametrize(
    "sampler", [LLaDASampler(temperature=0.5), DreamSampler(temperature=0.5, top_p=0.9)], ids=["llada", "dream"]
)
def test_parts_do_not_change_the_draws(sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_for(11, 50)
    whole = sampler.score(Request(11, 4, MASK), logits, rng(3))
    monkeypatch.setattr(logit_math, "CHUNK_VALUES", 101)
    parts = sampler.score(Request(11, 4, MASK), logits, rng(3))
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_random_remasking_draws_its_confidences() -> None:
    logits = logits_for(1000, 10)
    tokens, confidence = LLaDASampler(remasking="random").score(Request(1000, 4, MASK), logits, rng(2))
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
    assert confidence.min() >= 0 and confidence.max() < 1 and abs(confidence.mean() - 0.5) < 0.05


def test_alg_temp_draws_positions_by_their_confidence() -> None:
    sampler, generator = DreamSampler(alg="maskgit_plus", alg_temp=0.5), rng(4)
    confidence = np.array([0.9, 0.5, 0.1], np.float32)
    first = [int(sampler.pick(confidence, 1, generator)[0]) for _ in range(20000)]
    np.testing.assert_allclose(np.bincount(first) / 20000, probabilities(confidence[None] / 0.5)[0], atol=0.015)
    for _ in range(50):
        assert len(set(sampler.pick(confidence, 3, generator).tolist())) == 3


# --- threshold


def confident(values: list[float], vocabulary: int = 5) -> np.ndarray:
    """Logits whose arg-max is token 1 with the given probabilities."""
    rest = [np.full(vocabulary, (1 - p) / (vocabulary - 2)) for p in values]
    for row, p in zip(rest, values, strict=True):
        row[MASK], row[1] = 1e-12, p
    return np.log(np.array(rest)).astype(np.float32)


def test_threshold_fills_all_that_reach_it_and_at_least_one() -> None:
    plan, sampler = Request(4, 1, MASK), LLaDASampler(threshold=0.75)
    assert sampler.num_steps(plan) is None
    found = sampler.candidates(plan, 0, np.ones(4, bool), rng())
    choice = sampler.choose(plan, found, confident([0.9, 0.5, 0.8, 0.7]), rng())
    np.testing.assert_array_equal(choice.index, [0, 2])
    choice = sampler.choose(plan, found, confident([0.4, 0.5, 0.6, 0.3]), rng())
    np.testing.assert_array_equal(choice.index, [2])
    equal = np.float32(choice.confidence[0])
    choice = LLaDASampler(threshold=float(equal)).choose(plan, found, confident([0.4, 0.5, 0.6, 0.6]), rng())
    np.testing.assert_array_equal(choice.index, [2, 3])


def test_threshold_stays_in_the_first_open_block() -> None:
    sampler, plan = LLaDASampler(threshold=0.5, block_length=2), Request(6, 1, MASK)
    sampler.check(plan)  # steps need not divide
    found = sampler.candidates(plan, 5, np.array([0, 0, 0, 1, 1, 1], bool), rng())
    np.testing.assert_array_equal(found.positions, [3])
    assert sampler.candidates(plan, 6, np.zeros(6, bool), rng()).count == 0


def test_threshold_never_takes_the_mask_token_so_that_it_ends() -> None:
    logits = logits_for(4, 5)
    logits[:, MASK] = 50
    given = logits.copy()
    plan, sampler = Request(4, 1, MASK), LLaDASampler(threshold=0.99)
    choice = sampler.choose(plan, Candidates(np.arange(4), 1), logits, rng())
    assert len(choice.tokens) >= 1 and (choice.tokens != MASK).all()
    np.testing.assert_array_equal(logits, given)
    # Without a threshold the published behaviour stays: the mask token can be the choice.
    assert (LLaDASampler().choose(plan, Candidates(np.arange(4), 2), logits, rng()).tokens == MASK).all()


# --- options


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (LLaDASampler, {"block_length": 0}, ValueError, "block_length is 0, expected an integer >= 1"),
        (LLaDASampler, {"block_length": 1.5}, TypeError, "block_length is 1.5, expected an integer or None"),
        (LLaDASampler, {"block_length": True}, TypeError, "block_length is True"),
        (LLaDASampler, {"temperature": -1}, ValueError, "temperature is -1, expected a number >= 0"),
        (LLaDASampler, {"temperature": float("nan")}, ValueError, "temperature is nan"),
        (LLaDASampler, {"temperature": float("inf")}, ValueError, "temperature is inf"),
        (LLaDASampler, {"temperature": 10**400}, ValueError, "expected a finite number >= 0"),
        (LLaDASampler, {"temperature": "hot"}, TypeError, "temperature is 'hot', expected a number"),
        (LLaDASampler, {"cfg_scale": -0.5}, ValueError, "cfg_scale is -0.5"),
        (LLaDASampler, {"remasking": "high"}, ValueError, "remasking is 'high', expected one of 'low_confidence'"),
        (LLaDASampler, {"threshold": 1.5}, ValueError, "threshold is 1.5, expected a number from 0 to 1"),
        (DreamSampler, {"alg": "magic"}, ValueError, "alg is 'magic', expected one of 'entropy'"),
        (DreamSampler, {"alg": ["entropy"]}, ValueError, "alg is"),
        (DreamSampler, {"top_p": 2}, ValueError, "top_p is 2, expected a number from 0 to 1"),
        (DreamSampler, {"top_k": 0}, ValueError, "top_k is 0, expected an integer >= 1"),
        (DreamSampler, {"alg_temp": None}, TypeError, "alg_temp is None, expected a number"),
        (DreamSampler, {"eps": -1e-3}, ValueError, "eps is -0.001"),
        (DreamSampler, {"remasking": "random"}, TypeError, "remasking"),
    ],
)
def test_options_are_checked(cls, options, error, message) -> None:
    with pytest.raises(error, match=message):
        cls(**options)


def test_samplers_are_frozen_and_compare_by_value() -> None:
    assert LLaDASampler(block_length=4) == LLaDASampler(block_length=4)
    with pytest.raises(AttributeError):
        LLaDASampler().temperature = 1.0
