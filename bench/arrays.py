"""Inputs of the benchmarks, and the float64 results that they are checked against."""

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
# Rows of a long result that are compared with float64; the first and the last are always among them.
_CHECKED_ROWS = 16
_CHECKED_COLUMNS = 256
# Relative errors that no mistake explains: another order of the sums does.
_ROUNDING = {DTYPES["float32"]: 1e-5, DTYPES["float16"]: 1e-3, DTYPES["bfloat16"]: 1e-2}


class CheckError(ValueError):
    """A result is wrong: it is not worth timing."""


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Normally distributed, drawn in float32 row by row so that no large temporary appears."""
    out = np.empty(shape, DTYPES[dtype])
    for row in out.reshape(-1, shape[-2], shape[-1]):
        row[:] = rng.standard_normal(shape[-2:], np.float32)
    return out


def random_qkv(case: AttentionCase, seed: int = 0) -> tuple[Array, Array, Array]:
    """q (1, H, L, D), k and v (1, H_kv, L, D)."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        random_array(rng, (1, heads, case.length, case.head_dim), case.dtype)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    return q, k, v


@dataclass(frozen=True)
class Blocks:
    """A block pattern as a mask, for everybody, and as sparsed's own object."""

    mask: NDArray[np.bool_]  # (1, H, q_blocks, kv_blocks)
    block_size: int
    length: int

    @cached_property
    def pattern(self) -> BlockPattern:
        """The pattern that `sparsed.attention` takes."""
        return BlockPattern.from_mask(self.mask, block_size=self.block_size, q_len=self.length, kv_len=self.length)

    @cached_property
    def density(self) -> float:
        """Share of the (query, key) pairs that are selected; the last block counts with its real size."""
        rows = np.full(self.mask.shape[2], self.block_size, np.float64)
        rows[-1] -= len(rows) * self.block_size - self.length
        heads = self.mask.shape[1]
        return float(np.einsum("q,hqk,k->", rows, self.mask[0].astype(np.float64), rows) / heads / self.length**2)

    def keys(self, head: int, row: int) -> NDArray[np.bool_]:
        """(L,): the keys that a query row attends to."""
        return np.repeat(self.mask[0, head, row // self.block_size], self.block_size)[: self.length]


def random_blocks(length: int, heads: int, block_size: int, density: float, seed: int = 1) -> Blocks:
    """In each row the diagonal block and others drawn at random, as many in every row; each head has its own."""
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
    """Errors against float64, root mean squares over that of the exact values.

    Attributes:
        error: Of the result.
        naive: Of a plain computation in the same dtype.
    """

    error: float
    naive: float

    def fields(self) -> dict[str, float]:
        return {"error": self.error, "error_naive": self.naive, "error_over_naive": self.error / self.naive}


def _judge(name: str, out: Array, exact: Array, naive: Array) -> Accuracy:
    """Refuses a result that is wrong; how exact it is beyond that, the report shows."""
    size = _rms(exact)
    accuracy = Accuracy(_rms(out.astype(np.float64) - exact) / size, _rms(naive - exact) / size)
    bound = max(2 * accuracy.naive, _ROUNDING[out.dtype])
    if not accuracy.error <= bound:
        raise CheckError(f"bench: {name} differs from float64 by {accuracy.error:.2g}, expected at most {bound:.2g}")
    return accuracy


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def check_attention(
    name: str, out: Array, q: Array, k: Array, v: Array, blocks: Blocks | None, *, full: bool
) -> Accuracy:
    """Compares with float64: all rows of all heads, or some rows of the first and the last head.

    Raises:
        CheckError: The error is twice that of a naive computation in the same dtype, and more than rounding.
    """
    heads, length = q.shape[1], q.shape[2]
    drawn = np.random.default_rng(2).integers(0, length, _CHECKED_ROWS - 2)
    rows = np.arange(length) if full else np.unique([0, length - 1, *drawn])
    found, exact, naive = [], [], []
    for head in range(heads) if full else sorted({0, heads - 1}):
        kv_head = head * k.shape[1] // heads
        queries, keys, values = q[0, head, rows], k[0, kv_head], v[0, kv_head]
        live = None if blocks is None else np.stack([blocks.keys(head, int(row)) for row in rows])
        found.append(out[0, head, rows])
        exact.append(_naive_rows(queries, keys, values, live, np.dtype(np.float64)))
        naive.append(_naive_rows(queries, keys, values, live, q.dtype))
    return _judge(name, np.stack(found), np.stack(exact), np.stack(naive))


def _naive_rows(q: Array, k: Array, v: Array, live: NDArray[np.bool_] | None, dtype: np.dtype[Any]) -> Array:
    """softmax(q k^T / sqrt(D)) v of some rows; what a dtype cannot hold is rounded after each operation, as float64."""
    wide: Any = np.float64 if dtype == np.float64 else np.float32
    q, k, v = (array.astype(wide) for array in (q, k, v))
    scores: Array = (q @ k.T * wide(q.shape[1] ** -0.5)).astype(dtype).astype(wide)
    if live is not None:
        scores = np.where(live, scores, -np.inf)
    weights: Array = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(dtype).astype(wide)
    out: Array = (weights @ v).astype(dtype).astype(np.float64)
    return out


def check_linear(name: str, out: Array, x: Array, weight: Array) -> Accuracy:
    """As `check_attention`, for some rows and columns of x weight^T."""
    rows = np.unique(np.linspace(0, len(x) - 1, _CHECKED_ROWS).astype(int))
    columns = np.unique(np.linspace(0, len(weight) - 1, _CHECKED_COLUMNS).astype(int))
    exact = x[rows].astype(np.float64) @ weight[columns].astype(np.float64).T
    naive = (x[rows].astype(np.float32) @ weight[columns].astype(np.float32).T).astype(x.dtype).astype(np.float64)
    return _judge(name, out[np.ix_(rows, columns)], exact, naive)


def check_selection(blocks: Blocks, q: Array, k: Array, parts: list[tuple[range, int]]) -> float:
    """The largest share of probability mass that a row loses against the best choice in float64.

    Args:
        blocks: What was selected.
        q: (1, H, L, D).
        k: (1, H_kv, L, D).
        parts: Key blocks that compete with each other, and how many of them each row keeps.

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
