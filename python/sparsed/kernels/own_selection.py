"""Selection rules of the user's own: functions that turn block scores into a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import to_host
from .pattern import BlockPattern

__all__ = ["BlockGeometry", "OwnSelection", "chosen_pattern", "name_of"]


@dataclass(frozen=True)
class BlockGeometry:
    """What the blocks are for which an own rule selects.

    Attributes:
        block_size: Tokens of a block; the last block may be shorter.
        length: Tokens of the sequence, which are queries and keys.
        prompt_length: Tokens before the generation.
        layer: The layer of the model; None where ``attention_and_select`` or ``select`` calls.
    """

    block_size: int
    length: int
    prompt_length: int
    layer: int | None = None

    @property
    def blocks(self) -> int:
        """Blocks of queries, and of keys."""
        return -(-self.length // self.block_size)

    @property
    def first_generation_block(self) -> int:
        """The first block with a generation token, which may hold prompt tokens too; ``blocks`` if there is none."""
        return self.prompt_length // self.block_size if self.prompt_length < self.length else self.blocks


# Of one batch row: scores (1, H, query blocks, key blocks) float32 and the geometry -> bool of the same shape.
OwnSelection: TypeAlias = Callable[[NDArray[np.float32], BlockGeometry], ArrayLike]


def name_of(selection: Any) -> str:
    """Returns the name by which messages and records call an own rule."""
    kind = selection if hasattr(selection, "__qualname__") else type(selection)
    return f"{kind.__module__}.{kind.__qualname__}"


def chosen_pattern(
    function: str, selection: OwnSelection, scores: Any, geometry: BlockGeometry, generation: str | None
) -> BlockPattern:
    """Calls an own rule for each batch row and makes a pattern of what it returns.

    The rule sees one row at a time, so that a row gets the same blocks whichever rows run beside it.

    Args:
        function: The name of the function that error messages begin with.
        selection: The rule.
        scores: The block scores (B, H, query blocks, key blocks) of any library, on any device; the rule gets numpy's.
        geometry: What the rule gets beside them.
        generation: With "dense", the query blocks with generation tokens keep every key block, whatever the rule says.

    Raises:
        TypeError: The rule returned something that is not an array of bool.
        ValueError: It returned another shape, or a query block without a key block.
    """
    name = f"{function}: selection {name_of(selection)}"
    on_host = to_host(scores)
    mask = np.empty(on_host.shape, np.bool_)
    for row in range(len(mask)):
        mask[row] = _mask_of_row(name, row, selection(on_host[row : row + 1], geometry), mask[:1].shape)
        if generation == "dense":
            mask[row, :, geometry.first_generation_block :] = True
        empty = np.argwhere(~mask[row].any(axis=-1))
        if empty.size:
            head, block = empty[0]
            raise ValueError(
                f"{name} returned no key block for query block {block} of head {head} in batch row {row}, "
                "expected at least one"
            )
    lengths = {"q_len": geometry.length, "kv_len": geometry.length, "prompt_length": geometry.prompt_length}
    return BlockPattern.from_mask(mask, block_size=geometry.block_size, **lengths)


def _mask_of_row(name: str, row: int, returned: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """What a rule has returned for one batch row, if it is bool of `shape`."""
    try:
        mask = to_host(returned)
    except (TypeError, ValueError):  # rows of unequal length, or nothing that numpy knows
        kind = type(returned).__name__
        raise TypeError(f"{name} returned a {kind} for batch row {row}, expected bool {list(shape)}") from None
    found = list(mask.shape)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} returned {mask.dtype} {found} for batch row {row}, expected bool {list(shape)}")
    if mask.shape != shape:
        raise ValueError(
            f"{name} returned shape {found} for batch row {row}, expected {list(shape)} (that of the scores)"
        )
    return mask
