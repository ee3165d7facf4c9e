"""How likely a text is under a diffusion language model: a Monte-Carlo estimate over masks.

Glossary: p tokens of the prefix, n of the target.

Source: get_loglikelihood, _forward_process and suffix_greedy_prediction in eval_llada.py of ML-GSAI/LLaDA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import Checker, token_row
from ..config import Sparse
from ..kernels.pattern import PatternCache
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
    """An estimate of log p(target | prefix), by `samples` draws of masks over the target.

    A draw masks k of the n target tokens, k spread evenly over 1 ... n within a batch, and weighs the masked tokens'
    log-probabilities by n / k. With sparse attention the batches are the steps: the first ones dense, one that selects,
    the others on its pattern. Where the target is one token and attention is dense, one draw is all there is.

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
        TypeError, ValueError: An argument of another type or outside its range; too few batches for a sparse step.
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
    before, behind = _rows("log_likelihood", model, prefix, target)
    if model.config.shift_logits and not before.size:
        raise ValueError("log_likelihood: prefix is empty, expected a token (the model predicts from the one before)")
    if not behind.size:
        return 0.0
    if len(behind) == 1 and sparse is None:
        samples = batch_size = 1
    rng = np.random.default_rng(seed)
    forwards = samples // batch_size
    expected = f"a smaller batch_size than {batch_size} or more samples than {samples} (lm-eval: mc_num)"
    cache = schedule("log_likelihood", sparse, forwards, len(before), expected)
    log_notes(notes_before(sparse, None, [len(before) + len(behind)]), sparse)

    def masks() -> Iterator[NDArray[np.bool_]]:
        for _ in range(forwards):
            counts = _mask_counts(len(behind), batch_size, rng)
            yield np.stack([rng.permutation(len(behind)) < count for count in counts])

    means = mean_log_probabilities(model, before, behind, masks(), cache, cfg_scale)
    return float(sum(float(batch.sum()) for batch in means) * len(behind) / samples)


def is_greedy(
    model: Model, prefix: ArrayLike, target: ArrayLike, *, cfg_scale: float = 0.0, sparse: Sparse | None = None
) -> bool:
    """Whether the target is what the model writes after the prefix, the most confident token first, one a step.

    Arguments as in `log_likelihood`; the prefix has at least one token.
    """
    before, behind = _rows("is_greedy", model, prefix, target)
    if not behind.size:
        return True
    if not before.size:
        raise ValueError("is_greedy: prefix is empty, expected at least one token")
    sampler = LLaDASampler(cfg_scale=cfg_scale)
    result = generate(model, before, gen_length=len(behind), steps=len(behind), sampler=sampler, sparse=sparse)
    return bool(np.array_equal(result.require_whole().generated[0], behind))


def schedule(owner: str, sparse: Sparse | None, steps: int, prompt_length: int, expected: str) -> PatternCache | None:
    """The cache of an estimate whose batches are the steps; None where it is dense.

    Raises:
        ValueError: No step would be sparse; `expected` says in the name of `owner` what to change.
    """
    if sparse is None:
        return None
    if not ever_sparse(sparse, steps):
        raise ValueError(
            f"{owner}: there are {steps} batches of masks and as many steps, none of them sparse under {sparse}, "
            f"expected {expected}"
        )
    return PatternCache(sparse, steps=steps, prompt_length=prompt_length)


def mean_log_probabilities(
    model: Model,
    before: IntArray,
    behind: IntArray,
    masks: Iterable[NDArray[np.bool_]],
    cache: PatternCache | None,
    cfg_scale: float = 0.0,
) -> Iterator[NDArray[np.float64]]:
    """For each batch of masks (b, n) over the target the mean log-probability of what each row masks, (b,).

    Args:
        model: What `load_model` returns.
        before: (p,) token ids.
        behind: (n,) token ids.
        masks: True where a token is masked, at least one a row; a batch is a forward pass and a step of `cache`.
        cache: None: dense.
        cfg_scale: As in `LLaDASampler`.
    """
    for step, masked in enumerate(masks):
        ids = np.tile(np.concatenate([before, behind]), (len(masked), 1))
        ids[:, len(before) :][masked] = model.config.mask_token_id
        wanted = np.flatnonzero(masked.any(axis=0))
        if cache is not None:
            cache.begin_step(step)
        logits = predict(model, ids, len(before), wanted, cfg_scale, None if cache is None else cache.attend)
        own = masked[:, wanted]
        yield np.array(
            [_log_probability(logits[row, kept], behind[wanted[kept]]) / kept.sum() for row, kept in enumerate(own)]
        )


def _rows(owner: str, model: Model, prefix: ArrayLike, target: ArrayLike) -> tuple[IntArray, IntArray]:
    size = model.config.vocab_size
    return token_row(owner, "prefix", prefix, size), token_row(owner, "target", target, size)


def _mask_counts(length: int, batch_size: int, rng: np.random.Generator) -> IntArray:
    """(batch_size,): how many tokens each draw masks, from a random start evenly around the circle 1 ... length."""
    # Rounded down, so that all counts are equally likely; the published code's rounding of halves prefers even ones.
    steps: IntArray = np.arange(batch_size) * length // batch_size
    return (rng.integers(length) + steps) % length + 1


def _log_probability(logits: FloatArray, tokens: IntArray) -> float:
    """The sum of the tokens' (k,) log-probabilities under logits (k, V)."""
    logits = checked(logits, "log_likelihood")
    above = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(above, tokens[:, None], axis=1)[:, 0]
    return float((own - np.log(np.exp(above).sum(axis=1, dtype=np.float64))).sum())
