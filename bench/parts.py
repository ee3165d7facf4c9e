"""Times denoising steps by part. It wraps the model's operations while a step runs, so the model needs no timers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsed import PatternCache, SparseConfig
from sparsed.kernels import ops
from sparsed.models import Transformer

from .arrays import Array

PHASES = ("dense", "select", "sparse")
# Operations other than linear layers. The rest of a step is numpy's part: copies, rotary tables and the embedding.
_OTHER_OPS = ("rms_norm", "rotary_", "silu_gate_")
# The operation that the time of a function counts for.
_OPERATIONS = {"linear": "linear", "linears": "linear", **{name: name for name in _OTHER_OPS}}
# A schedule with one step per phase: step floor(3 * 0.7) - 1 = 1 selects.
_THREE_STEPS = 3
_SKIP = 0.7


@dataclass
class StepTime:
    """The seconds of one step, in total and by operation."""

    seconds: float = 0.0
    by_operation: dict[str, float] = field(default_factory=dict)
    density: float = 1.0

    @property
    def attention(self) -> float:
        return self.by_operation.get("attention", 0.0)

    @property
    def linear(self) -> float:
        return self.by_operation.get("linear", 0.0)

    @property
    def other(self) -> float:
        """The seconds outside of attention and linear layers."""
        return self.seconds - self.attention - self.linear

    def parts(self) -> dict[str, float]:
        """Returns the seconds by part, which add up to `seconds`."""
        named = {name: self.by_operation.get(name, 0.0) for name in ("attention", "linear", *_OTHER_OPS)}
        return {**named, "rest": self.seconds - sum(named.values())}


class DenoisingSteps:
    """Dense, selecting and sparse steps of a sequence of random tokens, whose generated part is still masked.

    Args:
        model: A loaded model.
        length: The number of tokens of prompt and generation.
        generated: The number of tokens of the generation, whose logits are computed.
        rho: The fraction of the key blocks that SparseD keeps.
        block_size: The number of tokens per block.
    """

    def __init__(self, model: Transformer, length: int, generated: int, *, rho: float, block_size: int) -> None:
        self.model = model
        self.ids: NDArray[np.int64] = np.random.default_rng(0).integers(2, model.config.vocab_size - 1, (1, length))
        self.ids[:, length - generated :] = model.config.mask_token_id
        self.positions = np.arange(length - generated, length)
        config = SparseConfig(skip=_SKIP, rho=rho, block_size=block_size, min_length=0, generation="sparse")
        self.cache = PatternCache(config, steps=_THREE_STEPS, prompt_length=length - generated)

    def run(self, phase: str) -> StepTime:
        """Runs one step. The phases come in the order dense, select, sparse; only `sparse` may be repeated.

        `dense` begins again.
        """
        if phase == "dense":
            self.cache.reset()
        if self.cache.step < PHASES.index(phase):
            self.cache.begin_step(PHASES.index(phase))
        if self.cache.phase != phase:
            raise RuntimeError(f"bench: the step is {self.cache.phase}, expected {phase}")
        result = StepTime()
        attend = _timed("attention", self.cache.attend, result)
        with _timed_operations(result):
            began = time.perf_counter()
            self.model.forward(self.ids, attend=attend, positions=self.positions)
            result.seconds = time.perf_counter() - began
        layers = range(self.model.config.num_layers)
        result.density = sum(self.cache.density(layer) for layer in layers) / len(layers)
        return result

    def cycle(self) -> dict[str, StepTime]:
        """Runs one step of each phase."""
        return {phase: self.run(phase) for phase in PHASES}

    def logits(self) -> Array:
        """Returns the logits of a dense forward pass, for comparisons."""
        return self.model.forward(self.ids, positions=self.positions)


def _timed(name: str, function: Callable[..., Any], result: StepTime) -> Callable[..., Any]:
    """Wraps a function so that its seconds are added to `result`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - began
            result.by_operation[name] = result.by_operation.get(name, 0.0) + seconds

    return wrapper


@contextlib.contextmanager
def _timed_operations(result: StepTime) -> Iterator[None]:
    """Times the operations that models call through the module `sparsed.kernels.ops`."""
    originals = {name: getattr(ops, name) for name in _OPERATIONS}
    for name, function in originals.items():
        setattr(ops, name, _timed(_OPERATIONS[name], function, result))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(ops, name, function)
