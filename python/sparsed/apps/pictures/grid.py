"""What every picture of a pattern shares: which row of which generation, and a mask made small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...kernels.pattern import BlockPattern, PatternCache

if TYPE_CHECKING:
    from ...generation.result import GenerationResult


class RowPatterns(NamedTuple):
    """The patterns of one batch row of a generation: in `cache`, at batch index `batch`."""

    cache: PatternCache
    batch: int


def row_patterns(result: GenerationResult, row: int) -> RowPatterns | None:
    """Where the patterns of a batch row are; None where its attention was dense throughout."""
    for group in result.groups:
        if row in group.batch_indices:
            if group.patterns is None or not group.patterns.layers:
                return None
            return RowPatterns(group.patterns, int(np.flatnonzero(group.batch_indices == row)[0]))
    return None


def check_index(where: str, name: str, value: int, count: int) -> int:
    """Returns an index of 0 ... count - 1.

    Raises:
        ValueError: It is outside.
    """
    if not 0 <= value < count:
        raise ValueError(f"{where}: {name} is {value}, expected 0 ... {count - 1}")
    return int(value)


def head_masks(pattern: BlockPattern, batch: int) -> NDArray[np.bool_]:
    """(H, q_blocks, kv_blocks): one batch row of the pattern."""
    masks: NDArray[np.bool_] = pattern.to_mask()[batch]
    return masks


def shares(mask: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """A mask (m, n) as at most `side` x `side` cells: the share of each cell that is selected."""
    values = mask.astype(np.float64)
    for axis, length in enumerate(mask.shape):
        cells = min(side, length)
        bounds = np.arange(cells) * length // cells
        sizes = np.diff([*bounds, length])
        values = np.add.reduceat(values, bounds, axis=axis) / (sizes if axis else sizes[:, None])
    return values


def runs(row: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
    for first, end in edges.reshape(-1, 2):
        yield int(first), int(end)
