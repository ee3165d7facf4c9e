"""Monte-Carlo likelihoods: against enumerated masks, and with sparse attention."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import reference
import sparsed
from fake_model import FakeModel
from paths import DATA
from sparsed import SlidingWindow, SparseConfig
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.eval import likelihood
from sparsed.generation.likelihood import _mask_counts, is_greedy, log_likelihood
from tiny_checkpoint import tiny_config, write_checkpoint

TEXT = "the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"


@pytest.fixture(params=["llada_8b", "dream_7b"])
def model(request, tmp_path):
    return sparsed.load_model(write_checkpoint(tmp_path, tiny_config(request.param)))


@pytest.fixture(scope="module")
def demo():
    return sparsed.load_model(demo_model_folder()), sparsed.load_tokenizer(demo_model_folder())


def masked_log_probability(model, prefix, target, masked, cfg_scale=0.0):
    """The sum over the masked target tokens, straight from `forward`."""
    shift = int(model.config.shift_logits)
    ids = np.array([*prefix, *target])
    where = len(prefix) + np.array(masked)
    ids[where] = model.config.mask_token_id
    logits = model.forward(ids[None])[0]
    if cfg_scale:
        ids[: len(prefix)] = model.config.mask_token_id
        unconditional = model.forward(ids[None])[0]
        logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
    chosen = logits - reference.softmax(logits)[1][..., None]
    return chosen[where - shift, np.array(target)[masked]].sum()


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_one_token_is_exact(model, cfg_scale) -> None:
    expected = masked_log_probability(model, [5, 6, 7], [8], [0], cfg_scale)
    value = log_likelihood(model, [5, 6, 7], [8], samples=4, batch_size=2, cfg_scale=cfg_scale)
    assert value == pytest.approx(expected, abs=1e-4)


def test_is_the_mean_over_all_masks(model) -> None:
    prefix, target = [5, 6, 7, 8], [9, 10, 11]
    by_count = []
    for count in (1, 2, 3):
        masks = [list(mask) for mask in itertools.combinations(range(3), count)]
        values = [masked_log_probability(model, prefix, target, mask) * 3 / count for mask in masks]
        by_count.append(np.mean(values))
    value = log_likelihood(model, prefix, target, samples=3072, batch_size=96, seed=0)
    assert value == pytest.approx(np.mean(by_count), rel=0.01)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
def test_mask_counts_are_spread_evenly(length, batch_size) -> None:
    rng = np.random.default_rng(0)
    draws = [_mask_counts(length, batch_size, rng) for _ in range(400)]
    assert all(1 <= count <= length for count in np.concatenate(draws))
    for draw in draws[:20]:
        gaps = np.diff(np.sort(draw))
        assert not gaps.size or gaps.max() <= np.ceil(length / batch_size)
    assert np.mean(draws) == pytest.approx((length + 1) / 2, rel=0.15)


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_counts_are_spread_evenly_within_a_batch_and_over_the_batches(batch_size):
    model = FakeModel()
    log_likelihood(model, [5, 6], [7] * 12, samples=6, batch_size=batch_size, seed=0)
    batches = [np.sort((ids == model.config.mask_token_id).sum(axis=1)) for ids in model.ids]
    assert [len(batch) for batch in batches] == [batch_size] * (6 // batch_size)
    assert (np.diff(np.sort(np.concatenate(batches))) == 2).all()
    for batch in batches:
        assert (np.diff(batch) == 12 // batch_size).all()


def test_the_estimate_of_a_held_out_text_is_the_same(model):
    ids = np.random.default_rng(0).integers(5, 60, 90)
    for sparse in (None, SparseConfig(rho=0.3, skip=0.3, block_size=16, min_length=0)):
        held_out = likelihood(model, ids, target=20, draws=8, sparse=sparse, seed=3)
        value = log_likelihood(model, ids[:70], ids[70:], samples=8, sparse=sparse, seed=3)
        assert held_out.nats_per_token == pytest.approx(-value / 20, rel=1e-12)


def test_seeds_repeat(model):
    draw = lambda seed: log_likelihood(model, [5, 6], [7, 8, 9, 10], samples=8, batch_size=4, seed=seed)  # noqa: E731
    assert draw(1) == draw(1) != draw(2)


def test_sparse_attention(model) -> None:
    prefix, target = list(range(5, 85)), list(range(10, 42))
    options = {"samples": 12, "batch_size": 2, "seed": 0}
    dense = log_likelihood(model, prefix, target, **options)
    everything = SparseConfig(rho=1.0, skip=0.0, block_size=16, min_length=0)
    assert log_likelihood(model, prefix, target, sparse=everything, **options) == pytest.approx(dense, rel=1e-4)
    for sparse in (SparseConfig(rho=0.3, skip=0.2, block_size=16, min_length=0), SlidingWindow(32, 16)):
        value = log_likelihood(model, prefix, target, sparse=sparse, **options)
        assert value != dense and value == pytest.approx(dense, rel=0.2)


def test_the_demo_model_knows_the_answer(demo) -> None:
    model, tokenizer = demo
    prompt = tokenizer.chat(TEXT)
    right, wrong = (tokenizer.encode(f"zileba is {number} ;", False) for number in ("107", "701"))
    sparse = SparseConfig(rho=0.9, skip=0.5, block_size=16, min_length=0)
    for options in ({}, {"sparse": sparse}, {"cfg_scale": 0.5}):
        options |= {"samples": 16, "batch_size": 4, "seed": 0}
        assert log_likelihood(model, prompt, right, **options) > log_likelihood(model, prompt, wrong, **options) + 5
    assert is_greedy(model, prompt, right) and is_greedy(model, prompt, right, sparse=sparse)
    assert not is_greedy(model, prompt, wrong)


def test_nothing_is_certain(model) -> None:
    assert log_likelihood(model, [5], []) == 0 and is_greedy(model, [5], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 10, "batch_size": 4}, "log_likelihood: samples is 10, expected a multiple of batch_size 4"),
        ({"samples": 0}, "log_likelihood: samples is 0, expected an integer >= 1"),
        ({"batch_size": 0}, "log_likelihood: batch_size is 0"),
        ({"cfg_scale": -1.0}, "log_likelihood: cfg_scale is -1.0"),
    ],
)
def test_refused_arguments(model, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        log_likelihood(model, [5], [6, 7], **options)


@pytest.mark.parametrize("function", [log_likelihood, is_greedy])
@pytest.mark.parametrize(
    ("prefix", "target", "error", "message"),
    [
        ([5.0], [6], TypeError, "prefix has dtype float64, expected integers"),
        ([5], [True], TypeError, "target has dtype bool, expected integers"),
        ([[5]], [6], ValueError, r"prefix has shape \[1, 1\], expected one dimension"),
        ([5], [6, -1], ValueError, r"target\[1\] is -1, expected 0 \.\.\. "),
        ([5, 10**6], [6], ValueError, r"prefix\[1\] is 1000000, expected 0 \.\.\. "),
    ],
)
def test_refused_ids(model, function, prefix, target, error, message) -> None:
    with pytest.raises(error, match=f"{function.__name__}: {message}"):
        function(model, prefix, target)


def test_is_greedy_needs_a_prefix(model) -> None:
    with pytest.raises(ValueError, match="is_greedy: prefix is empty, expected at least one token"):
        is_greedy(model, [], [5])


def test_a_sparse_step_is_needed(model) -> None:
    sparse = SparseConfig(min_length=0, block_size=16, generation="sparse")
    with pytest.raises(ValueError, match="1 batches .* none of them sparse .* smaller batch_size than 8 or more sam"):
        log_likelihood(model, [5], [6, 7], samples=8, batch_size=8, sparse=sparse)
    every = SparseConfig(min_length=0, block_size=16, refresh="every", generation="sparse")
    for taken in (sparse, every, SlidingWindow(32, 16, "sparse")):
        log_likelihood(model, [5], [6, 7], samples=8, batch_size=4, sparse=taken)
    log_likelihood(model, [5], [6, 7], samples=8, batch_size=8, sparse=SlidingWindow(32, 16, "sparse"))


def test_one_token_takes_one_forward_pass() -> None:
    model = FakeModel()
    assert log_likelihood(model, [5], [6], samples=64, batch_size=4) == log_likelihood(model, [5], [6], samples=1)
    assert [ids.shape for ids in model.ids] == [(1, 2), (1, 2)]


def test_shifted_logits_need_a_prefix(tmp_path) -> None:
    dream = sparsed.load_model(write_checkpoint(tmp_path, tiny_config("dream_7b")))
    with pytest.raises(ValueError, match="log_likelihood: prefix is empty, expected a token"):
        log_likelihood(dream, [], [5])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_that_are_no_answer_are_refused(value, monkeypatch):
    model = FakeModel()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **options: np.where(True, value, forward(*args, **options)))
    for target in ([6], [6, 7]):
        with pytest.raises(ValueError, match="log_likelihood: the model's logits for . of . positions have"):
            log_likelihood(model, [5], target, samples=4, batch_size=2)


def test_an_infinite_logit_is_certain(monkeypatch):
    model = FakeModel()
    certain = np.zeros((1, 1, 40), np.float32)
    certain[..., 6] = np.inf
    monkeypatch.setattr(model, "forward", lambda *args, **options: certain)
    assert log_likelihood(model, [5], [6]) == 0
    assert log_likelihood(model, [5], [7]) == -np.inf


def test_sparse_likelihoods_need_rows_that_can_be_sparse() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    ids = np.random.default_rng(0).integers(0, 100, 200)
    options = {"samples": 4, "seed": 0}
    for sparse in (SparseConfig(skip=0, block_size=32, min_length=0), sparsed.SlidingWindow(32, 32)):
        with pytest.raises(ValueError, match="log_likelihood: prefix has 31 tokens, expected at least one block of 32"):
            log_likelihood(model, ids[:31], ids[31:], sparse=sparse, **options)
        with pytest.raises(ValueError, match="likelihood: prefix has 31 tokens, expected at least one block of 32"):
            likelihood(model, ids, target=len(ids) - 31, draws=4, sparse=sparse)
        log_likelihood(model, ids[:32], ids[32:], sparse=sparse, **options)
        log_likelihood(model, ids[:1], ids[1:], sparse=dataclasses.replace(sparse, generation="sparse"), **options)
    short = SparseConfig(skip=0, block_size=32)  # dense because of min_length, which a note says
    assert log_likelihood(model, ids[:5], ids[5:], sparse=short, **options) == log_likelihood(
        model, ids[:5], ids[5:], **options
    )
