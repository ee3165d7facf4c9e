"""How likely a text is under a diffusion language model: a Monte-Carlo estimate over masks.

Glossary: p tokens of the prefix, n of the target.

Source: get_loglikelihood, _forward_process and suffix_greedy_prediction in eval_llada.py of ML-GSAI/LLaDA (arXiv
2502.09992, equation 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import Checker, token_row
from ..kernels.config import Sparse
from ..kernels.pattern_cache import PatternCache
from .generate import generate
from .notes import ever_sparse, log_notes, notes_before
from .predict import predict
from .samplers.logits import checked
from .sampling import FloatArray, IntArray, LLaDASampler

if TYPE_CHECKING:
    from ..models import Model


def log_likelihood(
    model: Model,
    prefix: ArrayLike,
    target: ArrayLike,
    *,
    samples: int = 128,
    batch_size: int = 1,
    cfg_scale: float = 0.0,
    sparse: Sparse | None = None,
    seed: int | None = None,
) -> float:
    """Estimates log p(target | prefix) by `samples` draws of masks over the target.

    A draw masks k of the n target tokens and weighs their log-probabilities by n / k. As in the published code, the
    k of a batch are spread evenly over 1 ... n; here those of different batches are spread evenly too. With sparse
    attention the batches are the steps: the first ones are dense, one selects, the others use its pattern. If the
    target is one token and attention is dense, all draws are the same, and one is computed.

    Args:
        model: What `load_model` returns.
        prefix: (p,) token ids, at least one if the model shifts its logits (Dream).
        target: (n,) token ids; without any the result is 0.
        samples: Number of draws, a multiple of `batch_size`.
        batch_size: Draws in one forward pass, whose logits (batch_size, n, V) have to fit into memory.
        cfg_scale: Above 0, guidance as in `LLaDASampler`.
        sparse: None: dense attention.
        seed: Repeats an estimate bit for bit.

    Raises:
        TypeError, ValueError: An argument of another type or outside its range; sparse attention that would compute
            everything (see `require_sparse`).
        MemoryError: The logits do not fit.
    """
    check = Checker("log_likelihood")
    check.integer("batch_size", batch_size, low=1)
    check.integer("samples", samples, low=1)
    check.number("cfg_scale", cfg_scale, low=0)
    check.integer("seed", seed, low=0, optional=True)
    if samples % batch_size:
        raise ValueError(
            f"log_likelihood: samples is {samples}, expected a multiple of batch_size {batch_size} (lm-eval: mc_num)"
        )
    before, behind = _token_rows("log_likelihood", model, prefix, target)
    if model.config.shift_logits and not before.size:
        raise ValueError("log_likelihood: prefix is empty, expected a token (the model predicts from the one before)")
    if not behind.size:
        return 0.0
    expected = f"a smaller batch_size than {batch_size} or more samples than {samples} (lm-eval: mc_num)"
    require_sparse("log_likelihood", sparse, samples // batch_size, expected, len(before), len(behind))
    draws = log_likelihood_draws(model, before, behind, samples, batch_size, cfg_scale, sparse, seed)
    return float(draws.mean())


def is_greedy(
    model: Model, prefix: ArrayLike, target: ArrayLike, *, cfg_scale: float = 0.0, sparse: Sparse | None = None
) -> bool:
    """Returns whether the target is what the model writes after the prefix, one token a step, the surest one first.

    Arguments as in `log_likelihood`; the prefix has at least one token.
    """
    before, behind = _token_rows("is_greedy", model, prefix, target)
    if not behind.size:
        return True
    if not before.size:
        raise ValueError("is_greedy: prefix is empty, expected at least one token")
    sampler = LLaDASampler(cfg_scale=cfg_scale)
    result = generate(model, before, gen_length=len(behind), steps=len(behind), sampler=sampler, sparse=sparse)
    return bool(np.array_equal(result.require_whole().generated[0], behind))


def log_likelihood_draws(
    model: Model,
    prefix: IntArray,
    target: IntArray,
    samples: int,
    batch_size: int = 1,
    cfg_scale: float = 0.0,
    sparse: Sparse | None = None,
    seed: int | None = None,
) -> NDArray[np.float64]:
    """Returns the draws whose mean `log_likelihood` is, (samples,), for checked arguments; (1,) if all are the same."""
    if len(target) == 1 and sparse is None:
        samples = batch_size = 1
    steps = samples // batch_size
    log_notes(notes_before(sparse, None, [len(prefix) + len(target)]), sparse)
    cache = None if sparse is None else PatternCache(sparse, steps=steps, prompt_length=len(prefix))
    rng = np.random.default_rng(seed)
    counts = _mask_counts(len(target), samples, rng).reshape(batch_size, steps)
    draws = np.empty((steps, batch_size))
    # A batch takes every steps-th count. The batches come in random order, so that no phase gets similar counts.
    for step, batch in enumerate(rng.permutation(steps)):
        masked = np.stack([rng.permutation(len(target)) < count for count in counts[:, batch]])
        ids = np.tile(np.concatenate([prefix, target]), (batch_size, 1))
        ids[:, len(prefix) :][masked] = model.config.mask_token_id
        wanted = np.flatnonzero(masked.any(axis=0))
        if cache is not None:
            cache.begin_step(step)
        logits = predict(model, ids, len(prefix), wanted, cfg_scale, None if cache is None else cache.attend)
        for row, masked_wanted in enumerate(masked[:, wanted]):
            log_probability = _log_probability(logits[row, masked_wanted], target[wanted[masked_wanted]])
            draws[step, row] = log_probability * len(target) / counts[row, batch]
    return draws.reshape(-1)


def require_sparse(owner: str, sparse: Sparse | None, steps: int, expected: str, prefix: int, target: int) -> None:
    """Raises ValueError if sparse attention would compute everything.

    Args:
        owner: The function that the message names.
        sparse: None: dense attention, which is meant to compute everything.
        steps: Batches of masks, each of which is a step.
        expected: What `owner` should change if none of the steps is sparse.
        prefix: Tokens before the target.
        target: Tokens of the target, whose query blocks are dense under `generation="dense"`.
    """
    if sparse is None:
        return
    if not ever_sparse(sparse, steps):
        raise ValueError(
            f"{owner}: there are {steps} batches of masks and as many steps, none of them sparse under {sparse}, "
            f"expected {expected}"
        )
    long_enough = prefix + target >= getattr(sparse, "min_length", 0)
    if sparse.generation == "dense" and prefix < sparse.block_size and long_enough:
        raise ValueError(
            f"{owner}: prefix has {prefix} tokens, expected at least one block of {sparse.block_size} or "
            f"generation='sparse' (under {sparse} the target's rows are dense, and there are no other query blocks)"
        )


def _token_rows(owner: str, model: Model, prefix: ArrayLike, target: ArrayLike) -> tuple[IntArray, IntArray]:
    size = model.config.vocab_size
    return token_row(owner, "prefix", prefix, size), token_row(owner, "target", target, size)


def _mask_counts(length: int, samples: int, rng: np.random.Generator) -> IntArray:
    """(samples,): how many tokens each draw masks, from a random start evenly around the circle 1 ... length."""
    # Rounded down, so that all counts are equally likely; the published code's rounding of halves prefers even ones.
    offsets: IntArray = np.arange(samples) * length // samples
    return (rng.integers(length) + offsets) % length + 1


def _log_probability(logits: FloatArray, tokens: IntArray) -> float:
    """The sum of the tokens' (k,) log-probabilities under logits (k, V)."""
    logits = checked(logits, "log_likelihood")
    above = logits - logits.max(axis=1, keepdims=True)
    of_tokens = np.take_along_axis(above, tokens[:, None], axis=1)[:, 0]
    return float((of_tokens - np.log(np.exp(above).sum(axis=1, dtype=np.float64))).sum())
