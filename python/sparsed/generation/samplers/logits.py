"""Arithmetic on logits that the samplers share: limits, temperature, filters, softmax, noise, draws."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# Values of one float64 temporary of sampling with noise, 128 MiB; more rows are sampled in parts.
CHUNK_VALUES = 1 << 24
# Likeliest tokens among which top_p looks for its cut before it sorts the whole vocabulary.
_NUCLEUS_GUESS = 1024
# A higher temperature than this changes nothing, but noise times it would leave float64.
HOTTEST = 1e300
_FLOAT32 = np.finfo(np.float32)


def checked(logits: FloatArray, owner: str = "generate") -> FloatArray:
    """Logits (n, V) whose largest value in each row is finite: +inf takes all the probability.

    `owner` is the function that errors name.

    Raises:
        ValueError: A logit is NaN, or a row has none above -inf.
    """
    peak = logits.max(axis=1)
    if np.isfinite(peak).all():
        return logits
    for wrong, what in ((np.isnan(peak), "NaN"), (peak == -np.inf, "no token above -inf")):
        if wrong.any():
            raise ValueError(
                f"{owner}: the model's logits for {np.count_nonzero(wrong)} of {len(logits)} positions have {what}, "
                "expected numbers (damaged weights, or activations that overflow)"
            )
    certain = np.where(logits == np.inf, np.float32(0), np.float32(-np.inf))
    return np.where((peak == np.inf)[:, None], certain, logits)


def without(logits: FloatArray, token_ids: Collection[int]) -> FloatArray:
    """Logits (n, V) with -inf at these tokens, as far as V holds them; `logits` itself stays as it is."""
    if not token_ids:
        return logits
    logits = logits.copy()
    logits[:, [token for token in token_ids if token < logits.shape[1]]] = -np.inf
    return logits


def mean_gap(logits: FloatArray) -> float:
    """Returns the mean over the rows of logits (n, V), checked, of the difference between the two largest values."""
    largest = np.argmax(logits, axis=1)
    rest = logits.copy()
    np.put_along_axis(rest, largest[:, None], -np.inf, axis=1)
    gaps = at(logits, largest).astype(np.float64) - rest.max(axis=1)
    return float(gaps.mean())


def below_peak(logits: FloatArray, peak: FloatArray | None = None) -> FloatArray:
    """Logits (n, V) less the largest of their row; 0 is the largest value of the result."""
    with np.errstate(over="ignore"):  # -inf is the right limit
        return logits - (logits.max(axis=1, keepdims=True) if peak is None else peak)


def tempered(logits: FloatArray, temperature: float) -> FloatArray:
    """Logits (n, V) / temperature, up to a constant of each row; the limits where float32 does not hold them."""
    divisor = np.float32(min(max(temperature, float(_FLOAT32.tiny)), float(_FLOAT32.max)))
    with np.errstate(over="ignore"):
        if (np.abs(logits.max(axis=1)) / divisor <= _FLOAT32.max).all():
            return np.asarray(logits / divisor)
        return np.asarray(below_peak(logits) / divisor)


def guided(conditional: FloatArray, unconditional: FloatArray, cfg_scale: float) -> FloatArray:
    """Unconditional + (cfg_scale + 1) * (conditional - unconditional), all (..., V).

    Where that leaves float32, or both are -inf, the limit, up to a constant of each row.
    """
    factor = np.float32(min(cfg_scale + 1, float(_FLOAT32.max)))
    with np.errstate(over="ignore", invalid="ignore"):
        logits = unconditional + factor * (conditional - unconditional)
        outside = ~np.isfinite(logits).all(axis=-1)
        if outside.any():
            first, second = (part[outside].astype(np.float64) for part in (conditional, unconditional))
            exact = np.where(first == second, first, first + min(cfg_scale, 1e200) * (first - second))
            peak = exact.max(axis=-1, keepdims=True)
            logits[outside] = exact - np.where(np.isfinite(peak), peak, 0)
    return np.asarray(logits)


def in_parts(
    function: Callable[[FloatArray], tuple[IntArray, FloatArray]], logits: FloatArray
) -> tuple[IntArray, FloatArray]:
    """`function` over parts of the rows of logits (n, V), n > 0, so that its temporaries stay small."""
    rows = max(1, CHUNK_VALUES // logits.shape[1])
    parts = [function(logits[start : start + rows]) for start in range(0, len(logits), rows)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities of each row of logits (n, V), none of which is +inf or NaN."""
    weights = np.exp(below_peak(logits))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def at(values: FloatArray, index: IntArray) -> FloatArray:
    """Takes one value per row of values (n, V)."""
    return np.take_along_axis(values, index[:, None], axis=1)[:, 0]


def gumbel_max(logits: FloatArray, temperature: float, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """Takes the arg-max of exp(logits) / (-log u) ** temperature, in logarithms; probability without the noise."""
    tokens = np.argmax(logits + min(temperature, HOTTEST) * rng.gumbel(size=logits.shape), axis=1)
    return tokens, at(softmax(logits), tokens)


def draw(logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """One token per row from softmax(logits), by inversion of its cumulative sum, and its probability."""
    probability = softmax(logits)
    mass = np.cumsum(probability, axis=1, dtype=np.float64)
    target = np.minimum(rng.random(len(logits)) * mass[:, -1], np.nextafter(mass[:, -1], 0))
    tokens = np.argmax(mass > target[:, None], axis=1)
    return tokens, at(probability, tokens)


def filtered(logits: FloatArray, top_k: int | None, top_p: float | None) -> FloatArray:
    """Logits with -inf in place of the tokens that top_k or top_p drops."""
    cutoff = np.full((len(logits), 1), -np.inf, np.float32)
    if top_p is not None and top_p < 1:
        cutoff = _top_p_cutoff(logits, top_p)
    if top_k is not None and top_k < logits.shape[1]:
        kth = logits.shape[1] - top_k
        cutoff = np.maximum(cutoff, np.partition(logits, kth, axis=1)[:, kth : kth + 1])
    if not np.isfinite(cutoff).any():
        return logits
    return np.where(logits < cutoff, np.float32(-np.inf), logits)


def _top_p_cutoff(logits: FloatArray, top_p: float) -> FloatArray:
    """(n, 1): the logit of the token with which the mass of the likeliest tokens first exceeds top_p."""
    vocabulary = logits.shape[1]
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(below_peak(logits)).sum(axis=1, keepdims=True)
    size = min(vocabulary, _NUCLEUS_GUESS)
    while True:
        likeliest = -np.sort(-np.partition(logits, vocabulary - size, axis=1)[:, vocabulary - size :], axis=1)
        exceeds = np.cumsum(np.exp(below_peak(likeliest, peak)) / total, axis=1) > top_p
        if size == vocabulary or exceeds[:, -1].all():
            break
        size = vocabulary
    last = np.where(exceeds[:, -1], np.argmax(exceeds, axis=1), size - 1)
    return np.take_along_axis(likeliest, last[:, None], axis=1)
