"""LLaDA and Dream as small torch modules: the published names and shapes, the golden checkpoints' weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsed.models.safetensors import SafetensorsFile

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Rotary(nn.Module):
    def __init__(self, theta: float, head_dim: int) -> None:
        super().__init__()
        self.theta, self.head_dim = theta, head_dim

    def angles(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rates = self.theta ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
        return angles.cos(), angles.sin()

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.angles(q.shape[-2])
        return turn(q, cos, sin), turn(k, cos, sin)


class LLaDABlock(nn.Module):
    """OLMo's block, as LLaDA has it."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, mlp = config.d_model, config.mlp_hidden_size
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        keys = width // self.heads * self.kv_heads
        self.attn_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.ff_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.q_proj, self.attn_out = linear(width, width), linear(width, width)
        self.k_proj, self.v_proj = linear(width, keys), linear(width, keys)
        self.ff_proj, self.up_proj, self.ff_out = linear(width, mlp), linear(width, mlp), linear(mlp, width)
        self.rotary_emb = Rotary(config.rope_theta, width // self.heads)

    def forward(self, x: torch.Tensor, attention_bias: Any = None) -> torch.Tensor:
        normed = self.attn_norm(x)
        q = split(self.q_proj(normed), self.heads)
        k, v = (split(proj(normed), self.kv_heads) for proj in (self.k_proj, self.v_proj))
        q, k = self.rotary_emb(q, k)
        groups = self.heads // self.kv_heads
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_bias, dropout_p=0.0, is_causal=False)
        x = x + self.attn_out(out.transpose(1, 2).flatten(2))
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


class LLaDA(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, vocabulary = config.d_model, config.embedding_size
        blocks = nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers))
        top = {"wte": nn.Embedding(vocabulary, width), "ln_f": nn.RMSNorm(width, config.rms_norm_eps)}
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict({**top, "blocks": blocks, "ff_out": linear(width, vocabulary)})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        parts = self.model.transformer
        bias = None
        if attention_mask is not None:  # 0 and the least float, as OLMo adds it to the scores
            bias = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            bias = bias.expand(-1, 1, input_ids.shape[1], -1)
        x = parts["wte"](input_ids)
        for block in parts["blocks"]:
            x = block(x, bias)
        return parts["ff_out"](parts["ln_f"](x))


class DreamAttention(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        keys = width // heads * config.num_key_value_heads
        self.num_heads, self.num_key_value_heads = heads, config.num_key_value_heads
        self.q_proj, self.o_proj = linear(width, width, bias=True), linear(width, width)
        self.k_proj, self.v_proj = linear(width, keys, bias=True), linear(width, keys, bias=True)
        self.rotary_emb = Rotary(config.rope_theta, width // heads)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, None]:
        q = split(self.q_proj(hidden_states), self.num_heads)
        k, v = (split(proj(hidden_states), self.num_key_value_heads) for proj in (self.k_proj, self.v_proj))
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        groups = self.num_heads // self.num_key_value_heads
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=False)
        return self.o_proj(out.transpose(1, 2).contiguous().flatten(2)), None


class DreamLayer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, mlp = config.hidden_size, config.intermediate_size
        self.self_attn = DreamAttention(config)
        self.mlp = nn.ModuleDict(
            {"gate_proj": linear(width, mlp), "up_proj": linear(width, mlp), "down_proj": linear(mlp, width)}
        )
        self.input_layernorm = nn.RMSNorm(width, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(width, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, attention_mask: Any, position_embeddings: Any) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), attention_mask, position_embeddings)[0]
        normed = self.post_attention_layernorm(x)
        gate = F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        return x + self.mlp["down_proj"](gate)


class Dream(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.hidden_size
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.model.layers = nn.ModuleList(DreamLayer(config) for _ in range(config.num_hidden_layers))
        self.model.norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.model.rotary_emb = Rotary(config.rope_theta, width // config.num_attention_heads)
        self.lm_head = linear(width, config.vocab_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = "full", position_ids: Any = None) -> torch.Tensor:
        cos, sin = self.model.rotary_emb.angles(input_ids.shape[1])
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x = layer(x, attention_mask, (cos[position_ids], sin[position_ids]))
        return self.lm_head(self.model.norm(x))


def load(folder: Path) -> nn.Module:
    """The golden checkpoint of a folder in float32."""
    config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
    model = LLaDA(config) if config.model_type == "llada" else Dream(config)
    weights = {}
    for path in folder.glob("*.safetensors"):
        file = SafetensorsFile(path)
        weights |= {name: torch.from_numpy(file.array(name).astype(np.float32)) for name in file.tensors}
    model.load_state_dict(weights)
    return model.eval().requires_grad_(True)
