"""The sparsity settings of ``generate`` and ``PatternCache``: which attention is sparse, and in which steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..checks import Checker
from . import _core
from .own_selection import OwnSelection

__all__ = ["BLOCK_SIZES", "SlidingWindow", "Sparse", "SparseConfig", "StreamingLLM"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
_INT64_MAX = 2**63 - 1  # the kernels count with 64-bit integers


def _integers(owner: Any, **lowest: int) -> None:
    """Checks that fields of `owner` are integers with these lowest values, and stores them as int."""
    check = Checker(type(owner).__name__)
    for field, low in lowest.items():
        check.integer(field, getattr(owner, field), low=low, high=_INT64_MAX)
        object.__setattr__(owner, field, int(getattr(owner, field)))


def _block_size(owner: Any) -> None:
    _integers(owner, block_size=0)
    if owner.block_size not in BLOCK_SIZES:
        raise ValueError(f"{type(owner).__name__}: block_size is {owner.block_size}, expected one of {BLOCK_SIZES}")


def default_generation(selection: Any) -> Literal["dense", "sparse"]:
    """Returns what ``generation`` is where it is not given: the authors' code has no dense rows."""
    return "sparse" if selection == "reference" else "dense"


def _generation(owner: Any, default: Literal["dense", "sparse"]) -> None:
    """Checks the field `generation` of `owner`, and stores `default` where it is None."""
    if owner.generation is None:
        object.__setattr__(owner, "generation", default)
    Checker(type(owner).__name__).choice("generation", owner.generation, ("dense", "sparse"))


def _only_sparse(owner: Any, steps: int) -> list[Literal["dense", "select", "sparse"]]:
    Checker(f"{type(owner).__name__}.phases").integer("steps", steps, low=1, high=_INT64_MAX)
    return ["sparse"] * int(steps)


@dataclass(frozen=True)
class SparseConfig:
    """SparseD: dense steps, one selection, then sparse steps that reuse the selected pattern.

    T is the number of denoising steps. By default this differs from the paper in one point: the query blocks of the
    generation attend to everything, see ``generation``.

    Attributes:
        skip: The fraction of the steps, 0 ... 1, before the selection.
        rho: The fraction of the key blocks, 0 ... 1, that a query block keeps.
        block_size: The number of tokens per block: 16, 32, 64, 128 or 256.
        selection: The selection rule: ``"paper"``, or ``"reference"`` for that of the authors' code. A function is an
            own rule: ``selection(scores, geometry)`` gets the block scores of the dense pass for one row of the batch,
            a new numpy float32 array (1, H, query blocks, key blocks) with the values that
            ``attention_and_select(..., return_scores=True)`` returns, and a ``BlockGeometry``. It returns bool of the
            same shape, True where a key block is kept, at least one for each query block. It is called once for each
            layer and each row of the batch in each step that selects, so that rows do not depend on each other; with
            guidance the twin of a row is a row as well. Where arrays lie on a CUDA device the scores are copied to
            the host, which waits for the pass. Own rules select in the steps of ``"paper"``, and do not see ``rho``
            and ``isolate``.
        selection_scale: The scale of the scores in the selection. None uses the scale of the attention.
        isolate: Whether prompt blocks and generation blocks are selected separately. False selects the top k of all
            blocks together.
        refresh: Further fractions of T, increasing and above ``skip``, at which the pattern is selected again.
            ``"every"`` selects at each step after the first selection.
        min_length: Shorter sequences stay dense. With 0, every sequence is sparse.
        generation: What the query blocks with generation tokens keep, those that hold prompt tokens too among them.
            ``"dense"`` keeps every key block: the pattern is selected while the answer is still masked, and a part of
            the keys that was chosen for masks is not the part that the answer needs. ``"sparse"`` keeps what the rule
            selects, as published; an own rule then decides about all rows. None becomes ``"sparse"`` with
            ``selection="reference"`` and ``"dense"`` with all others; ``dataclasses.replace`` keeps what it became.

    Raises:
        TypeError, ValueError: A field has another type or is outside its range.

    Source: arXiv 2509.24014, section 4, which is ``generation="sparse"``.
    """

    skip: float = 0.2
    rho: float = 0.3
    block_size: int = 128
    selection: Literal["paper", "reference"] | OwnSelection = "paper"
    selection_scale: float | None = None
    isolate: bool = True
    refresh: Sequence[float] | Literal["every"] = ()
    min_length: int = 2048
    generation: Literal["dense", "sparse"] | None = None

    def __post_init__(self) -> None:
        """Checks every field and converts it to a plain Python type."""
        check = Checker("SparseConfig")
        for field in ("skip", "rho"):
            check.number(field, getattr(self, field), low=0, high=1)
            object.__setattr__(self, field, float(getattr(self, field)))
        _block_size(self)
        _integers(self, min_length=0)
        if not callable(self.selection):
            check.choice("selection", self.selection, ("paper", "reference"))
        if not isinstance(self.isolate, bool):
            raise TypeError(f"SparseConfig: isolate is {self.isolate!r}, expected a bool")
        if self.selection_scale is not None:
            check.number("selection_scale", self.selection_scale, low=0, high=1e35)  # the kernels' range of `scale`
            object.__setattr__(self, "selection_scale", float(self.selection_scale))
            if self.selection_scale == 0:
                raise ValueError("SparseConfig: selection_scale is 0.0, expected a finite number above 0")
        object.__setattr__(self, "refresh", self._checked_refresh())
        _generation(self, default_generation(self.selection))

    def phases(self, steps: int) -> list[Literal["dense", "select", "sparse"]]:
        """Returns what each of ``steps`` denoising steps does in a sequence of at least ``min_length`` tokens.

        Args:
            steps: Number of steps T, 1 or more.

        Raises:
            TypeError, ValueError: ``steps`` is not an int, or below 1.
            MemoryError: There are too many steps to list.

        Example:
            >>> SparseConfig(skip=0.5).phases(6)
            ['dense', 'dense', 'select', 'sparse', 'sparse', 'sparse']
        """
        return cast('list[Literal["dense", "select", "sparse"]]', _core.phases(steps=steps, **self._schedule()))

    def _schedule(self) -> dict[str, Any]:
        """The arguments from which the compiled schedule is made."""
        every = self.refresh == "every"
        refresh = [] if every else list(cast("tuple[float, ...]", self.refresh))
        return {"skip": self.skip, "selection": self.selection, "refresh": refresh, "refresh_every": every}

    def _checked_refresh(self) -> tuple[float, ...] | Literal["every"]:
        if isinstance(self.refresh, str):
            if self.refresh != "every":
                raise ValueError(f'SparseConfig: refresh is {self.refresh!r}, expected fractions or "every"')
            return "every"
        if not isinstance(self.refresh, Sequence):
            raise TypeError(f'SparseConfig: refresh is {self.refresh!r}, expected a tuple of fractions or "every"')
        check = Checker("SparseConfig")
        for i, value in enumerate(self.refresh):
            check.number(f"refresh[{i}]", value, low=0, high=1)
        fractions = tuple(float(value) for value in self.refresh)
        for i, (before, fraction) in enumerate(zip((self.skip, *fractions), fractions, strict=False)):
            if fraction <= before:
                source = "skip" if i == 0 else "the one before"
                raise ValueError(f"SparseConfig: refresh[{i}] is {fraction}, expected more than {before} ({source})")
        return fractions


@dataclass(frozen=True)
class SlidingWindow:
    """A baseline in which each query sees the ``window`` tokens centred on it, in every step.

    Attributes:
        window: The number of tokens in the window, 1 or more. Every block that they touch is computed.
        block_size: The number of tokens per block: 16, 32, 64, 128 or 256.
        generation: As in ``SparseConfig``: with ``"dense"`` query blocks with generation tokens see every key, with
            ``"sparse"`` they see the window. None becomes ``"dense"``.

    Raises:
        TypeError, ValueError: A field has another type or is outside its range.
    """

    window: int
    block_size: int = 128
    generation: Literal["dense", "sparse"] | None = None

    def __post_init__(self) -> None:
        """Checks every field and converts it to a plain Python type."""
        _integers(self, window=1)
        _block_size(self)
        _generation(self, "dense")

    def phases(self, steps: int) -> list[Literal["dense", "select", "sparse"]]:
        """Returns ``steps`` times "sparse", as ``SparseConfig.phases``: the window does not depend on the step."""
        return _only_sparse(self, steps)


@dataclass(frozen=True)
class StreamingLLM:
    """A baseline in which each query sees a sliding window and the first ``sinks`` tokens, in every step.

    Attributes:
        window: The number of tokens in the window, 1 or more, centred on the query. Every block that they touch is
            computed.
        sinks: The number of first tokens, 0 or more. Every block that they touch is computed.
        block_size: The number of tokens per block: 16, 32, 64, 128 or 256.
        generation: As in ``SlidingWindow``.

    Raises:
        TypeError, ValueError: A field has another type or is outside its range.
    """

    window: int
    sinks: int
    block_size: int = 128
    generation: Literal["dense", "sparse"] | None = None

    def __post_init__(self) -> None:
        """Checks every field and converts it to a plain Python type."""
        _integers(self, window=1, sinks=0)
        _block_size(self)
        _generation(self, "dense")

    def phases(self, steps: int) -> list[Literal["dense", "select", "sparse"]]:
        """Returns ``steps`` times "sparse", as ``SparseConfig.phases``: the window does not depend on the step."""
        return _only_sparse(self, steps)


# The settings that `generate`, `PatternCache` and similar functions accept.
Sparse = SparseConfig | SlidingWindow | StreamingLLM
