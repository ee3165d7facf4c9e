"""LLaDA's options for the tokens that end a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference
from fake_model import END, FakeModel, prompt_of
from sampling_rules import rng
from sparsed import LLaDASampler, generate
from sparsed.generation.sampling import Candidates, Request

MASK, ENDS = 0, (2, 4)


def test_logits_eos_inf_never_chooses_eos() -> None:
    logits = (2 * rng().standard_normal((20, 10))).astype(np.float32)
    logits[:10, ENDS[0]] = 20
    given = logits.copy()
    for options in ({}, {"temperature": 0.5}, {"threshold": 0.2}, {"remasking": "random"}):
        sampler: Any = LLaDASampler(logits_eos_inf=True, **options)
        choice = sampler.choose(Request(20, 20, MASK, ENDS), Candidates(np.arange(20), 20), logits, rng())
        closed = np.where(np.arange(10) == ENDS[0], -np.inf, logits)
        assert ENDS[0] not in choice.tokens
        if not options:
            np.testing.assert_array_equal(choice.tokens, closed.argmax(axis=1))
            np.testing.assert_allclose(choice.confidence, reference.softmax(closed)[0].max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(logits, given)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_confidence_eos_eot_inf_lowers_the_confidence_of_ends(temperature) -> None:
    logits = (2 * rng().standard_normal((20, 10))).astype(np.float32)
    logits[3, ENDS[0]] = logits[5, ENDS[1]] = 30
    logits[7] = -np.inf
    logits[7, ENDS[0]] = 0  # nothing else is possible
    plain = LLaDASampler(temperature=temperature).score(Request(20, 4, MASK, ENDS), logits, rng(1))[0]
    sampler = LLaDASampler(temperature=temperature, confidence_eos_eot_inf=True)
    tokens, confidence = sampler.score(Request(20, 4, MASK, ENDS), logits, rng(1))
    np.testing.assert_array_equal(tokens, plain)
    assert {ENDS[0], ENDS[1]} <= set(tokens.tolist())
    for row in range(20):
        expected = 0.0
        if tokens[row] not in ENDS:
            others = np.where(np.isin(np.arange(10), ENDS), -np.inf, logits[row])
            expected = reference.softmax(others[None])[0][0, tokens[row]]
        np.testing.assert_allclose(confidence[row], expected, rtol=1e-5)


def test_ends_are_unmasked_last() -> None:
    class Ending(FakeModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            logits = super().forward(*args, **kwargs)
            logits[:, -4:, END[1]] = 30
            return logits

    options = {"gen_length": 8, "steps": 8}
    first = generate(Ending(), prompt_of(5), sampler=LLaDASampler(), **options)
    assert first.filled_at[0].argmin() >= 4
    last = generate(Ending(), prompt_of(5), sampler=LLaDASampler(confidence_eos_eot_inf=True), **options)
    assert (np.flatnonzero(last.generated[0] == END[1]) == np.flatnonzero(last.filled_at[0] >= 4)).all()
    result = generate(Ending(), prompt_of(5), sampler=LLaDASampler(logits_eos_inf=True), **options)
    assert END[0] not in result.generated


def test_end_tokens_beyond_the_vocabulary_change_nothing() -> None:
    logits = (2 * rng().standard_normal((6, 10))).astype(np.float32)
    request, found = Request(6, 6, MASK, (10, 11)), Candidates(np.arange(6), 3)
    plain = LLaDASampler().choose(request, found, logits, rng())
    for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
        choice = LLaDASampler(**{name: True}).choose(request, found, logits, rng())
        np.testing.assert_array_equal(choice.index, plain.index)
        np.testing.assert_array_equal(choice.tokens, plain.tokens)


def test_end_tokens_must_be_known() -> None:
    model = FakeModel()
    model.config.end_token_ids = ()
    for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
        with pytest.raises(ValueError, match=f"generate: {name} is True, expected a model whose config.json"):
            generate(model, prompt_of(5), gen_length=4, steps=4, sampler=LLaDASampler(**{name: True}))


def test_flags_are_true_or_false() -> None:
    for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
        with pytest.raises(TypeError, match=f"LLaDASampler: {name} is 1, expected True or False"):
            LLaDASampler(**{name: 1})
