"""Keeps keys and values between the forward passes of the torch engine, each layer's on its device."""

from __future__ import annotations

from torch import Tensor

from ..kernels import ops
from ..models.inputs import BoolArray, require_same_mask


class KeyValues:
    """The rotated keys and the values of all layers, two tensors (B, H_kv, l, D) per layer.

    `TorchTransformer.forward` fills and reads them. In a group of processes they hold the heads of this process.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._key_mask: BoolArray | None = None

    @property
    def nbytes(self) -> int:
        """The memory of all layers in bytes."""
        return sum(tensor.nbytes for pair in self._layers for tensor in pair)

    def begin(self, key_mask: BoolArray | None) -> None:
        """Checks the mask (B, l) of a pass against that of the first one.

        Raises:
            ValueError: The masks differ.
        """
        if not self._layers:
            self._key_mask = None if key_mask is None else key_mask.copy()
        require_same_mask(self._key_mask, key_mask)

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Stores new keys and values and returns those of all tokens.

        Args:
            layer: The number of the layer, from 0. The first pass must bring the layers in order.
            k: (B, H_kv, R, D), the rotated keys.
            v: (B, H_kv, R, D), the values.
            positions: (R,) ascending, the positions of the tokens in `k` and `v`.
            length: The sequence length l.

        Returns:
            The keys and values of all tokens, (B, H_kv, l, D): `k` and `v` themselves if they are those of all tokens.

        Raises:
            ValueError: Some tokens were never computed, or the shape differs from earlier calls.
            MemoryError: The keys and values of all tokens do not fit into the memory of the CPU.
        """
        batch, heads, rows, head_dim = k.shape
        shape = (batch, heads, length, head_dim)
        if layer == len(self._layers):
            if rows != length:
                raise ValueError(f"forward: computed has {rows} tokens, expected all {length} in the first call")
            if k.device.type == "cpu":
                ops.require_memory(k.nbytes + v.nbytes, "forward: the keys and values")
            self._layers.append((k.new_empty(shape), v.new_empty(shape)))
        kept_k, kept_v = self._layers[layer]
        if kept_k.shape != shape:
            found = [kept_k.shape[0], kept_k.shape[2]]
            raise ValueError(f"forward: ids has shape {[batch, length]}, expected {found} (that of key_values)")
        if rows == length:
            kept_k.copy_(k)
            kept_v.copy_(v)
            return k, v
        index = positions.to(k.device)
        kept_k.index_copy_(2, index, k)
        kept_v.index_copy_(2, index, v)
        return kept_k, kept_v
