"""Block patterns, and the cache that carries them from step to step."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..checks import Checker
from ..config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from . import _core
from ._core import BlockPattern
from .arrays import arguments
from .drawing import draw

__all__ = ["BlockPattern", "PatternCache"]

Array = TypeVar("Array")


class PatternCache:
    """The state machine dense -> select -> sparse over denoising steps, one pattern per layer.

    One cache serves one generation: ``begin_step`` enters a step, ``attend`` computes a layer's attention in it. A
    batch of classifier-free guidance keeps a pattern for each of its rows.

    Args:
        config: ``SparseConfig``, or a baseline: ``SlidingWindow``, ``StreamingLLM``.
        steps: Number of steps T; None: unknown beforehand, then ``begin_step`` needs ``unmasked``.
        prompt_length: Tokens before the generation.

    Raises:
        TypeError, ValueError: An argument of another type or outside its range.

    Example:
        >>> q = k = v = np.ones((1, 4, 1000, 64), np.float32)
        >>> cache = PatternCache(SparseConfig(skip=0.5, min_length=0), steps=4, prompt_length=900)
        >>> for step in range(4):
        ...     cache.begin_step(step)
        ...     for layer in range(2):
        ...         out = cache.attend(layer, q, k, v)
        ...     print(cache.phase, cache.density(0))
        dense 1.0
        select 1.0
        sparse 0.5
        sparse 0.5
    """

    def __init__(self, config: Sparse, *, steps: int | None, prompt_length: int) -> None:
        self.config = config
        self._steps = steps
        self._prompt_length = prompt_length
        self._state = _new_state(config, steps, prompt_length)

    def begin_step(self, t: int, unmasked: float | None = None) -> None:
        """Enters step t; steps come in order from 0.

        Args:
            t: The step.
            unmasked: Share of the generation, 0 ... 1, that is unmasked as the step begins; needed when ``steps``
                is None.

        Raises:
            ValueError: A step out of order or beyond ``steps``, or a missing ``unmasked``.
        """
        self._state.begin_step(t, unmasked)

    @property
    def phase(self) -> Literal["dense", "select", "sparse"]:
        """What the current step does."""
        return cast('Literal["dense", "select", "sparse"]', self._state.phase)

    @property
    def needs_forward(self) -> bool:
        """Whether the current step must call the model because it selects the pattern that later steps use.

        With ``refresh="every"`` only the first selection counts: each later step selects for itself.
        """
        reselects = isinstance(self.config, SparseConfig) and self.config.refresh == "every" and bool(self.layers)
        return self.phase == "select" and not reselects

    @property
    def step(self) -> int:
        """The current step; -1 before the first."""
        return self._state.step

    def attend(
        self,
        layer: int,
        q: Array,
        k: Array,
        v: Array,
        key_mask: Any = None,
        *,
        scale: float | None = None,
    ) -> Array:
        """Computes one layer's attention in the current step: dense, with selection, or sparse.

        Arrays of any library, as in ``sparsed.attention``. A layer whose arrays lie on a CUDA device keeps its pattern
        there from step to step.

        Args:
            layer: The layer, from 0.
            q: Queries (B, H, L, D).
            k: Keys (B, H_kv, L, D).
            v: Values (B, H_kv, L, D).
            key_mask: (B, L), True for a real key.
            scale: Finite and above 0; None: 1 / sqrt(D).

        Returns:
            out (B, H, L, D) in q's dtype.

        Raises:
            TypeError, ValueError: As ``sparsed.attention``; also no step begun, a layer that never selected, a
                changed shape.
            MemoryError: The output or the workspace cannot fit into memory.
        """
        library, (q, k, v, key_mask) = arguments("PatternCache.attend", key_mask, q=q, k=k, v=v)
        with library.current():
            out: Array = library.wrap(self._state.attend(layer, q, k, v, key_mask, scale, library.memory))
        return out

    def pattern(self, layer: int) -> BlockPattern:
        """Returns the pattern that ``layer`` has selected; one that lies on a device comes to the host when it is read.

        Raises:
            ValueError: The layer has none.
        """
        return self._state.pattern(layer)

    def density(self, layer: int | None = None) -> float:
        """Returns the share of the blocks that ``layer`` computed in the current step: 1 where it was dense.

        Of a pattern that lies on a device it is counted when it is first asked for.
        """
        if layer is None:
            layers = self.layers
            return sum(self._state.density(one) for one in layers) / len(layers) if layers else 1.0
        return self._state.density(layer)

    @property
    def layers(self) -> list[int]:
        """The layers that hold a pattern, ascending."""
        return self._state.layers

    @property
    def nbytes(self) -> int:
        """Bytes of all stored patterns."""
        return self._state.nbytes

    def reset(self) -> None:
        """Forgets patterns, shapes and the step: the cache is as new."""
        self._state.reset()

    def plot_grid(
        self, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None, *, batch: int = 0
    ) -> Any:
        """Draws the patterns of layers (rows) and heads (columns). Needs matplotlib.

        Args:
            layers: None: all that hold a pattern.
            heads: None: all.
            batch: The batch row.

        Returns:
            A matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: A layer without a pattern, or a head or row that does not exist.
        """
        return draw("PatternCache.plot_grid", self, layers, heads, batch=batch)

    def _repr_html_(self) -> str:
        html: str = draw("PatternCache.html", self)
        return html

    def __eq__(self, other: object) -> bool:
        """Whether both have the same arguments, are in the same step and hold the same patterns."""
        if not isinstance(other, PatternCache):
            return NotImplemented
        return self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]  # a cache changes from step to step

    def _content(self) -> tuple[Any, ...]:
        return self.config, self._steps, self._prompt_length, self._state.state()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; patterns on a device come to the host when they are pickled or compared."""
        return {**vars(self), "_state": self._state.state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        vars(self).update(saved)
        self._state = _new_state(self.config, self._steps, self._prompt_length)
        self._state.restore(saved["_state"])


def _new_state(config: Sparse, steps: int | None, prompt_length: int) -> _core.PatternCache:
    """The compiled state machine before its first step."""
    if isinstance(config, SparseConfig):
        every = config.refresh == "every"
        return _core.PatternCache.sparse(
            steps=steps,
            prompt_length=prompt_length,
            skip=config.skip,
            rho=config.rho,
            block_size=config.block_size,
            selection=config.selection,
            selection_scale=config.selection_scale,
            isolate=config.isolate,
            refresh=[] if every else list(cast("tuple[float, ...]", config.refresh)),
            refresh_every=every,
            min_length=config.min_length,
        )
    if isinstance(config, (SlidingWindow, StreamingLLM)):
        return _core.PatternCache.window(
            steps=steps,
            prompt_length=prompt_length,
            window=config.window,
            sinks=config.sinks if isinstance(config, StreamingLLM) else 0,
            block_size=config.block_size,
        )
    raise TypeError(
        f"PatternCache: config is a {type(config).__name__}, expected a SparseConfig, SlidingWindow or StreamingLLM"
    )


def phases(config: SparseConfig, steps: int) -> list[Literal["dense", "select", "sparse"]]:
    """Returns the phase of each step, as ``SparseConfig.phases``."""
    Checker("SparseConfig.phases").integer("steps", steps, low=1)
    cache = PatternCache(config, steps=steps, prompt_length=0)
    found = []
    for step in range(int(steps)):
        cache.begin_step(step)
        found.append(cache.phase)
    return found


def _restore(bits: NDArray[np.uint8], geometry: dict[str, int]) -> BlockPattern:
    blocks = -(-geometry["kv_len"] // geometry["block_size"])
    return BlockPattern.from_mask(np.unpackbits(bits, axis=-1, count=blocks).astype(np.bool_), **geometry)


def _reduce(pattern: BlockPattern) -> tuple[Any, ...]:
    """For copies and pickles: the compiled class cannot be constructed without arguments."""
    geometry = {name: getattr(pattern, name) for name in ("block_size", "q_len", "kv_len", "prompt_length")}
    return _restore, (np.packbits(pattern.to_mask(), axis=-1), geometry)


copyreg.pickle(BlockPattern, _reduce)
