"""Keeps keys and values between forward passes, so that cached decoding need not recompute every token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops

Array = NDArray[Any]
IntArray = NDArray[np.int64]


class KeyValues:
    """The rotated keys and the values of all layers, (B, l, 2 H_kv, D) per layer. `forward` fills and reads it."""

    def __init__(self) -> None:
        self._layers: list[Array] = []

    @property
    def nbytes(self) -> int:
        """The memory of all layers in bytes."""
        return sum(layer.nbytes for layer in self._layers)

    def update(self, layer: int, positions: IntArray, new: Array, length: int) -> Array:
        """Stores new keys and values and returns those of all tokens.

        Args:
            layer: The number of the layer, from 0. The first pass must bring the layers in order.
            positions: (R,) ascending, the positions of the tokens in `new`.
            new: (B, R, 2 H_kv, D), keys before values.
            length: The sequence length l.

        Returns:
            The keys and values of all tokens, (B, l, 2 H_kv, D).

        Raises:
            ValueError: Some tokens were never computed, or the shape differs from earlier calls.
            MemoryError: The keys and values of all tokens do not fit into memory.
        """
        shape = (len(new), length, *new.shape[2:])
        if layer == len(self._layers):
            if len(positions) != length:
                raise ValueError(
                    f"forward: computed has {len(positions)} tokens, expected all {length} in the first call"
                )
            ops.require_memory(int(np.prod(shape)) * new.itemsize, "forward: the keys and values")
            self._layers.append(np.empty(shape, new.dtype))
        kept = self._layers[layer]
        if kept.shape != shape:
            raise ValueError(
                f"forward: ids has shape {[len(new), length]}, expected {list(kept.shape[:2])} (that of key_values)"
            )
        kept[:, positions] = new
        return kept
