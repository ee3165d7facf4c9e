"""The pattern caches of a generation: new ones for settings, or ones with the patterns that `generate` was given."""

from __future__ import annotations

from typing import TypeAlias

from ..kernels.config import Sparse
from ..kernels.pattern import BlockPattern
from ..kernels.pattern_cache import PatternCache
from .sampling import IntArray

SparseOrGiven: TypeAlias = Sparse | PatternCache | BlockPattern


def new_cache(
    sparse: SparseOrGiven,
    *,
    steps: int | None,
    length: int,
    prompt_length: int,
    rows: IntArray,
    num_rows: int,
    guided: bool,
) -> PatternCache:
    """Returns the cache of batch rows that run together. Given patterns are copied, so that they stay as they are.

    Args:
        sparse: Settings, or patterns: those of the layers of a cache, or one for all layers.
        steps: As in `PatternCache`.
        length: Tokens of each row without its padding.
        prompt_length: How many of them come before the generation.
        rows: (n,) the rows that run together.
        num_rows: The rows of the whole batch.
        guided: Whether each row has a twin, all of them behind the rows.

    Raises:
        ValueError: The patterns do not fit.
    """
    if isinstance(sparse, Sparse):
        return PatternCache(sparse, steps=steps, prompt_length=prompt_length)
    twins = [num_rows + rows] if guided else []
    places = [int(row) for part in (rows, *twins) for row in part]

    def part(pattern: BlockPattern, name: str) -> BlockPattern:
        _check_fit(name, pattern, length, prompt_length, num_rows * (1 + guided))
        if pattern.batch == len(places) == num_rows * (1 + guided):
            return pattern
        return pattern[[0] * len(places) if pattern.batch == 1 else places]

    if isinstance(sparse, BlockPattern):
        return PatternCache(part(sparse, "sparse"), steps=steps, prompt_length=prompt_length)
    if not sparse.layers:
        raise ValueError("generate: sparse is a PatternCache that holds no pattern, expected one of each layer")
    cache = PatternCache(None, steps=steps, prompt_length=prompt_length)
    for layer in sparse.layers:
        cache.set_pattern(layer, part(sparse.pattern(layer), f"sparse.pattern({layer})"))
    return cache


def _check_fit(name: str, pattern: BlockPattern, length: int, prompt_length: int, batch: int) -> None:
    if not pattern.q_len == pattern.kv_len == length:
        raise ValueError(
            f"generate: {name} is for {pattern.q_len} queries and {pattern.kv_len} keys, expected {length} "
            "(prompt without padding, and generation)"
        )
    if pattern.prompt_length not in (0, prompt_length):
        raise ValueError(
            f"generate: {name} has prompt_length {pattern.prompt_length}, expected {prompt_length} or 0 (not known)"
        )
    if pattern.batch not in (1, batch):
        raise ValueError(
            f"generate: {name} has batch {pattern.batch}, expected {batch} (the rows, and with guidance their twins) "
            "or 1 (for all of them)"
        )
