"""What is sparse, and when: the settings that ``generate`` and ``PatternCache`` take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

__all__ = ["BLOCK_SIZES", "SlidingWindow", "Sparse", "SparseConfig", "StreamingLLM"]

BLOCK_SIZES = (16, 32, 64, 128, 256)


def _number(owner: object, field: str, value: Any, low: float, high: float) -> float:
    """Returns a number of [low, high] as a float."""
    where = f"{type(owner).__name__}: {field}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where} is a {type(value).__name__}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = -math.inf if value < 0 else math.inf
    if not low <= number <= high:
        raise ValueError(f"{where} is {value}, expected {low:g} ... {high:g}")
    return number


def _integer(owner: object, field: str, value: Any, low: int) -> int:
    """Returns an integer of at least ``low`` as an int."""
    where = f"{type(owner).__name__}: {field}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{where} is a {type(value).__name__}, expected an int")
    number = int(value)
    if not low <= number < 2**63:
        raise ValueError(f"{where} is {value}, expected {low} ... 2**63 - 1")
    return number


def _block_size(owner: object, value: Any) -> int:
    size = _integer(owner, "block_size", value, 0)
    if size not in BLOCK_SIZES:
        raise ValueError(f"{type(owner).__name__}: block_size is {size}, expected one of {BLOCK_SIZES}")
    return size


@dataclass(frozen=True)
class SparseConfig:
    """SparseD: dense steps, one selection, then sparse steps that reuse the selected pattern.

    T is the number of denoising steps.

    Attributes:
        skip: Share of the steps, 0 ... 1, up to the selection.
        rho: Share of the key blocks, 0 ... 1, that a query block keeps.
        block_size: Tokens per block: 16, 32, 64, 128 or 256.
        selection: ``"paper"`` or ``"reference"`` (what the authors' code does).
        selection_scale: Scale of the scores in the selection; None: the attention's own.
        isolate: Select among prompt and generation blocks apart; False: one top-k over all blocks.
        refresh: Further fractions of T, increasing and above ``skip``, at which the pattern is selected anew;
            ``"every"`` selects at each step after the first selection.
        min_length: Shorter sequences stay dense; 0: always sparse.

    Raises:
        TypeError, ValueError: A field of another type or outside its range.

    Source: arXiv 2509.24014, section 4.
    """

    skip: float = 0.2
    rho: float = 0.3
    block_size: int = 128
    selection: Literal["paper", "reference"] = "paper"
    selection_scale: float | None = None
    isolate: bool = True
    refresh: Sequence[float] | Literal["every"] = ()
    min_length: int = 2048

    def __post_init__(self) -> None:
        """Checks every field and stores plain Python types."""
        values = {
            "skip": _number(self, "skip", self.skip, 0, 1),
            "rho": _number(self, "rho", self.rho, 0, 1),
            "block_size": _block_size(self, self.block_size),
            "selection_scale": self._checked_scale(),
            "refresh": self._checked_refresh(),
            "min_length": _integer(self, "min_length", self.min_length, 0),
        }
        if self.selection not in ("paper", "reference"):
            raise ValueError(f'SparseConfig: selection is {self.selection!r}, expected "paper" or "reference"')
        if not isinstance(self.isolate, bool):
            raise TypeError(f"SparseConfig: isolate is a {type(self.isolate).__name__}, expected a bool")
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def _checked_scale(self) -> float | None:
        if self.selection_scale is None:
            return None
        scale = _number(self, "selection_scale", self.selection_scale, -math.inf, math.inf)
        if not 0 < scale < math.inf:
            raise ValueError(f"SparseConfig: selection_scale is {scale}, expected a finite number above 0")
        return scale

    def _checked_refresh(self) -> tuple[float, ...] | Literal["every"]:
        if isinstance(self.refresh, str):
            if self.refresh != "every":
                raise ValueError(f'SparseConfig: refresh is {self.refresh!r}, expected fractions or "every"')
            return "every"
        if not isinstance(self.refresh, Sequence):
            raise TypeError(
                f'SparseConfig: refresh is a {type(self.refresh).__name__}, expected a tuple of fractions or "every"'
            )
        fractions = tuple(_number(self, f"refresh[{i}]", value, 0, 1) for i, value in enumerate(self.refresh))
        for i, (before, fraction) in enumerate(zip((self.skip, *fractions), fractions, strict=False)):
            if fraction <= before:
                source = "skip" if i == 0 else "the one before"
                raise ValueError(f"SparseConfig: refresh[{i}] is {fraction}, expected more than {before} ({source})")
        return fractions


@dataclass(frozen=True)
class SlidingWindow:
    """Baseline: each query sees the ``window`` tokens centred on it, in every step.

    Attributes:
        window: Tokens in all, 1 or more; every block that they touch is computed.
        block_size: Tokens per block: 16, 32, 64, 128 or 256.

    Raises:
        TypeError, ValueError: A field of another type or outside its range.
    """

    window: int
    block_size: int = 128

    def __post_init__(self) -> None:
        """Checks every field and stores plain Python types."""
        object.__setattr__(self, "window", _integer(self, "window", self.window, 1))
        object.__setattr__(self, "block_size", _block_size(self, self.block_size))


@dataclass(frozen=True)
class StreamingLLM:
    """Baseline: a sliding window and the first ``sinks`` tokens, in every step.

    Attributes:
        window: Tokens in all, 1 or more, centred on the query; every block that they touch is computed.
        sinks: First tokens, 0 or more; every block that they touch is computed.
        block_size: Tokens per block: 16, 32, 64, 128 or 256.

    Raises:
        TypeError, ValueError: A field of another type or outside its range.
    """

    window: int
    sinks: int
    block_size: int = 128

    def __post_init__(self) -> None:
        """Checks every field and stores plain Python types."""
        object.__setattr__(self, "window", _integer(self, "window", self.window, 1))
        object.__setattr__(self, "sinks", _integer(self, "sinks", self.sinks, 0))
        object.__setattr__(self, "block_size", _block_size(self, self.block_size))


# What `generate`, `PatternCache` and their like take.
Sparse = SparseConfig | SlidingWindow | StreamingLLM
