"""The transformer of `sparsed.models` with torch for the matrix products and sparsed for the attention.

Glossary: B batch, l sequence length, H query heads, H_kv key/value heads, D head_dim, V logits per position,
P positions whose logits are wanted, R tokens that a pass computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention import attention
from ..models import Attend, ModelConfig, read_inputs, require_activations
from ..models.inputs import FloatArray, read_computed, require_key_values
from .key_values import KeyValues
from .parallel import HeadShare

# The attention of one layer, called as attend(layer, q, k, v, key_mask).
TensorAttend = Callable[..., Tensor]
# A function that keeps a layer's new keys and values and returns those of all tokens: keep(layer, k, v).
Keep = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# The MLP runs on this many tokens at a time, which bounds the memory of long sequences.
_MLP_TOKENS = 4096


class TorchTransformer:
    """A loaded model. `load_model` with engine="torch" makes it.

    Attributes:
        config: The shape and arithmetic of the whole model.
        dtype: The dtype of activations and attention, "float32" or "bfloat16".
        weights: The dtype of the weights, which is the same here.
        network: The torch module with the weights for this process' share of the heads.
        devices: The devices that hold weights. The model computes on them, except that the CPU only stores weights if
            there are other devices.
    """

    def __init__(
        self, config: ModelConfig, network: Network, dtype: str, share: HeadShare, devices: tuple[torch.device, ...]
    ) -> None:
        self.config = config
        self.dtype = self.weights = dtype
        self.network = network
        self.devices = devices
        self._share = share
        self._frequencies = config.rope.frequencies()

    def __repr__(self) -> str:
        config = self.config
        return (
            f"TorchTransformer(family={config.family!r}, num_layers={config.num_layers}, "
            f"hidden_size={config.hidden_size}, vocab_size={config.vocab_size}, dtype={self.dtype!r}, "
            f"devices={[str(device) for device in self.devices]})"
        )

    @property
    def nbytes(self) -> int:
        """The memory of the weights in bytes."""
        return sum(parameter.nbytes for parameter in self.network.parameters())

    @property
    def num_heads(self) -> int:
        """The query heads that this process computes: all of the model's, or in a group its share of them."""
        return len(self._share.heads)

    def new_key_values(self) -> KeyValues:
        """Returns an empty store of keys and values for `forward`."""
        return KeyValues()

    def key_values_nbytes(self, length: int, batch: int = 1) -> int:
        """Returns the bytes that keys and values of (batch, length) tokens take, in a group those of this process."""
        per_token = 2 * len(self._share.kv_heads) * self.config.head_dim * DTYPES[self.dtype].itemsize
        return batch * length * self.config.num_layers * per_token

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
        """Computes the raw logits at `positions`, (B, P, V) float32.

        Arguments and errors are those of `Transformer.forward`. `attend` gets tensors; in a group, they hold only the
        heads of this process. None computes dense attention, on the CPU by sparsed and on other devices by torch's
        scaled_dot_product_attention. `key_values` is what `new_key_values` returns. A pass that computes some tokens
        only attends densely from them to all tokens, so it takes no `attend`. All processes of a group must pass the
        same ids and computed.
        """
        inputs = read_inputs(self.config, ids, positions, position_ids, key_mask)
        batch, length = inputs.tokens.shape
        in_pass = read_computed(computed, key_values is not None, length, inputs.positions)
        require_key_values(key_values, KeyValues)
        if key_values is not None:
            key_values.begin(inputs.key_mask)
        if attend is not None and in_pass.size < length:
            raise ValueError(
                f"forward: attend is given, and computed has {in_pass.size} of {length} tokens, expected all of them"
            )
        device = next((device for device in self.devices if device.type != "cpu"), self.devices[0])
        if device.type == "cpu":
            itemsize = DTYPES[self.dtype].itemsize
            require_activations(self.config, itemsize, batch * in_pass.size, batch * inputs.positions.size)
        with torch.inference_mode():
            tokens, rows = torch.tensor(inputs.tokens, device=device), torch.tensor(in_pass, device=device)
            self._share.check_same(ids=tokens, computed=rows)
            cos, sin = self._rotary_tables(torch.tensor(inputs.position_ids[:, in_pass], device=device))
            logits = self.network(
                tokens[:, rows],
                torch.tensor(np.searchsorted(in_pass, inputs.positions), device=device),
                cos,
                sin,
                dense if attend is None else attend,
                None if inputs.key_mask is None else torch.tensor(inputs.key_mask, device=device),
                None if key_values is None else partial(key_values.update, positions=rows, length=length),
            )
            return np.asarray(logits.float().cpu().numpy())

    def _rotary_tables(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scaled cosines and sines of position_ids (B, R), rounded as the published code does.

        They are (B, 1, R, rotary dimensions / 2) float32.
        """
        angles = position_ids[:, None, :, None].float() * torch.tensor(self._frequencies, device=position_ids.device)
        factor = self.config.rope.attention_factor
        cos, sin = angles.cos() * factor, angles.sin() * factor
        if not self.config.rope_full_precision:
            cos, sin = (table.to(DTYPES[self.dtype]).float() for table in (cos, sin))
        return cos, sin


class Network(nn.Module):
    """The weights of a process' share of the heads, and the pass over the layers.

    Its parameters are made on torch's meta device, so that they take no memory before they are placed.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, share: HeadShare) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
            self.layers = nn.ModuleList(NetworkLayer(config, dtype, share) for _ in range(config.num_layers))
            self.final_norm = RMSNorm(config, config.hidden_size)
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        self.requires_grad_(False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: TensorAttend,
        key_mask: Tensor | None,
        keep: Keep | None = None,
    ) -> Tensor:
        """Computes the logits (B, P, V) of `tokens` (B, R) at `positions` (P,), which count among these tokens."""
        hidden = self.embedding(tokens)
        for number, layer in enumerate(self.layers):
            hidden = layer(number, hidden, cos, sin, attend, key_mask, keep)
        logits: Tensor = self.head(self.final_norm(hidden[:, positions.to(hidden.device)]))
        return logits


class NetworkLayer(nn.Module):
    """One layer. Its `qkv` stacks the query, key and value projections."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, share: HeadShare) -> None:
        super().__init__()
        hidden, columns = config.hidden_size, len(share.mlp_columns)
        heads, kv_heads = len(share.heads), len(share.kv_heads)
        width = heads * config.head_dim
        self.attention_norm = RMSNorm(config, hidden)
        self.qkv = nn.Linear(hidden, width + 2 * kv_heads * config.head_dim, bias=config.qkv_bias, dtype=dtype)
        self.attention_out = nn.Linear(width, hidden, bias=False, dtype=dtype)
        self.mlp_norm = RMSNorm(config, hidden)
        self.gate = nn.Linear(hidden, columns, bias=False, dtype=dtype)
        self.up = nn.Linear(hidden, columns, bias=False, dtype=dtype)
        self.down = nn.Linear(columns, hidden, bias=False, dtype=dtype)
        self.query_norm = RMSNorm(config, config.head_dim) if config.qk_norm else None
        self.key_norm = RMSNorm(config, config.head_dim) if config.qk_norm else None
        self._sizes = [heads, kv_heads, kv_heads]
        self._head_dim = config.head_dim
        self._share = share

    def forward(
        self,
        number: int,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: TensorAttend,
        key_mask: Tensor | None,
        keep: Keep | None = None,
    ) -> Tensor:
        """Applies attention and MLP to `hidden` (B, R, hidden_size)."""
        by_head = self.qkv(self.attention_norm(hidden)).unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
        q, k, v = by_head.split(self._sizes, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if keep is not None:
            k, v = keep(number, k, v)
        out = attend(number, q, k, v, key_mask)
        if out.shape != q.shape:
            raise ValueError(f"forward: attend returned shape {list(out.shape)}, expected {list(q.shape)} (that of q)")
        joined = out.to(hidden.dtype).transpose(1, 2).flatten(2)
        hidden = hidden + self._share.all_reduce(self.attention_out(joined))
        return hidden + self._share.all_reduce(self._mlp(hidden))

    def _mlp(self, hidden: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        chunks = (torch.split(tensor.flatten(0, 1), _MLP_TOKENS) for tensor in (hidden, out))
        for chunk, result in zip(*chunks, strict=True):
            normed = self.mlp_norm(chunk)
            result.copy_(self.down(F.silu(self.gate(normed)) * self.up(normed)))
        return out


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x^2) + eps) * weight over the last axis in float32, and rounds once at the end."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.float32))
        self._eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., size). The result has the dtype of x."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self._eps).to(x.dtype)


def dense(layer: int, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Computes dense attention with the fastest implementation for the tensors' device."""
    return attention(q, k, v, key_mask=key_mask) if q.device.type == "cpu" else sdpa(q, k, v, key_mask)


def sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Computes dense attention with torch. The output is 0 for a sequence without any real key."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (j, j + d / 2) of x (B, heads, l, D) in float32; cos and sin (..., d / 2) say what d is."""
    half = cos.shape[-1]
    a, b = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
    return rotated if 2 * half == x.shape[-1] else torch.cat((rotated, x[..., 2 * half :]), dim=-1)
