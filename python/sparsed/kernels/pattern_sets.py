"""Patterns as sets of blocks: union, intersection, difference, and parts by batch row and head."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeVar

import numpy as np

from . import _core

__all__ = ["PatternSets"]

Pattern = TypeVar("Pattern", bound="PatternSets")


class PatternSets:
    """What makes ``BlockPattern`` a set."""

    __slots__ = ()

    _compiled: _core.BlockPattern

    @classmethod
    def _of(cls: type[Pattern], compiled: _core.BlockPattern) -> Pattern:
        pattern = object.__new__(cls)
        object.__setattr__(pattern, "_compiled", compiled)
        return pattern

    def __or__(self: Pattern, other: Pattern) -> Pattern:
        return self._combined(other, "__or__")

    def __and__(self: Pattern, other: Pattern) -> Pattern:
        return self._combined(other, "__and__")

    def __sub__(self: Pattern, other: Pattern) -> Pattern:
        return self._combined(other, "__sub__")

    def _combined(self: Pattern, other: Pattern, operation: str) -> Pattern:
        if not isinstance(other, PatternSets):
            return NotImplemented
        return self._of(self._compiled.combined(other._compiled, operation))

    def __getitem__(self: Pattern, index: Any) -> Pattern:
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) > 2:
            raise IndexError(f"BlockPattern: {len(parts)} indices are given, expected at most 2 (batch and head)")
        batch, heads = (*parts, slice(None))[:2]
        compiled = self._compiled
        return self._of(compiled.taken(_places("batch", batch, compiled.batch), _places("head", heads, compiled.heads)))

    __iter__ = None  # or Python would iterate over the batch by its old protocol


def _places(name: str, index: Any, count: int) -> list[int]:
    """The places in an axis of `count` entries that an index means."""
    if not isinstance(index, slice):
        places = np.atleast_1d(np.asarray(index))
        listed = isinstance(index, (Integral, Sequence, np.ndarray)) and not isinstance(index, str)
        if not listed or places.ndim != 1 or (places.size and places.dtype.kind not in "iu"):
            raise TypeError(f"BlockPattern: {name} is {index!r:.100}, expected an integer, slice or list of integers")
        index = places.astype(np.int64)
    try:
        found: list[int] = np.arange(count)[index].tolist()
    except IndexError:
        raise IndexError(f"BlockPattern: {name} is {index.tolist()}, expected {-count} ... {count - 1}") from None
    return found
