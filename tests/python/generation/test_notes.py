"""What `generate` says of settings that change nothing, and of sequences that are too long."""

from __future__ import annotations

import logging
import signal

import numpy as np
import pytest

import sparsed
from fake_model import FakeModel, prompt_of
from sparsed import DelayedCache, DreamSampler, LLaDASampler, SlidingWindow, SparseConfig, StreamingLLM, generate
from sparsed.generation.notes import ever_sparse


def settings(**changes) -> SparseConfig:
    return SparseConfig(**{"block_size": 16, "rho": 0.1, "skip": 0.2, "min_length": 0, **changes})


@pytest.mark.parametrize(
    ("sparse", "options", "note"),
    [
        (SparseConfig(), {}, "SparseConfig has no effect: the sequence has 108 tokens, fewer than min_length 2048"),
        (settings(min_length=109), {}, "108 tokens, fewer than min_length 109, so that attention is dense"),
        (settings(rho=1.0), {}, "SparseConfig has no effect: rho is 1, which keeps every block"),
        (settings(skip=1.0), {}, "none of the 8 steps comes after the selection (skip 1.0)"),
        (settings(skip=0.9, selection="reference"), {}, "none of the 8 steps comes after the selection (skip 0.9)"),
        (settings(), {"steps": 1}, "none of the 1 steps comes after the selection (skip 0.2)"),
        (settings(refresh="every"), {"steps": 1}, "none of the 1 steps comes after the selection (skip 0.2, refresh e"),
        (settings(skip=0, refresh=(0.4, 0.6, 0.8, 1)), {"steps": 5}, "none of the 5 steps comes after the selection"),
        # These show in the end only.
        (settings(block_size=256), {}, "SparseConfig had no effect: the patterns hold all blocks (rho"),
        (
            settings(rho=0.99),
            {},
            "the patterns hold all blocks (rho 0.99, block_size 16, generation dense)",
        ),
        (settings(skip=1.0), {"sampler": LLaDASampler(threshold=0.9)}, "no step after the selection called the model"),
        (settings(skip=0.5), {"gen_length": 1}, "SparseConfig had no effect: no step after the selection called"),
        (SlidingWindow(300, 16), {}, "SlidingWindow has no effect: the sequence has 108 tokens, and window 300 (block"),
        (SlidingWindow(8, 128), {}, "window 8 (block_size 128) covers them all"),
        (StreamingLLM(8, 108, 16), {}, "StreamingLLM has no effect: the sequence has 108 tokens, and window 8 with"),
    ],
)
def test_settings_without_effect_say_so(sparse, options, note, caplog) -> None:
    caplog.set_level(logging.DEBUG, "sparsed")
    options = {"gen_length": 8, "steps": 8, **options}
    result = generate(FakeModel(), prompt_of(100), sparse=sparse, **options)
    assert len(result.stats.notes) == 1
    text = result.stats.notes[0].replace(str(100 + options["gen_length"]), "108")
    assert note in text and f"\nnote: {result.stats.notes[0]}\n" in result.stats.table()
    assert [record.getMessage() for record in caplog.records] == result.stats.notes
    assert all(step.density == 1 for step in result.stats if step.forwards)
    dense = generate(FakeModel(), prompt_of(100), **options)
    np.testing.assert_array_equal(result.tokens, dense.tokens)


@pytest.mark.parametrize(
    ("sparse", "options"),
    [
        (None, {}),
        (settings(), {}),
        (settings(min_length=108), {}),
        (settings(skip=0), {"steps": 2}),
        (settings(refresh="every"), {"steps": 2}),
        (settings(skip=0.5), {"sampler": LLaDASampler(threshold=0.9)}),
        (settings(), {"sampler": DreamSampler(alg="origin"), "seed": 1}),
        (SlidingWindow(16, 16), {"steps": 1}),
        (StreamingLLM(16, 16, 16), {}),
    ],
)
def test_settings_with_an_effect_are_quiet(sparse, options, caplog) -> None:
    caplog.set_level(logging.DEBUG, "sparsed")
    result = generate(FakeModel(), prompt_of(100), sparse=sparse, **{"gen_length": 8, "steps": 8, **options})
    assert result.stats.notes == [] and not caplog.records and "note" not in result.stats.table()
    assert (sparse is None) == all(step.density == 1 for step in result.stats if step.forwards)


def test_rows_of_a_batch_are_counted_without_their_padding() -> None:
    ids, mask = sparsed.pad_left([prompt_of(100), prompt_of(20), prompt_of(10)])
    some = generate(FakeModel(), ids, prompt_mask=mask, gen_length=8, steps=8, sparse=settings(min_length=100))
    assert some.stats.notes == [
        "SparseConfig has no effect on 2 of 3 sequences: they have at most 28 tokens, fewer than min_length 100, "
        "so that attention is dense"
    ]
    every = generate(FakeModel(), ids, prompt_mask=mask, gen_length=8, steps=8, sparse=SparseConfig())
    assert every.stats.notes[0].startswith("SparseConfig has no effect on all 3 sequences: they have at most 108")


def test_a_cache_that_skips_nothing() -> None:
    model, tokenizer = sparsed.load_model("demo"), sparsed.load_tokenizer("demo")
    options = {"gen_length": 4, "steps": 4}
    result = generate(model, tokenizer.chat("the sun"), kv_cache=DelayedCache(refresh=1), **options)
    assert result.stats.notes == ["DelayedCache had no effect: every step computed all tokens"]
    assert generate(model, tokenizer.chat("the sun"), kv_cache=DelayedCache(), **options).stats.notes == []


def test_an_interrupted_generation_does_not_know() -> None:
    stop = lambda info: signal.raise_signal(signal.SIGINT)  # noqa: E731
    result = generate(FakeModel(), prompt_of(100), gen_length=8, steps=8, sparse=settings(skip=0.5), on_step=stop)
    assert result.interrupted and result.stats.notes == []


def test_a_note_on_the_same_settings_is_info_once(caplog) -> None:
    caplog.set_level(logging.DEBUG, "sparsed")
    sparse = SparseConfig(min_length=12345)
    for length in (10, 20):
        generate(FakeModel(), prompt_of(length), gen_length=2, steps=2, sparse=sparse)
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG"]


def test_a_likelihood_below_the_minimum_length_says_so(caplog) -> None:
    from sparsed.generation.likelihood import log_likelihood

    caplog.set_level(logging.DEBUG, "sparsed")
    sparse = settings(min_length=50)
    for length in (42, 41):
        log_likelihood(FakeModel(), prompt_of(length), prompt_of(8), samples=10, batch_size=1, sparse=sparse, seed=0)
    assert [record.getMessage() for record in caplog.records] == [
        "SparseConfig has no effect: the sequence has 49 tokens, fewer than min_length 50, so that attention is dense"
    ]


def test_a_schedule_that_selects_at_every_step_is_sparse_where_it_would_be_without() -> None:
    for steps in range(1, 12):
        for skip in (0, 0.3, 0.9, 1):
            for selection in ("paper", "reference"):
                sparse = "sparse" in settings(skip=skip, selection=selection).phases(steps)
                assert ever_sparse(settings(skip=skip, selection=selection), steps) == sparse
                assert ever_sparse(settings(skip=skip, selection=selection, refresh="every"), steps) == sparse


def test_a_sequence_beyond_the_models_length_is_warned_of() -> None:
    model = FakeModel()
    model.config.max_length = 20
    options = {"gen_length": 8, "steps": 8}
    assert generate(model, prompt_of(12), **options).stats.notes == []
    with pytest.warns(sparsed.SparsedWarning, match=r"has 21 tokens, more than the 20 .*max_sequence_length") as warned:
        result = generate(model, prompt_of(13), **options)
    assert warned[0].filename == __file__
    assert result.stats.notes == [str(warned[0].message)]
    ids, mask = sparsed.pad_left([prompt_of(12), prompt_of(5)])
    assert generate(model, ids, prompt_mask=mask, **options).stats.notes == []


def test_unknown_tokens_are_counted() -> None:
    tokenizer = sparsed.load_tokenizer("demo")
    ids = tokenizer.encode("bonjour sun le monde is yellow .", add_special_tokens=False)
    assert tokenizer.count_unknown(ids) == 3 and len(ids) == 7
    assert tokenizer.count_unknown([]) == tokenizer.count_unknown(tokenizer.encode("the sun")) == 0
