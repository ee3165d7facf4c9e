"""Keeps keys and values between forward passes, so that cached decoding need not recompute every token."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ..kernels import ops
from ..kernels.packed_key_values import PackedKeyValues
from .config import ModelConfig
from .inputs import BoolArray, IntArray, require_same_mask

Array = NDArray[Any]


class KeyValues:
    """The rotated keys and the values of all layers, packed. `Transformer.forward` fills and reads it.

    B batch, l sequence length, R tokens that a pass computes, H_kv key/value heads, D head_dim.

    Args:
        config: The model's shape.
        dtype: The dtype of keys and values, "float32" or "bfloat16".
    """

    def __init__(self, config: ModelConfig, dtype: str) -> None:
        self._config = config
        self._dtype = dtype
        self._layers: list[PackedKeyValues] = []  # empty until the first pass
        self._key_mask: BoolArray | None = None

    @property
    def nbytes(self) -> int:
        """The memory of all layers in bytes."""
        return sum(layer.nbytes for layer in self._layers)

    def required_nbytes(self, length: int, batch: int) -> int:
        """Returns the memory in bytes that all layers will take."""
        config = self._config
        layer = PackedKeyValues.required_nbytes(batch, config.num_kv_heads, length, config.head_dim, self._dtype)
        return config.num_layers * layer

    def begin(self, batch: int, length: int, num_computed: int, key_mask: BoolArray | None) -> None:
        """Checks a pass against the earlier ones. The first one makes room for all layers.

        Args:
            batch: B.
            length: l.
            num_computed: R; l in the first pass.
            key_mask: (B, l) or None, the same in every pass.

        Raises:
            ValueError: Some tokens were never computed, or the shape or the mask differs from earlier passes.
            MemoryError: The keys and values of all tokens do not fit into memory.
        """
        if not self._layers:
            if num_computed != length:
                raise ValueError(
                    f"forward: computed has {num_computed} tokens, expected all {length} in the first call"
                )
            ops.require_memory(self.required_nbytes(length, batch), "forward: the keys and values")
            kv_heads, head_dim = self._config.num_kv_heads, self._config.head_dim
            self._layers = [
                PackedKeyValues(batch, kv_heads, length, head_dim, self._dtype, key_mask)
                for _ in range(self._config.num_layers)
            ]
            self._key_mask = None if key_mask is None else key_mask.copy()
        kept_batch, _, kept_length, _ = self._layers[0].shape
        if (kept_batch, kept_length) != (batch, length):
            raise ValueError(
                f"forward: ids has shape {[batch, length]}, expected {[kept_batch, kept_length]} (that of key_values)"
            )
        require_same_mask(self._key_mask, key_mask)

    def update(self, layer: int, positions: IntArray | None, k: Array, v: Array) -> PackedKeyValues:
        """Stores new keys and values and returns those of all tokens.

        Args:
            layer: The number of the layer, from 0.
            positions: (R,) ascending, the positions of the new ones; None: all positions.
            k: (B, H_kv, R, D).
            v: (B, H_kv, R, D).
        """
        packed = self._layers[layer]
        packed.update(positions, k, v)
        return packed
