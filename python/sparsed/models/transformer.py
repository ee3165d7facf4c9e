"""The transformer that runs every family: pre-norm layers of bidirectional attention and a SiLU-gated MLP.

Glossary: B batch, l sequence length, H query heads, H_kv key/value heads, D head_dim, V logits per position,
P positions whose logits are wanted, R tokens that a pass computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels import ops
from ..kernels.attention import attention
from .config import ModelConfig
from .inputs import (
    BoolArray,
    FloatArray,
    IntArray,
    read_computed,
    read_inputs,
    require_activations,
    require_key_values,
)
from .key_values import KeyValues

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# The MLP runs on this many tokens at a time, which bounds the memory of long sequences and does not change the result.
_MLP_TOKENS = 4096


class Attend(Protocol):
    """A function that `forward` calls for the attention of each layer, such as `PatternCache.attend`."""

    def __call__(self, layer: int, q: Array, k: Array, v: Array, key_mask: BoolArray | None = None) -> Array:
        """Computes (B, H, R, D) of q (B, H, R, D), k and v (B, H_kv, l, D) and key_mask (B, l) or None."""


class Model(Protocol):
    """The interface that `generate` needs of a model. The models of every engine have it.

    `generate(kv_cache=...)` also needs `new_key_values`, `key_values_nbytes`, and the arguments `key_values` and
    `computed` of `Transformer.forward`. Models without them keep no keys and values.
    """

    @property
    def config(self) -> ModelConfig:
        """The model's shape and arithmetic."""

    def forward(
        self,
        ids: ArrayLike,
        attend: Attend | None = None,
        positions: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
    ) -> FloatArray:
        """Computes the raw logits, (B, P, V) float32, as `Transformer.forward` describes."""

    def new_key_values(self) -> Any:
        """Returns the engine's empty store of keys and values for `forward`."""

    def key_values_nbytes(self, length: int, batch: int = 1) -> int:
        """Returns the bytes that this store will take for `batch` rows of `length` tokens."""


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. `qkv` holds the rows of the query, key and value projections one after the other.

    Models that do not normalise their queries and keys have no `query_norm` and `key_norm`.
    """

    attention_norm: FloatArray  # (hidden_size,)
    qkv: ops.PackedWeight  # ((H + 2 H_kv) D, hidden_size)
    attention_out: ops.PackedWeight  # (hidden_size, H D)
    mlp_norm: FloatArray  # (hidden_size,)
    gate: ops.PackedWeight  # (intermediate_size, hidden_size)
    up: ops.PackedWeight  # (intermediate_size, hidden_size)
    down: ops.PackedWeight  # (hidden_size, intermediate_size)
    query_norm: FloatArray | None = None  # (D,)
    key_norm: FloatArray | None = None  # (D,)


class Transformer:
    """A loaded model. `load_model` makes it.

    Attributes:
        config: The model's shape and arithmetic.
        dtype: The dtype of activations and attention, "float32" or "bfloat16".
        weights: The dtype of the linear layers' weights, the narrowest one if there are several: "int8", "bfloat16" or
            "float32".
        observe: A function that `forward` calls with the number of a layer, "qkv", "gate_up" or "down", and the input
            (B R, K) of these linear layers. Calibration uses it.
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
        self._embedding = embedding  # (V, hidden_size)
        self._layers = layers
        self._final_norm = final_norm
        self._head = head
        self._linear = [
            weight for layer in layers for weight in (layer.qkv, layer.attention_out, layer.gate, layer.up, layer.down)
        ]
        kept = {weight.dtype for weight in (*self._linear, head)}
        self.weights = next(name for name in ("int8", "bfloat16", "float32") if name in kept)
        self._activations = DTYPES[dtype]
        self.observe: Callable[[int, str, Array], object] | None = None
        self._frequencies = config.rope.frequencies()

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Transformer(family={config.family!r}, num_layers={config.num_layers}, hidden_size={config.hidden_size}, "
            f"vocab_size={config.vocab_size}, dtype={self.dtype!r}, weights={self.weights!r})"
        )

    @property
    def nbytes(self) -> int:
        """The memory of the weights in bytes."""
        norms = (2 * len(self._layers) + 1) * self._final_norm.nbytes
        norms += sum(
            norm.nbytes for layer in self._layers for norm in (layer.query_norm, layer.key_norm) if norm is not None
        )
        return self._embedding.nbytes + norms + sum(weight.nbytes for weight in (self._head, *self._linear))

    def new_key_values(self) -> KeyValues:
        """Returns an empty `KeyValues` for `forward`, which keeps the keys and values of one sequence or batch."""
        return KeyValues(self.config, self.dtype)

    def key_values_nbytes(self, length: int, batch: int = 1) -> int:
        """Returns the memory in bytes that the `KeyValues` of `batch` rows of `length` tokens take."""
        return self.new_key_values().required_nbytes(length, batch)

    def forward(
        self,
        ids: ArrayLike,
        attend: Attend | None = None,
        positions: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        key_mask: ArrayLike | None = None,
        *,
        key_values: KeyValues | None = None,
        computed: ArrayLike | None = None,
    ) -> FloatArray:
        """Computes the raw logits at `positions`. Dream's logits are not shifted here.

        Args:
            ids: (B, l) int, the token ids.
            attend: A function that computes the attention of each layer, see `Attend`. None computes dense attention,
                which is all that there is in a pass that computes some of the tokens.
            positions: (P,) int, the positions whose logits are wanted. None means every position.
            position_ids: (B, l) or (l,) int, the positions that RoPE uses. None means 0 ... l - 1; with Dream and a
                key_mask it means the number of real tokens before each token.
            key_mask: (B, l) bool, True for real tokens. The other tokens get no attention. None means that all tokens
                are real.
            key_values: Keeps keys and values from call to call, see `new_key_values`. Its calls have one shape of ids
                and one key_mask, and the first one computes all tokens.
            computed: (R,) int, ascending, the positions of the tokens to compute; needs key_values and must contain
                `positions`. The other tokens keep the keys and values that they last had. None means all tokens.

        Returns:
            The logits, (B, P, V) float32.

        Raises:
            ValueError: A shape is wrong, or a value is out of range.
            TypeError: A dtype is wrong.
            MemoryError: Activations and logits, or keys and values to keep, do not fit into the available memory.

        Source: The forward methods of modeling_llada.py and modeling_dream.py. Positions with a mask follow Dream's
            generation_utils.py.
        """
        tokens, where, turns, mask = read_inputs(self.config, ids, positions, position_ids, key_mask)
        batch, length = tokens.shape
        in_pass = read_computed(computed, key_values is not None, length, where)
        if attend is not None and in_pass.size < length:
            raise ValueError(
                f"forward: attend is given with computed of {in_pass.size} tokens, expected all {length} tokens or no "
                "attend (a pass that computes some tokens attends densely)"
            )
        require_activations(self.config, self._activations.itemsize, batch * in_pass.size, batch * where.size)
        require_key_values(key_values, KeyValues)
        if key_values is not None:
            key_values.begin(batch, length, in_pass.size, mask)
        rows = in_pass if in_pass.size < length else None  # of key_values: None is all of them
        cos, sin = self._rotary_tables(turns[:, in_pass])

        hidden: Array = self._embedding[tokens[:, in_pass].reshape(-1)].astype(self._activations)  # (B R, hidden_size)
        for number, layer in enumerate(self._layers):
            q, k, v = self._qkv(number, hidden, cos, sin, batch)
            kept = None if key_values is None else key_values.update(number, rows, k, v)
            if attend is not None:
                out = attend(number, q, k, v, key_mask=mask)
            else:
                out = attention(q, k, v, key_mask=mask) if kept is None else kept.attention(q)
            hidden = self._attention_out(layer, hidden, q, out)
            hidden = self._mlp(number, hidden)
        selected = hidden.reshape(batch, in_pass.size, -1)[:, np.searchsorted(in_pass, where)]
        selected = selected.reshape(-1, self.config.hidden_size)
        normed = ops.rms_norm(selected, self._final_norm, self.config.rms_norm_eps)
        logits = ops.linear(normed, self._head, out_dtype="float32")
        return logits.reshape(batch, where.size, self.config.vocab_size)

    def _qkv(
        self, number: int, hidden: Array, cos: FloatArray, sin: FloatArray, batch: int
    ) -> tuple[Array, Array, Array]:
        """Computes rotated q (B, H, R, D), and rotated k and v (B, H_kv, R, D), of hidden (B R, hidden_size)."""
        config, layer = self.config, self._layers[number]
        queries, keys = (heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads))
        normed = ops.rms_norm(hidden, layer.attention_norm, config.rms_norm_eps)
        self._note(number, "qkv", normed)
        qkv = ops.linear(normed, layer.qkv)
        if layer.query_norm is None or layer.key_norm is None:
            self._rotate(qkv[:, : queries + keys], cos, sin)
            q, k, v = np.split(qkv, [queries, queries + keys], axis=1)
        else:
            q, k, v = np.split(qkv, [queries, queries + keys], axis=1)
            q, k = self._normed_heads(q, layer.query_norm), self._normed_heads(k, layer.key_norm)
            self._rotate(q, cos, sin)
            self._rotate(k, cos, sin)
        by_head = [part.reshape(batch, -1, part.shape[1] // config.head_dim, config.head_dim) for part in (q, k, v)]
        q, k, v = (part.transpose(0, 2, 1, 3) for part in by_head)
        return q, k, v

    def _normed_heads(self, x: Array, weight: FloatArray) -> Array:
        """Returns the heads of x (B R, heads D), each normalised by itself."""
        by_head = np.ascontiguousarray(x).reshape(-1, self.config.head_dim)
        return ops.rms_norm(by_head, weight, self.config.rms_norm_eps).reshape(x.shape)

    def _rotate(self, x: Array, cos: FloatArray, sin: FloatArray) -> None:
        """Rotates the heads of x (B R, heads D) in place, each in its first `config.rope.dim` features."""
        head_dim, dim = self.config.head_dim, self.config.rope.dim
        if dim == head_dim:
            ops.rotary_(x, head_dim, cos, sin)
            return
        for begin in range(0, x.shape[1], head_dim):
            ops.rotary_(x[:, begin : begin + dim], dim, cos, sin)

    def _attention_out(self, layer: Layer, hidden: Array, q: Array, out: Array) -> Array:
        """Returns `hidden` plus the projected output of the heads, (B R, hidden_size)."""
        if out.shape != q.shape:
            raise ValueError(f"forward: attend returned shape {list(out.shape)}, expected {list(q.shape)} (that of q)")
        joined = np.ascontiguousarray(out.transpose(0, 2, 1, 3), dtype=hidden.dtype)
        return ops.linear(joined.reshape(len(hidden), -1), layer.attention_out, residual=hidden)

    def _mlp(self, number: int, hidden: Array) -> Array:
        """Returns `hidden` plus its MLP, (B R, hidden_size) in and out."""
        layer = self._layers[number]
        out = np.empty_like(hidden)
        for begin in range(0, len(hidden), _MLP_TOKENS):
            chunk = hidden[begin : begin + _MLP_TOKENS]
            normed = ops.rms_norm(chunk, layer.mlp_norm, self.config.rms_norm_eps)
            self._note(number, "gate_up", normed)
            gate, up = ops.linears(normed, [layer.gate, layer.up])
            ops.silu_gate_(gate, up)
            self._note(number, "down", gate)
            out[begin : begin + _MLP_TOKENS] = ops.linear(gate, layer.down, residual=chunk)
        return out

    def _note(self, number: int, name: str, x: Array) -> None:
        if self.observe is not None:
            self.observe(number, name, x)

    def _rotary_tables(self, position_ids: IntArray) -> tuple[FloatArray, FloatArray]:
        """Returns scaled cosines and sines, (B R, rotary features / 2) float32, rounded as the published code does."""
        angles = position_ids.reshape(-1, 1).astype(np.float32) * self._frequencies
        factor = np.float32(self.config.rope.attention_factor)
        cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
        if not self.config.rope_full_precision:
            cos, sin = (table.astype(self._activations).astype(np.float32) for table in (cos, sin))
        return cos, sin
