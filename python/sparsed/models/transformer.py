"""The one transformer that runs every family: pre-norm layers of bidirectional attention and a SiLU-gated MLP.

Glossary: B batch, l sequence length, H query heads, H_kv key/value heads, D head_dim, V rows of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import ops
from ..attention import attention
from .config import ModelConfig
from .key_values import KeyValues

Array = NDArray[Any]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Tokens that pass through the MLP at once: it bounds the memory of long sequences and changes no bit.
_MLP_ROWS = 4096


class Attend(Protocol):
    """What `forward` calls for the attention of each layer; `PatternCache.attend` is one."""

    def __call__(self, layer: int, q: Array, k: Array, v: Array, key_mask: BoolArray | None = None) -> Array:
        """Q (B, H, R, D), k and v (B, H_kv, l, D), key_mask (B, l) or None -> (B, H, R, D); R is l but for `rows`."""


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. `qkv` holds the rows of the query, key and value projections one after the other."""

    attention_norm: FloatArray  # (hidden_size,)
    qkv: ops.PackedWeight  # ((H + 2 H_kv) D, hidden_size)
    attention_out: ops.PackedWeight  # (hidden_size, H D)
    mlp_norm: FloatArray  # (hidden_size,)
    gate: ops.PackedWeight  # (intermediate_size, hidden_size)
    up: ops.PackedWeight  # (intermediate_size, hidden_size)
    down: ops.PackedWeight  # (hidden_size, intermediate_size)


class Transformer:
    """A loaded model; `load_model` makes it.

    Attributes:
        config: its shape and arithmetic.
        dtype: what activations and attention are computed in, "float32" or "bfloat16".
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Array,
        layers: tuple[Layer, ...],
        final_norm: FloatArray,
        head: ops.PackedWeight,
        dtype: str,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self._embedding = embedding  # (V, hidden_size), mapped from the checkpoint
        self._layers = layers
        self._final_norm = final_norm
        self._head = head
        self._activations = DTYPES[dtype]
        # Rounded to float32 where the published code rounds: at position 1000 the logits show the difference.
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        powers = config.rope_theta ** exponents.astype(np.float64)
        self._inverse_frequencies: FloatArray = np.float32(1) / powers.astype(np.float32)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Transformer(family={config.family!r}, num_layers={config.num_layers}, hidden_size={config.hidden_size}, "
            f"vocab_size={config.vocab_size}, dtype={self.dtype!r})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory, without the mapped embedding."""
        weights = [self._head]
        for layer in self._layers:
            weights += [layer.qkv, layer.attention_out, layer.gate, layer.up, layer.down]
        norms = (2 * len(self._layers) + 1) * self._final_norm.nbytes
        return norms + sum(weight.nbytes for weight in weights)

    def forward(
        self,
        ids: ArrayLike,
        attend: Attend | None = None,
        positions: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        *,
        key_values: KeyValues | None = None,
        rows: ArrayLike | None = None,
    ) -> FloatArray:
        """The raw logits at `positions`; Dream's are not shifted yet.

        Args:
            ids: (B, l) int, token ids.
            attend: the attention of each layer, see `Attend`. None: dense.
            positions: (P,) int, where logits are wanted. None: everywhere.
            position_ids: (B, l) or (l,) int, the positions that RoPE turns by. None: 0 ... l - 1, and for Dream, where
                a key_mask is given, the number of real tokens before each.
            key_mask: (B, l) bool, True where a token is real; others get no attention. None: all are.
            key_values: keeps keys and values from call to call.
            rows: (R,) int, ascending, with key_values: the tokens to compute, `positions` among them; the others only
                lend the keys and values that they last had. None: all.

        Returns:
            (B, P, V) float32.

        Raises:
            ValueError: a wrong shape, or a value out of range.
            TypeError: a wrong dtype.
            MemoryError: activations and logits do not fit into the memory that is available.

        Source: the forward methods of modeling_llada.py and modeling_dream.py; positions under a mask are those of
            Dream's generation_utils.py.
        """
        tokens = _integers("ids", ids, (2,))
        if tokens.size == 0:
            raise ValueError(f"forward: ids has shape {list(tokens.shape)}, expected at least one token in [B, l]")
        _check_range("ids", tokens, self.config.vocab_size)
        batch, length = tokens.shape
        where = np.arange(length) if positions is None else _integers("positions", positions, (1,))
        _check_range("positions", where, length)
        mask = _key_mask(key_mask, batch, length)
        computed = _rows(rows, key_values, length, where)
        self._require_memory(batch * computed.size, batch * where.size)
        angles = self._position_ids(position_ids, mask, batch, length)[:, computed]
        cos, sin = self._rotary_tables(angles)

        hidden: Array = self._embedding[tokens[:, computed].reshape(-1)].astype(self._activations)  # (B R, hidden_size)
        for number, layer in enumerate(self._layers):
            q, k, v = self._qkv(layer, hidden, cos, sin, batch)
            if key_values is not None:
                new = np.concatenate([k, v], axis=1).transpose(0, 2, 1, 3)
                kept = key_values.update(number, computed, new, length).transpose(0, 2, 1, 3)
                k, v = np.split(kept, 2, axis=1)
            out = (attend or _dense)(number, q, k, v, key_mask=mask)
            hidden = self._attention_out(layer, hidden, q, out)
            hidden = self._mlp(layer, hidden)
        selected = hidden.reshape(batch, computed.size, -1)[:, np.searchsorted(computed, where)]
        selected = selected.reshape(-1, self.config.hidden_size)
        normed = ops.rms_norm(selected, self._final_norm, self.config.rms_norm_eps)
        logits = ops.linear(normed, self._head, out_dtype="float32")
        return logits.reshape(batch, where.size, self.config.vocab_size)

    def _qkv(
        self, layer: Layer, hidden: Array, cos: FloatArray, sin: FloatArray, batch: int
    ) -> tuple[Array, Array, Array]:
        """Rotated queries (B, H, R, D), rotated keys and values (B, H_kv, R, D) of hidden (B R, hidden_size)."""
        config = self.config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        normed = ops.rms_norm(hidden, layer.attention_norm, config.rms_norm_eps)
        qkv = ops.linear(normed, layer.qkv)
        ops.rotary_(qkv[:, : (heads + kv_heads) * head_dim], head_dim, cos, sin)
        by_head = qkv.reshape(batch, -1, heads + 2 * kv_heads, head_dim).transpose(0, 2, 1, 3)
        q, k, v = np.split(by_head, [heads, heads + kv_heads], axis=1)
        return q, k, v

    def _attention_out(self, layer: Layer, hidden: Array, q: Array, out: Array) -> Array:
        """`hidden` + the projected output of the heads, (B R, hidden_size)."""
        if out.shape != q.shape:
            raise ValueError(f"forward: attend returned shape {list(out.shape)}, expected {list(q.shape)} (that of q)")
        joined = np.ascontiguousarray(out.transpose(0, 2, 1, 3), dtype=hidden.dtype)
        return ops.linear(joined.reshape(len(hidden), -1), layer.attention_out, residual=hidden)

    def _mlp(self, layer: Layer, hidden: Array) -> Array:
        """`hidden` + the MLP; (B l, hidden_size) in and out."""
        out = np.empty_like(hidden)
        for begin in range(0, len(hidden), _MLP_ROWS):
            rows = hidden[begin : begin + _MLP_ROWS]
            normed = ops.rms_norm(rows, layer.mlp_norm, self.config.rms_norm_eps)
            gate = ops.linear(normed, layer.gate)
            ops.silu_gate_(gate, ops.linear(normed, layer.up))
            out[begin : begin + _MLP_ROWS] = ops.linear(gate, layer.down, residual=rows)
        return out

    def _require_memory(self, num_tokens: int, num_logits: int) -> None:
        """Refuses a forward whose largest arrays cannot fit: around the attention of a layer, and the logits."""
        config = self.config
        heads = 2 * (config.num_heads + config.num_kv_heads)  # q, k, v and the output
        per_token = (3 * config.hidden_size + heads * config.head_dim) * self._activations.itemsize
        ops.require_memory(num_tokens * per_token + num_logits * config.vocab_size * 4, "forward: a sequence this long")

    def _position_ids(
        self, position_ids: ArrayLike | None, mask: BoolArray | None, batch: int, length: int
    ) -> IntArray:
        """(B, l)."""
        if position_ids is not None:
            given = _integers("position_ids", position_ids, (1, 2))
            if given.shape not in ((length,), (batch, length)):
                raise ValueError(
                    f"forward: position_ids has shape {list(given.shape)}, expected [{batch}, {length}] or [{length}]"
                )
            _check_range("position_ids", given, None)
            return np.broadcast_to(given, (batch, length))
        if mask is not None and self.config.masked_positions:
            return np.where(mask, np.cumsum(mask, axis=1, dtype=np.int64) - 1, 1)
        return np.broadcast_to(np.arange(length), (batch, length))

    def _rotary_tables(self, position_ids: IntArray) -> tuple[FloatArray, FloatArray]:
        """Cosines and sines, (B l, D / 2) float32, with the rounding of the published code."""
        angles = position_ids.reshape(-1, 1).astype(np.float32) * self._inverse_frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        if not self.config.rope_full_precision:
            cos, sin = (table.astype(self._activations).astype(np.float32) for table in (cos, sin))
        return cos, sin


def _dense(layer: int, q: Array, k: Array, v: Array, key_mask: BoolArray | None = None) -> Array:
    return attention(q, k, v, key_mask=key_mask)


def _rows(rows: ArrayLike | None, key_values: KeyValues | None, length: int, positions: IntArray) -> IntArray:
    """The tokens to compute, (R,), checked."""
    if rows is None:
        return np.arange(length)
    if key_values is None:
        raise ValueError("forward: rows given without key_values, expected both")
    computed = _integers("rows", rows, (1,))
    _check_range("rows", computed, length)
    if computed.size == 0 or (np.diff(computed) <= 0).any():
        raise ValueError("forward: rows is empty or out of order, expected ascending positions")
    missing = positions[~np.isin(positions, computed)]
    if missing.size:
        raise ValueError(f"forward: positions has {missing[0]}, expected only positions among rows")
    return computed


def _integers(name: str, values: ArrayLike, dimensions: tuple[int, ...]) -> IntArray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"forward: {name} has dtype {array.dtype}, expected integers")
    if array.ndim not in dimensions:
        expected = " or ".join(str(number) for number in dimensions)
        raise ValueError(f"forward: {name} has shape {list(array.shape)}, expected {expected} dimensions")
    return array.astype(np.int64)


def _check_range(name: str, values: IntArray, count: int | None) -> None:
    """Refuses values that are negative or reach `count`."""
    wrong = values < 0 if count is None else (values < 0) | (values >= count)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        expected = "at least 0" if count is None else f"0 ... {count - 1}"
        raise ValueError(f"forward: {name} is {values[index]} at {list(index)}, expected {expected}")


def _key_mask(key_mask: ArrayLike | None, batch: int, length: int) -> BoolArray | None:
    if key_mask is None:
        return None
    mask = np.asarray(key_mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"forward: key_mask has dtype {mask.dtype}, expected bool")
    if mask.shape != (batch, length):
        raise ValueError(f"forward: key_mask has shape {list(mask.shape)}, expected [{batch}, {length}] (that of ids)")
    return mask
