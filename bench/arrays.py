"""Makes the inputs of the benchmarks, and checks results against float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sparsed import BlockPattern

from .cases import AttentionCase, kept_blocks

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# How many rows and columns of a long result are compared with float64. The first and the last row are among them.
_CHECKED_ROWS = 16
_CHECKED_COLUMNS = 256
# Relative errors up to these come from rounding and from the order of sums.
_ROUNDING = {DTYPES["float32"]: 1e-5, DTYPES["float16"]: 1e-3, DTYPES["bfloat16"]: 1e-2}
# The same for products of int8, whose inputs are rounded to 127 steps.
_INT8_ROUNDING = 5e-2


class CheckError(ValueError):
    """Says that a result is wrong, so that timing it is pointless."""


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Returns normally distributed values. They are drawn matrix by matrix to avoid a large temporary in float32."""
    out = np.empty(shape, DTYPES[dtype])
    for matrix in out.reshape(-1, shape[-2], shape[-1]):
        matrix[:] = rng.standard_normal(shape[-2:], np.float32)
    return out


def random_qkv(case: AttentionCase, seed: int = 0) -> tuple[Array, Array, Array]:
    """Returns random q (1, H, L, D), k and v (1, H_kv, L, D)."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        random_array(rng, (1, heads, case.length, case.head_dim), case.dtype)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    return q, k, v


@dataclass(frozen=True)
class Blocks:
    """A block pattern as a mask, which every contender can use, and as sparsed's `BlockPattern`."""

    mask: NDArray[np.bool_]  # (1, H, q_blocks, kv_blocks)
    block_size: int
    length: int

    @cached_property
    def pattern(self) -> BlockPattern:
        """The pattern that `sparsed.attention` takes."""
        return BlockPattern.from_mask(self.mask, block_size=self.block_size, q_len=self.length, kv_len=self.length)

    @cached_property
    def density(self) -> float:
        """The fraction of the (query, key) pairs that is selected. The last block counts with its real size."""
        sizes = np.full(self.mask.shape[2], self.block_size, np.float64)
        sizes[-1] -= len(sizes) * self.block_size - self.length
        heads = self.mask.shape[1]
        return float(np.einsum("q,hqk,k->", sizes, self.mask[0].astype(np.float64), sizes) / heads / self.length**2)

    def keys(self, head: int, position: int) -> NDArray[np.bool_]:
        """Returns which keys (L,) the query at a position attends to."""
        return np.repeat(self.mask[0, head, position // self.block_size], self.block_size)[: self.length]


def random_blocks(length: int, heads: int, block_size: int, density: float, seed: int = 1) -> Blocks:
    """Selects in each row the diagonal block and random others, separately per head and equally many in each row."""
    rng = np.random.default_rng(seed)
    count = -(-length // block_size)
    keep = kept_blocks(length, block_size, density)
    mask = np.zeros((1, heads, count, count), np.bool_)
    for head in range(heads):
        order = rng.random((count, count))
        np.fill_diagonal(order, -1)
        np.put_along_axis(mask[0, head], np.argpartition(order, keep - 1, axis=1)[:, :keep], True, axis=1)
    return Blocks(mask, block_size, length)


@dataclass(frozen=True)
class Accuracy:
    """Root mean square errors against float64, relative to the root mean square of the exact values.

    Attributes:
        error: The error of the result.
        naive: The error of a plain computation in the same dtype.
    """

    error: float
    naive: float

    def fields(self) -> dict[str, float]:
        return {"error": self.error, "error_naive": self.naive, "error_over_naive": self.error / self.naive}


def _judge(name: str, out: Array, exact: Array, naive: Array, rounding: float | None = None) -> Accuracy:
    """Raises CheckError for a wrong result, and returns the accuracy of a right one for the report.

    `rounding` is the relative error that rounding explains. None means that of the result's dtype.
    """
    size = _rms(exact)
    accuracy = Accuracy(_rms(out.astype(np.float64) - exact) / size, _rms(naive - exact) / size)
    bound = max(2 * accuracy.naive, _ROUNDING[out.dtype] if rounding is None else rounding)
    if not accuracy.error <= bound:
        raise CheckError(f"bench: {name} differs from float64 by {accuracy.error:.2g}, expected at most {bound:.2g}")
    return accuracy


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def check_attention(
    name: str, out: Array, q: Array, k: Array, v: Array, blocks: Blocks | None, *, full: bool
) -> Accuracy:
    """Compares a result with float64: at all queries of all heads, or at some queries of the first and the last head.

    Raises:
        CheckError: The error is more than twice that of a naive computation in the same dtype, and more than rounding.
    """
    heads, length = q.shape[1], q.shape[2]
    drawn = np.random.default_rng(2).integers(0, length, _CHECKED_ROWS - 2)
    positions = np.arange(length) if full else np.unique([0, length - 1, *drawn])
    found, exact, naive = [], [], []
    for head in range(heads) if full else sorted({0, heads - 1}):
        kv_head = head * k.shape[1] // heads
        queries, keys, values = q[0, head, positions], k[0, kv_head], v[0, kv_head]
        live = None if blocks is None else np.stack([blocks.keys(head, int(position)) for position in positions])
        found.append(out[0, head, positions])
        exact.append(_naive_attention(queries, keys, values, live, np.dtype(np.float64)))
        naive.append(_naive_attention(queries, keys, values, live, q.dtype))
    return _judge(name, np.stack(found), np.stack(exact), np.stack(naive))


def _naive_attention(q: Array, k: Array, v: Array, live: NDArray[np.bool_] | None, dtype: np.dtype[Any]) -> Array:
    """Computes softmax(q k^T / sqrt(D)) v for some queries, rounding to `dtype` after each operation, as float64."""
    wide: Any = np.float64 if dtype == np.float64 else np.float32
    q, k, v = (array.astype(wide) for array in (q, k, v))
    scores: Array = (q @ k.T * wide(q.shape[1] ** -0.5)).astype(dtype).astype(wide)
    if live is not None:
        scores = np.where(live, scores, -np.inf)
    weights: Array = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(dtype).astype(wide)
    out: Array = (weights @ v).astype(dtype).astype(np.float64)
    return out


def check_linear(name: str, out: Array, x: Array, weight: Array, *, int8: bool = False) -> Accuracy:
    """Compares some rows and columns of x weight^T with float64, as `check_attention` does.

    `int8` says that x and the weight were rounded to int8.
    """
    rows = np.unique(np.linspace(0, len(x) - 1, _CHECKED_ROWS).astype(int))
    columns = np.unique(np.linspace(0, len(weight) - 1, _CHECKED_COLUMNS).astype(int))
    exact = x[rows].astype(np.float64) @ weight[columns].astype(np.float64).T
    naive = (x[rows].astype(np.float32) @ weight[columns].astype(np.float32).T).astype(x.dtype).astype(np.float64)
    return _judge(name, out[np.ix_(rows, columns)], exact, naive, _INT8_ROUNDING if int8 else None)


def check_selection(blocks: Blocks, q: Array, k: Array, parts: list[tuple[range, int]]) -> float:
    """Returns the largest fraction of probability mass that a row loses compared with the best choice in float64.

    Args:
        blocks: The selected blocks.
        q: (1, H, L, D).
        k: (1, H_kv, L, D).
        parts: The ranges of key blocks that compete with each other, and how many of each range a row keeps.

    Raises:
        CheckError: A row keeps another number of blocks, or loses more mass than rounding explains.
    """
    loss = 0.0
    heads, length = q.shape[1:3]
    edges = np.arange(0, length, blocks.block_size)
    for head in range(heads):
        scores = q[0, head].astype(np.float64) @ k[0, head * k.shape[1] // heads].astype(np.float64).T
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / np.sqrt(q.shape[3]))
        weights /= weights.sum(axis=1, keepdims=True)
        mass = np.add.reduceat(np.add.reduceat(weights, edges, axis=0), edges, axis=1)  # (q_blocks, kv_blocks)
        for part, count in parts:
            chosen, candidates = blocks.mask[0, head][:, part], mass[:, part]
            if not (chosen.sum(axis=1) == count).all():
                raise CheckError(f"bench: selection keeps {chosen.sum(axis=1).tolist()} blocks, expected {count} each")
            best = np.sort(candidates, axis=1)[:, len(part) - count :].sum(axis=1)
            loss = max(loss, float(((best - (candidates * chosen).sum(axis=1)) / best).max()))
    if not loss <= 1e-3:
        raise CheckError(f"bench: selection keeps {loss:.2g} less mass than the best blocks, expected at most 1e-3")
    return loss
