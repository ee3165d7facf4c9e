"""Describes how the checkpoints of a model family are read: their config keys and the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from .config import ConfigReader, ModelConfig


@dataclass(frozen=True)
class TensorNames:
    """The names of a checkpoint's tensors, without ".weight".

    `layer` is the prefix of the names from `attention_norm` on; its {} stands for the number of the layer.
    """

    embedding: str
    final_norm: str
    head: str
    layer: str
    attention_norm: str
    query: str
    key: str
    value: str
    attention_out: str
    mlp_norm: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Architecture:
    """A published model class. The `class_name` or the `model_type` (in lower case) of a config.json selects it."""

    model_type: str
    class_name: str
    read_config: Callable[[ConfigReader], ModelConfig]
    names: TensorNames


# The names that transformers uses for Llama and Qwen2.
LLAMA_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    layer="model.layers.{}.",
    attention_norm="input_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
)


class Shape(TypedDict):
    """The sizes that a ModelConfig has, as keyword arguments for it."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int


def read_llama_shape(reader: ConfigReader) -> Shape:
    """Reads the sizes from the keys that transformers uses for Llama and Qwen2."""
    hidden_size = reader.integer("hidden_size")
    num_heads = reader.integer("num_attention_heads")
    num_kv_heads = reader.integer("num_key_value_heads", num_heads)
    reader.divides("num_attention_heads", "num_key_value_heads", num_heads, num_kv_heads)
    head_dim = reader.head_dim("hidden_size", "num_attention_heads", hidden_size, num_heads)
    reader.require("head_dim", head_dim, head_dim)
    return Shape(
        num_layers=reader.layers("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.integer("intermediate_size"),
        vocab_size=reader.integer("vocab_size"),
    )


def tensor_shapes(config: ModelConfig, names: TensorNames) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that a checkpoint of this config must hold, by name.

    The head is among them, although a checkpoint that ties it to the embedding may leave it out.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    per_layer: dict[str, tuple[int, ...]] = {
        f"{names.attention_norm}.weight": (hidden,),
        f"{names.query}.weight": (queries, hidden),
        f"{names.key}.weight": (keys, hidden),
        f"{names.value}.weight": (keys, hidden),
        f"{names.attention_out}.weight": (hidden, queries),
        f"{names.mlp_norm}.weight": (hidden,),
        f"{names.gate}.weight": (mlp, hidden),
        f"{names.up}.weight": (mlp, hidden),
        f"{names.down}.weight": (hidden, mlp),
    }
    if config.qkv_bias:
        per_layer |= {f"{names.query}.bias": (queries,), f"{names.key}.bias": (keys,), f"{names.value}.bias": (keys,)}
    shapes: dict[str, tuple[int, ...]] = {
        f"{names.embedding}.weight": (config.vocab_size, hidden),
        f"{names.final_norm}.weight": (hidden,),
        f"{names.head}.weight": (config.vocab_size, hidden),
    }
    for layer in range(config.num_layers):
        prefix = names.layer.format(layer)
        shapes |= {prefix + name: shape for name, shape in per_layer.items()}
    return shapes
