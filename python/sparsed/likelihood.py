"""How likely a text is under a diffusion language model: a Monte-Carlo estimate over masks.

Glossary: p tokens of the prefix, n of the target.

Source: get_loglikelihood, _forward_process and suffix_greedy_prediction in eval_llada.py of ML-GSAI/LLaDA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .config import Sparse
from .generate import generate
from .guidance import predict
from .pattern import PatternCache
from .sampling import Checker, FloatArray, IntArray, LLaDASampler

if TYPE_CHECKING:
    from .models import Model


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
    """An estimate of log p(target | prefix), by `samples` draws of masks over the target.

    A draw masks k of the n target tokens, k spread evenly over 1 ... n within a batch, and weighs the masked tokens'
    log-probabilities by n / k. With sparse attention the batches are the steps: the first ones dense, one that selects,
    the others on its pattern.

    Args:
        model: What `load_model` returns.
        prefix: (p,) token ids, at least one where the model shifts its logits (Dream).
        target: (n,) token ids; without any the result is 0.
        samples: Draws, a multiple of `batch_size`.
        batch_size: Draws in one forward pass, whose logits (batch_size, n, V) have to fit into memory.
        cfg_scale: Above 0, guidance as in `LLaDASampler`.
        sparse: None: dense attention.
        seed: Repeats an estimate bit for bit.

    Raises:
        TypeError, ValueError: An argument of another type or outside its range.
        MemoryError: The logits do not fit.
    """
    check = Checker("log_likelihood")
    check.integer("batch_size", batch_size, low=1)
    check.integer("samples", samples, low=1)
    check.number("cfg_scale", cfg_scale, low=0)
    if samples % batch_size:
        raise ValueError(f"log_likelihood: samples is {samples}, expected a multiple of batch_size {batch_size}")
    before, behind = np.asarray(prefix, np.int64), np.asarray(target, np.int64)
    if model.config.shift_logits and not before.size:
        raise ValueError("log_likelihood: prefix is empty, expected a token (the model predicts from the one before)")
    if not behind.size:
        return 0.0
    rng = np.random.default_rng(seed)
    forwards = samples // batch_size
    cache = None if sparse is None else PatternCache(sparse, steps=forwards, prompt_length=len(before))
    total = 0.0
    for step in range(forwards):
        counts = _mask_counts(len(behind), batch_size, rng)
        masked = np.stack([rng.permutation(len(behind)) < count for count in counts])
        ids = np.tile(np.concatenate([before, behind]), (batch_size, 1))
        ids[:, len(before) :][masked] = model.config.mask_token_id
        wanted = np.flatnonzero(masked.any(axis=0))
        attend = None
        if cache is not None:
            cache.begin_step(step)
            attend = cache.attend
        logits = predict(model, ids, len(before), wanted, cfg_scale, attend)
        for row, count in enumerate(counts):
            own = masked[row, wanted]
            total += _log_probability(logits[row, own], behind[wanted[own]]) * len(behind) / count
    return float(total / samples)


def is_greedy(
    model: Model, prefix: ArrayLike, target: ArrayLike, *, cfg_scale: float = 0.0, sparse: Sparse | None = None
) -> bool:
    """Whether the target is what the model writes after the prefix, the most confident token first, one a step.

    Arguments as in `log_likelihood`; the prefix has at least one token.
    """
    behind = np.asarray(target, np.int64)
    if not behind.size:
        return True
    sampler = LLaDASampler(cfg_scale=cfg_scale)
    result = generate(model, prefix, gen_length=len(behind), steps=len(behind), sampler=sampler, sparse=sparse)
    return bool(np.array_equal(result.require_whole().generated[0], behind))


def _mask_counts(length: int, batch_size: int, rng: np.random.Generator) -> IntArray:
    """(batch_size,): how many tokens each draw masks, from a random start evenly around the circle 1 ... length."""
    # Rounded down, so that all counts are equally likely; the published code's rounding of halves prefers even ones.
    steps: IntArray = np.arange(batch_size) * length // batch_size
    return (rng.integers(length) + steps) % length + 1


def _log_probability(logits: FloatArray, tokens: IntArray) -> float:
    """The sum of the tokens' (k,) log-probabilities under logits (k, V)."""
    above = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(above, tokens[:, None], axis=1)[:, 0]
    return float((own - np.log(np.exp(above).sum(axis=1))).sum(dtype=np.float64))
