"""The pattern caches of a generation: new ones for settings, or ones with the patterns that `generate` was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..kernels.config import Sparse
from ..kernels.pattern import BlockPattern
from ..kernels.pattern_cache import PatternCache
from .sampling import IntArray

if TYPE_CHECKING:
    from ..models import Model

SparseOrGiven: TypeAlias = Sparse | PatternCache | BlockPattern


@dataclass(frozen=True)
class Places:
    """Where the rows that run together stand in the whole batch, and what their patterns have to fit.

    Attributes:
        model: What `load_model` returns.
        length: Tokens of each row without its padding.
        prompt_length: How many of them come before the generation.
        rows: (n,) the rows that run together.
        num_rows: The rows of the whole batch.
        guided: Whether each row has a twin, all of them behind the rows.
    """

    model: Model
    length: int
    prompt_length: int
    rows: IntArray
    num_rows: int
    guided: bool

    @property
    def num_heads(self) -> int:
        """The query heads that this process computes. The torch engine may split them over processes."""
        return int(getattr(self.model, "num_heads", self.model.config.num_heads))

    @property
    def batch(self) -> int:
        """The rows of the whole batch and their twins."""
        return self.num_rows * (1 + self.guided)

    @property
    def in_batch(self) -> list[int]:
        """The places of the rows that run together, then those of their twins."""
        twins = [self.num_rows + self.rows] if self.guided else []
        return [int(row) for part in (self.rows, *twins) for row in part]


def new_cache(sparse: SparseOrGiven, steps: int | None, places: Places) -> PatternCache:
    """Returns the cache of batch rows that run together. Given patterns are copied, so that they stay as they are.

    Args:
        sparse: Settings, or patterns: those of the layers of a cache, or one for all layers.
        steps: As in `PatternCache`.
        places: Which rows run together.

    Raises:
        ValueError: The patterns do not fit, or one has a query block without a key block.
    """
    if isinstance(sparse, Sparse):
        return PatternCache(sparse, steps=steps, prompt_length=places.prompt_length)
    if isinstance(sparse, BlockPattern):
        return PatternCache(_part(sparse, "sparse", places), steps=steps, prompt_length=places.prompt_length)
    of_all = sparse.config if isinstance(sparse.config, BlockPattern) else None
    _check_layers(sparse.layers, of_all is not None, places.model.config.num_layers)
    if of_all is not None:
        of_all = _part(of_all, "sparse.config", places)
    cache = PatternCache(of_all, steps=steps, prompt_length=places.prompt_length)
    for layer in sparse.layers:
        cache.set_pattern(layer, _part(sparse.pattern(layer), f"sparse.pattern({layer})", places))
    return cache


def _check_layers(layers: list[int], others_have_one: bool, num_layers: int) -> None:
    if not layers and not others_have_one:
        raise ValueError("generate: sparse is a PatternCache that holds no pattern, expected one of each layer")
    if layers and layers[-1] >= num_layers:
        raise ValueError(
            f"generate: sparse holds a pattern of layer {layers[-1]}, expected layers 0 ... {num_layers - 1} "
            "(those of the model)"
        )
    missing = sorted(set(range(num_layers)) - set(layers))
    if missing and not others_have_one:
        raise ValueError(
            f"generate: sparse holds no pattern of layer {missing[0]}, expected one of each layer 0 ... "
            f"{num_layers - 1} (BlockPattern.full keeps a layer dense)"
        )


def _part(pattern: BlockPattern, name: str, places: Places) -> BlockPattern:
    """The pattern of the rows that run together, if it fits."""
    _check_fit(name, pattern, places)
    shared = pattern.batch == 1
    in_batch = [0] if shared else places.in_batch
    part = pattern if len(in_batch) == pattern.batch else pattern[in_batch]
    empty = np.argwhere(~part.to_mask().any(axis=-1))
    if empty.size:
        row, head, block = empty[0]
        raise ValueError(
            f"generate: {name} keeps no key block for query block {block} of head {head} in batch row {in_batch[row]}, "
            "expected at least one"
        )
    return part[[0] * len(places.in_batch)] if shared and len(places.in_batch) > 1 else part


def _check_fit(name: str, pattern: BlockPattern, places: Places) -> None:
    length, prompt_length, batch = places.length, places.prompt_length, places.batch
    if not pattern.q_len == pattern.kv_len == length:
        raise ValueError(
            f"generate: {name} is for {pattern.q_len} queries and {pattern.kv_len} keys, expected {length} "
            "(prompt without padding, and generation)"
        )
    if pattern.prompt_length not in (0, prompt_length):
        raise ValueError(
            f"generate: {name} has prompt_length {pattern.prompt_length}, expected {prompt_length} or 0 (not known)"
        )
    if pattern.heads != places.num_heads:
        raise ValueError(
            f"generate: {name} has heads {pattern.heads}, expected {places.num_heads} (the query heads of the model, "
            "or the part of them that this process computes)"
        )
    if pattern.batch not in (1, batch):
        whose = "the rows and their guiding twins" if places.guided else "the rows"
        expected = "1 (there is one row)" if batch == 1 else f"{batch} ({whose}) or 1 (for all of them)"
        raise ValueError(f"generate: {name} has batch {pattern.batch}, expected {expected}")
