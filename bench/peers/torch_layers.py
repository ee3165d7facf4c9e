"""The layers of a checkpoint in torch, with dense attention by SDPA or sparse attention by compiled flex_attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsed.models import ModelConfig, TensorNames, find_architecture
from sparsed.models.safetensors import SafetensorsFile

from ..arrays import Array, Blocks
from ..cases import LayerShape
from ..checkpoint import config_values
from .torch_common import load_torch, to_numpy, to_torch
from .torch_flex import block_mask

# The attention of one layer: (layer, q (1, H, l, D), k (1, H_kv, l, D), v (1, H_kv, l, D)) -> (1, H, l, D).
Attention = Callable[[int, Any, Any, Any], Any]


class TorchLayers:
    """The transformer of `sparsed.models` in torch, in bfloat16, with the weights of a random checkpoint.

    Attributes:
        names: The names of the tensors without ".weight".
        weights: The tensors by name.

    Args:
        folder: The folder of the checkpoint.
        shape: The layer shape of its model.
        config: The checked config of the checkpoint.
    """

    def __init__(self, folder: Path, shape: LayerShape, config: ModelConfig) -> None:
        self._torch = load_torch()
        self._config = config
        self.names: TensorNames = find_architecture(config_values(shape, config.num_layers), "config.json").names
        file = SafetensorsFile(folder / "model.safetensors")
        self.weights = {name: to_torch(file.array(name)) for name in file.tensors}

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    def forward(self, ids: NDArray[np.int64], positions: NDArray[np.int64], attention: Attention) -> Any:
        """Returns the logits (P, V) in bfloat16 at `positions` (P,) of one sequence of token ids (1, l)."""
        torch, config, names = self._torch, self._config, self.names
        with torch.inference_mode():
            cos, sin = self._rotary_tables(ids.shape[1])
            hidden = self.weights[f"{names.embedding}.weight"][torch.from_numpy(ids[0])]
            for number in range(config.num_layers):
                prefix = names.layer.format(number)
                normed = self._norm(hidden, prefix + names.attention_norm)
                q = self._heads(normed, prefix + names.query, config.num_heads)
                k = self._heads(normed, prefix + names.key, config.num_kv_heads)
                v = self._heads(normed, prefix + names.value, config.num_kv_heads)
                out = attention(number, self._rotate(q, cos, sin), self._rotate(k, cos, sin), v)
                joined = out[0].transpose(0, 1).reshape(hidden.shape[0], -1)
                hidden = hidden + self.linear(joined, prefix + names.attention_out)
                normed = self._norm(hidden, prefix + names.mlp_norm)
                gate = torch.nn.functional.silu(self.linear(normed, prefix + names.gate))
                hidden = hidden + self.linear(gate * self.linear(normed, prefix + names.up), prefix + names.down)
            last = self._norm(hidden[torch.from_numpy(positions)], names.final_norm)
            return self.linear(last, names.head)

    def sdpa(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Computes dense attention."""
        grouped = q.shape[1] != k.shape[1]
        return self._torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

    def flex(self, blocks: list[Blocks]) -> Attention:
        """Returns sparse attention with the blocks of each layer. It is compiled in the first call."""
        from torch.nn.attention.flex_attention import flex_attention

        torch = self._torch
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        masks = [block_mask(one) for one in blocks]

        def attention(layer: int, q: Any, k: Any, v: Any) -> Any:
            return compiled(q, k, v, block_mask=masks[layer], enable_gqa=q.shape[1] != k.shape[1])

        return attention

    def logits(self, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> Array:
        """Returns the logits of a dense forward pass as an array."""
        return to_numpy(self.forward(ids, positions, self.sdpa))

    def linear(self, x: Any, name: str) -> Any:
        """Returns x times the transposed weight `name`, plus its bias if it has one."""
        return self._torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, x: Any, name: str) -> Any:
        weight = self.weights[f"{name}.weight"]
        return self._torch.nn.functional.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)

    def _heads(self, x: Any, name: str, heads: int) -> Any:
        return self.linear(x, name).view(1, x.shape[0], heads, self._config.head_dim).transpose(1, 2)

    def _rotary_tables(self, length: int) -> tuple[Any, Any]:
        torch, config = self._torch, self._config
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-exponents)
        return angles.cos(), angles.sin()

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        torch = self._torch
        first, second = x.float().chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return rotated.to(x.dtype)
