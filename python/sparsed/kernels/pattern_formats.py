"""Patterns in the forms of other libraries: block-sparse rows, and flex_attention's BlockMask."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import Checker, id_array
from . import _core

if TYPE_CHECKING:
    from .pattern import BlockPattern

__all__ = ["block_mask_of", "mask_of_block_mask", "mask_of_rows"]

_CHUNK = 1 << 22  # positions of partial blocks that are looked at together


def mask_of_rows(
    indptr: ArrayLike, indices: ArrayLike, batch: int, heads: int, *, block_size: int, q_len: int, kv_len: int
) -> NDArray[np.bool_]:
    """Returns the mask (B, H, q_blocks, kv_blocks) of block-sparse rows, as ``BlockPattern.from_bsr`` takes them."""
    check = Checker("BlockPattern.from_bsr")
    for name, value in {"batch": batch, "heads": heads, "q_len": q_len, "kv_len": kv_len}.items():
        check.integer(name, value, low=0)
    check.integer("block_size", block_size, low=1)
    rows, columns = (id_array(check.owner, name, value) for name, value in (("indptr", indptr), ("indices", indices)))
    shape = tuple(int(size) for size in (batch, heads, -(-q_len // block_size), -(-kv_len // block_size)))
    expected = math.prod(shape[:3]) + 1
    if rows.shape != (expected,):
        raise ValueError(
            f"{check.owner}: indptr has shape {list(rows.shape)}, expected [{expected}] "
            f"(batch {batch} x heads {heads} x {shape[2]} blocks of queries, and one)"
        )
    if columns.ndim != 1:
        raise ValueError(f"{check.owner}: indices has shape {list(columns.shape)}, expected one dimension")
    counts: NDArray[np.int64] = rows[1:].astype(np.int64) - rows[:-1]
    if rows[0] != 0 or (counts < 0).any() or rows[-1] != len(columns):
        raise ValueError(
            f"{check.owner}: indptr goes from {rows[0]} to {rows[-1]}, expected to rise from 0 to {len(columns)} "
            "(the length of indices)"
        )
    outside = np.flatnonzero((columns < 0) | (columns >= shape[3]))
    if outside.size:
        raise ValueError(
            f"{check.owner}: indices[{outside[0]}] is {columns[outside[0]]}, expected 0 ... {shape[3] - 1} "
            f"(blocks of {block_size} in kv_len {kv_len})"
        )
    _core.require_memory(min(math.prod(shape), 2**64 - 1), f"{check.owner}: the mask")
    mask = np.zeros((expected - 1, shape[3]), np.bool_)
    mask[np.repeat(np.arange(expected - 1), counts), columns.astype(np.int64)] = True
    return mask.reshape(shape)


def block_mask_of(pattern: BlockPattern, device: Any) -> Any:
    """Returns flex_attention's BlockMask of a pattern, see ``BlockPattern.to_block_mask``."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    mask, size = pattern.to_mask(), pattern.block_size
    counts = torch.from_numpy(mask.sum(axis=3, dtype=np.int32)).to(device)
    # The selected blocks first, ascending.
    indices = torch.from_numpy(np.argsort(~mask, axis=3, kind="stable").astype(np.int32)).to(device)
    blocks = torch.from_numpy(mask).to(device)

    def mask_mod(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return blocks[batch, head, query // size, key // size]

    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(indices),
        counts,
        indices,
        BLOCK_SIZE=size,
        mask_mod=mask_mod,  # for flex_attention that is not compiled, which looks at nothing else
        seq_lengths=(pattern.q_len, pattern.kv_len),
    )


def mask_of_block_mask(block_mask: Any) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Returns the mask of a BlockMask and the sizes of its pattern, see ``BlockPattern.from_block_mask``."""
    from torch.nn.attention.flex_attention import BlockMask

    function = "BlockPattern.from_block_mask"
    if not isinstance(block_mask, BlockMask):
        raise TypeError(f"{function}: block_mask is a {type(block_mask).__name__}, expected flex_attention's BlockMask")
    (size, kv_size), (q_len, kv_len) = block_mask.BLOCK_SIZE, block_mask.seq_lengths
    if size != kv_size:
        raise ValueError(f"{function}: block_mask has blocks of {size} x {kv_size}, expected square ones")
    if block_mask.kv_indices.ndim != 4:
        raise ValueError(f"{function}: block_mask has {block_mask.kv_indices.ndim} dimensions, expected 4")
    blocks = -(-q_len // size), -(-kv_len // size)
    partial = _dense(block_mask.kv_num_blocks, block_mask.kv_indices, *blocks)
    _check_whole(function, block_mask.mask_mod, partial, size, q_len, kv_len)
    if block_mask.full_kv_num_blocks is not None:
        partial |= _dense(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, *blocks)
    return partial, {"block_size": size, "q_len": q_len, "kv_len": kv_len}


def _dense(counts: Any, indices: Any, q_blocks: int, kv_blocks: int) -> NDArray[np.bool_]:
    """The mask of the first `counts` (B, H, q_blocks) of `indices` (B, H, q_blocks, n)."""
    numbers = indices.cpu().numpy()
    mask = np.zeros((*numbers.shape[:3], max(kv_blocks, numbers.shape[3])), np.bool_)
    batch, head, row, place = np.nonzero(np.arange(numbers.shape[3]) < counts.cpu().numpy()[..., None])
    mask[batch, head, row, numbers[batch, head, row, place]] = True
    return mask[:, :, :q_blocks, :kv_blocks]


def _check_whole(function: str, mask_mod: Any, mask: NDArray[np.bool_], size: int, q_len: int, kv_len: int) -> None:
    """Raises ValueError if `mask_mod` hides a key in one of the blocks of a mask."""
    import torch

    blocks = np.argwhere(mask)
    inside = np.arange(size)
    step = max(1, _CHUNK // size**2)
    for begin in range(0, len(blocks), step):
        batch, head, row, column = (part[:, None, None] for part in blocks[begin : begin + step].T)
        query, key = np.broadcast_arrays(row * size + inside[:, None], column * size + inside)
        real = (query < q_len) & (key < kv_len)
        places = [np.broadcast_to(part, real.shape)[real] for part in (batch, head, query, key)]
        seen = torch.vmap(mask_mod)(*map(torch.from_numpy, places))
        if not bool(seen.all()):
            at = [int(part[int((~seen).nonzero()[0])]) for part in places]
            raise ValueError(
                f"{function}: block_mask hides key {at[3]} from query {at[2]} (batch {at[0]}, head {at[1]}), but not "
                "the whole block, expected only whole blocks"
            )
