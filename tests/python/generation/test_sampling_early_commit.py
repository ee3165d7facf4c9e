"""Prophet's early commit: when it happens, and that nothing is computed after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fake_model import FakeModel, prompt_of
from sampling_rules import (
    FAMILIES,
    expected_gap,
    expected_rows,
    own_generation,
    prophet_commits,
    rng,
    tiny_model,
)
from sparsed import DreamSampler, DualCache, LLaDASampler, PrefixCache, SparseConfig, generate
from sparsed.generation.sampling import Candidates, Request

MASK = 0
UNREACHABLE = (1e9, 1e9, 1e9)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]


@pytest.mark.parametrize("steps", [1, 3, 32, 100])
def test_the_gap_follows_prophet_s_thirds(family, steps) -> None:
    plan, masked = Request(100, steps, MASK), np.ones(100, bool)
    for step in range(steps):
        found = family(early_commit=True).candidates(plan, step, masked, rng())
        if found.count:
            for gap in (7.5, 7.4, 5.0, 4.9, 2.5, 2.4):
                expected = prophet_commits(gap, (step + 1) / steps, (7.5, 5.0, 2.5))
                assert (gap >= found.commit_gap) == expected


def test_progress_is_the_share_of_unmasked_tokens_where_steps_are_unknown(family) -> None:
    for unmasked in range(100):
        masked = np.arange(100) >= unmasked
        found = family(early_commit=True, factor=1.0).candidates(Request(100, 1, MASK), 7, masked, rng())
        assert found.commit_gap == (7.5 if unmasked < 32 else 5.0 if unmasked < 66 else 2.5)


def test_a_commit_unmasks_the_rest_and_later_steps_call_no_model(family) -> None:
    model = FakeModel(family is DreamSampler)
    sampler = family(early_commit=(9.0, 0.0, 0.0), block_length=6)
    result = generate(model, prompt_of(5), gen_length=12, steps=6, sampler=sampler)
    assert [step.forwards for step in result.stats] == [1, 1, 0, 0, 0, 0]  # the progress after step 1 is a third
    assert len(model.positions) == 2 and len(result.stats) == 6
    early = (result.filled_at[0] == 0).sum()
    assert 0 < early < 6 and (result.filled_at[0] == 1).sum() == 12 - early
    assert np.isfinite(result.confidence).all()


def test_the_gap_decides_at_equality_and_over_all_masked_positions(family) -> None:
    logits = np.zeros((4, 9), np.float32)
    logits[:, 3] = [1, 2, 3, 6]  # the mean gap is 3
    logits[:, MASK] = 100
    for gap, size in ((3.0, 4), (3.001, 1)):
        found = Candidates(np.arange(4), 1, np.arange(2), gap)
        choice = family(early_commit=True).choose(Request(4, 4, MASK), found, logits, rng())
        assert len(choice.index) == size and (choice.tokens == 3).all()
        assert size == 4 or choice.index[0] < 2


def test_gaps_beyond_float32(family) -> None:
    logits = np.full((2, 4), -3e38, np.float32)
    logits[0, 1], logits[1, 2] = 3e38, np.inf
    found = Candidates(np.arange(2), 1, np.arange(2), 1e300)
    assert len(family(early_commit=True).choose(Request(2, 2, MASK), found, logits, rng()).index) == 2


class Open:
    """A model that never gives the mask token, which samplers can draw without early_commit only."""

    def __init__(self, model) -> None:
        self.model, self.config = model, model.config
        self.new_key_values, self.key_values_nbytes = model.new_key_values, model.key_values_nbytes

    def forward(self, ids, *, key_values=None, **options: Any) -> np.ndarray:
        logits = self.model.forward(ids, key_values=key_values, **options)
        logits[..., self.config.mask_token_id] = -np.inf
        return logits


@pytest.mark.parametrize(
    "sampler",
    [
        LLaDASampler,
        lambda **k: LLaDASampler(temperature=0.7, **k),
        lambda **k: LLaDASampler(remasking="random", block_length=4, **k),
        lambda **k: LLaDASampler(threshold=0.3, temperature=0.5, block_length=4, **k),
        lambda **k: DreamSampler(temperature=0.7, top_p=0.9, **k),
        lambda **k: DreamSampler(alg="origin", temperature=0.7, block_length=4, **k),
        lambda **k: DreamSampler(alg="topk_margin", alg_temp=0.5, **k),
        lambda **k: DreamSampler(entropy_bound=1.0, **k),
    ],
)
def test_a_gap_that_is_never_reached_changes_nothing(sampler) -> None:
    for model, kv_cache in (
        (FakeModel(isinstance(sampler(), DreamSampler)), None),
        (Open(tiny_model(type(sampler()))), PrefixCache()),
    ):
        results: Any = [
            generate(model, prompt_of(9), gen_length=12, steps=6, sampler=chosen, kv_cache=kv_cache, seed=1)
            for chosen in (sampler(), sampler(early_commit=UNREACHABLE))
        ]
        np.testing.assert_array_equal(results[0].tokens, results[1].tokens)
        np.testing.assert_array_equal(results[0].filled_at, results[1].filled_at)


def test_rows_of_a_batch_commit_by_themselves(family) -> None:
    model = tiny_model(family)
    prompts = np.stack([prompt_of(9, seed) for seed in range(4)])
    sampler = family(early_commit=(0.5, 0.35, 0.0), block_length=4)
    together = generate(model, prompts, gen_length=12, steps=6, sampler=sampler)
    alone = [generate(model, prompt, gen_length=12, steps=6, sampler=sampler) for prompt in prompts]
    np.testing.assert_array_equal(together.tokens, np.concatenate([result.tokens for result in alone]))
    assert len({int(result.filled_at.max()) for result in alone}) > 1


@pytest.mark.parametrize("kv_cache", [PrefixCache(), DualCache()])
def test_a_commit_with_a_cache(family, kv_cache) -> None:
    model = tiny_model(family)
    sampler = family(early_commit=(1e9, 0.0, 0.0), block_length=6)
    result = generate(model, np.arange(1, 20), gen_length=12, steps=6, sampler=sampler, kv_cache=kv_cache)
    assert (result.filled_at >= 0).all() and [step.forwards for step in result.stats] == [1, 1, 0, 0, 0, 0]


def test_a_commit_with_sparse_attention(family) -> None:
    sparse = SparseConfig(min_length=0, block_size=16, skip=0.5)
    model = FakeModel(family is DreamSampler)
    sampler = family(early_commit=(0.0, 0.0, 0.0))
    result = generate(model, prompt_of(40), gen_length=8, steps=4, sampler=sampler, sparse=sparse)
    assert [step.forwards for step in result.stats] == [1, 0, 0, 0] and (result.filled_at == 0).all()


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("gaps", [(0.3, 0.3, 0.3), (9.0, 0.4, 0.0), (9.0, 9.0, 0.2), (0.0, 9.0, 9.0), (9.0, 9.0, 9.0)])
def test_early_commit_with_a_threshold(family, gaps, block_length) -> None:
    model, prompt = tiny_model(family), prompt_of(9)
    mask = model.config.mask_token_id
    sampler = family(threshold=0.3, early_commit=gaps, block_length=block_length)
    result = generate(model, prompt, gen_length=12, steps=1, sampler=sampler)

    def rows(step: int, inside: int, logits: np.ndarray) -> Any:
        progress = (12 - len(logits) + 1) / 12
        if prophet_commits(expected_gap(logits, mask), progress, gaps):
            return np.arange(len(logits))
        return expected_rows({"threshold": 0.3}, logits[:inside], mask)

    tokens, filled_at = own_generation(model, prompt, 12, block_length, rows)
    np.testing.assert_array_equal(result.generated[0], tokens)
    np.testing.assert_array_equal(result.filled_at[0], filled_at)
