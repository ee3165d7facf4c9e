"""The cache that carries block patterns from step to step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

from . import _core
from .arrays import Call
from .config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from .drawing import draw
from .own_selection import BlockGeometry, chosen_pattern
from .pattern import BlockPattern, compiled

__all__ = ["PatternCache"]

Array = TypeVar("Array")


class PatternCache:
    """The state machine dense -> select -> sparse over denoising steps, one pattern per layer.

    One cache serves one generation: ``begin_step`` enters a step, ``attend`` computes a layer's attention in it. A
    batch of classifier-free guidance keeps a pattern for each of its rows.

    Args:
        config: ``SparseConfig``, or a baseline: ``SlidingWindow``, ``StreamingLLM``. A ``BlockPattern``: every layer
            uses it in every step. None: so it is with the patterns that ``set_pattern`` gives to the layers.
        steps: Number of steps T; None: unknown beforehand, then ``begin_step`` of a ``SparseConfig`` needs
            ``unmasked``.
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
        sparse 0.5625
        sparse 0.5625
    """

    def __init__(self, config: Sparse | BlockPattern | None, *, steps: int | None, prompt_length: int) -> None:
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
        call = Call("PatternCache.attend", key_mask, q=q, k=k, v=v)
        with call.current():
            result = call.output()
            self._state.attend(
                layer,
                call["q"],
                call["k"],
                call["v"],
                result.target,
                call.key_mask,
                scale,
                call.stream(),
                *self._own_selection(call, layer, q),
            )
        out: Array = call.finish(result)
        return out

    def _own_selection(self, call: Call, layer: int, q: Any) -> tuple[Any, int, Callable[[], Any]] | tuple[None, ...]:
        """An array for the scores, their block size and what turns them into a pattern, where an own rule selects."""
        config = self.config
        if not isinstance(config, SparseConfig) or isinstance(config.selection, str):
            return None, None, None
        if self.step < 0 or self.phase != "select":
            return None, None, None
        rule, scores = config.selection, call.scores(config.block_size).target

        def choose() -> Any:
            geometry = BlockGeometry(config.block_size, q.shape[2], self._prompt_length, int(layer))
            return compiled(chosen_pattern("PatternCache.attend", rule, scores, geometry, config.generation))

        return scores, config.block_size, choose

    def pattern(self, layer: int) -> BlockPattern:
        """Returns the pattern that ``layer`` has selected or was given.

        One that lies on a device comes to the host when it is read.

        Raises:
            ValueError: The layer has none.
        """
        return BlockPattern._of(self._state.pattern(layer))

    def set_pattern(self, layer: int, pattern: BlockPattern) -> None:
        """Gives ``layer`` the pattern that its sparse steps use, until a step selects another one.

        The schedule goes on: with a ``SparseConfig``, steps before the selection stay dense, and the step that selects
        takes the place of the given pattern. In a cache without a config (None) every step uses it.

        Args:
            layer: The layer, from 0.
            pattern: For the sequence's batch, heads and length; queries and keys are the same tokens.

        Raises:
            TypeError: ``pattern`` is not a BlockPattern.
            ValueError: It has another shape than the layer's arrays.
        """
        self._state.set_pattern(layer, compiled(pattern))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the patterns of all layers, and nothing else of the cache, to one file of a versioned format.

        A cache made with a BlockPattern does not know how many layers use it until they have attended. Before its first
        step ``cache.config.save`` writes that pattern, and ``BlockPattern.load`` reads it.

        Raises:
            OSError: The file cannot be written.
            ValueError: No layer holds a pattern, or the cache was made with a BlockPattern and no step has begun.
        """
        if isinstance(self.config, BlockPattern) and (self.step < 0 or not self.layers):
            raise ValueError(
                "PatternCache.save: no layer has attended with the pattern that the cache was made with, expected a "
                "step before, or cache.config.save(path) to write that pattern"
            )
        self._state.save(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> PatternCache:
        """Reads the patterns that ``save`` wrote.

        Returns:
            A cache without a config: it uses the patterns in every step, from step 0 on, and selects nothing. It fits
            sequences of the same length and batch; ``generate(..., sparse=cache)`` uses it for another prompt.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is truncated, damaged or another kind of file.
        """
        state = _core.PatternCache.load(path)
        cache = PatternCache(None, steps=None, prompt_length=state.prompt_length)
        cache._state = state
        return cache

    def density(self, layer: int | None = None) -> float:
        """Returns the share of the blocks that ``layer`` computed in the current step: 1 where it was dense.

        The blocks of a pattern that lies on a device are counted when they are first asked for.

        Args:
            layer: The layer; None: the mean over all layers that have attended in the current step.

        Raises:
            ValueError: The layer, or no layer at all, has attended in the current step.
        """
        return self._state.density(layer)

    @property
    def layers(self) -> list[int]:
        """The layers that hold a pattern, ascending.

        In a cache made with a BlockPattern, a layer holds it as soon as it has attended.
        """
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


def _new_state(config: Sparse | BlockPattern | None, steps: int | None, prompt_length: int) -> _core.PatternCache:
    """The compiled state machine before its first step."""
    if isinstance(config, SparseConfig):
        return _core.PatternCache.sparse(
            steps=steps,
            prompt_length=prompt_length,
            rho=config.rho,
            block_size=config.block_size,
            selection_scale=config.selection_scale,
            isolate=config.isolate,
            min_length=config.min_length,
            generation=config.generation,
            **config._schedule(),
        )
    if isinstance(config, (SlidingWindow, StreamingLLM)):
        return _core.PatternCache.window(
            steps=steps,
            prompt_length=prompt_length,
            window=config.window,
            sinks=config.sinks if isinstance(config, StreamingLLM) else 0,
            block_size=config.block_size,
            generation=config.generation,
        )
    if config is None or isinstance(config, BlockPattern):
        pattern = None if config is None else compiled(config)
        return _core.PatternCache.given(steps=steps, prompt_length=prompt_length, pattern=pattern)
    raise TypeError(
        f"PatternCache: config is a {type(config).__name__}, expected a SparseConfig, SlidingWindow, StreamingLLM, "
        "BlockPattern or None"
    )
