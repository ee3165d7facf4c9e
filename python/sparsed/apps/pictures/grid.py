"""What every picture of a pattern shares: which row of which generation, and a mask made small."""

from __future__ import annotations

from collections.abc import Iterator
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...kernels.pattern import BlockPattern
from ...kernels.pattern_cache import PatternCache

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


def check_index(where: str, name: str, value: object, count: int) -> int:
    """Returns an index of 0 ... count - 1.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is outside.
    """
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{where}: {name} is {value!r}, expected an integer") from None
    if not 0 <= number < count:
        raise ValueError(f"{where}: {name} is {number}, expected 0 ... {count - 1}")
    return number


def head_masks(pattern: BlockPattern, batch: int) -> NDArray[np.bool_]:
    """(H, q_blocks, kv_blocks): one batch row of the pattern."""
    masks: NDArray[np.bool_] = pattern.to_mask()[batch]
    return masks


class Cells(NamedTuple):
    """Masks drawn small: a cell stands for up to factor x factor blocks; those at the lower and right edge for fewer.

    Attributes:
        counts: (..., rows, columns), the selected blocks of each cell.
        blocks: (rows, columns), all blocks of each cell.
        factor: Blocks on a side of a cell.
    """

    counts: NDArray[np.unsignedinteger[Any]]
    blocks: NDArray[np.unsignedinteger[Any]]
    factor: int

    def shrunk(self, side: int) -> Cells:
        """At most `side` x `side` cells."""
        times = -(-max(self.blocks.shape) // side)
        if times == 1:
            return self
        counts, blocks = (
            _sums(_sums(values, times, -2, times * self.factor**2), times, -1, (times * self.factor) ** 2)
            for values in (self.counts, self.blocks)
        )
        return Cells(counts, blocks, self.factor * times)


def cells_of(masks: NDArray[np.bool_]) -> Cells:
    """Masks (..., m, n), a cell for each block."""
    return Cells(masks.view(np.uint8), np.ones(masks.shape[-2:], np.uint8), 1)


def _sums(values: NDArray[Any], factor: int, axis: int, most: int) -> NDArray[Any]:
    """Sums of `factor` neighbours each along an axis; `most` is the largest that a sum can be."""
    along = np.moveaxis(values, axis, 0)
    total = along[::factor].astype(np.min_scalar_type(most), order="K")
    for first in range(1, factor):
        part = along[first::factor]
        total[: len(part)] += part
    return np.moveaxis(total, 0, axis)


def runs(row: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
    for first, end in edges.reshape(-1, 2):
        yield int(first), int(end)
