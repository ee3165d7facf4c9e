"""Keys and values that outlive a forward pass: what cached decoding keeps of the tokens that it does not compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops

Array = NDArray[Any]
IntArray = NDArray[np.int64]


class KeyValues:
    """The rotated keys and the values of all layers, (B, l, 2 H_kv, D) each; `forward` fills and reads it."""

    def __init__(self) -> None:
        self._layers: list[Array] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self._layers)

    def update(self, layer: int, positions: IntArray, new: Array, length: int) -> Array:
        """Puts what was computed in place and returns the keys and values of all tokens.

        Args:
            layer: From 0; new layers come in order.
            positions: (R,), which tokens `new` belongs to, ascending.
            new: (B, R, 2 H_kv, D), keys before values.
            length: l.

        Returns:
            (B, l, 2 H_kv, D).

        Raises:
            ValueError: Tokens that were never computed, or another shape than before.
            MemoryError: Keys and values of all tokens do not fit.
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
