"""Describes a published model class as data: its config keys, its tensors, its arithmetic and its sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from .config import ConfigReader, Family, ModelConfig, Topology
from .rope import read_rope


@dataclass(frozen=True)
class TensorNames:
    """The names of a checkpoint's tensors, without ".weight".

    `layer` is the prefix of the names from `attention_norm` on; its {} stands for the number of the layer. Without
    `query_norm` and `key_norm`, queries and keys are not normalised.
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
    query_norm: str | None = None
    key_norm: str | None = None


# The names that transformers uses for Llama and Qwen2, and those that Qwen3 has in addition.
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
QWEN3_NAMES = dataclasses.replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

# Keys of Qwen2 and Qwen3 with one supported value each (`Architecture.fixed`), and those that they switch off.
QWEN_FIXED = {"hidden_act": ("silu", "silu"), "mlp_bias": (False, False), "use_sliding_window": (False, False)}
QWEN_IGNORED = frozenset({"max_window_layers", "sliding_window"})


class Shape(TypedDict):
    """The sizes that a ModelConfig has, as keyword arguments for it."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int


class Key(NamedTuple):
    """A key of config.json, and the value that the published code assumes where it is absent; None: it is required."""

    name: str
    default: Any = None


def read_llama_shape(reader: ConfigReader) -> Shape:
    """Reads the sizes from the keys of Llama and Qwen2, in a model whose heads together have hidden_size features."""
    hidden_size, num_heads, num_kv_heads = _widths(reader)
    head_dim = reader.head_dim("hidden_size", "num_attention_heads", hidden_size, num_heads)
    reader.require("head_dim", head_dim, head_dim)
    return _llama_shape(reader, hidden_size, num_heads, num_kv_heads, head_dim)


def read_free_shape(reader: ConfigReader, head_dim: int | None = None) -> Shape:
    """Reads the same keys, in a model whose key head_dim does not depend on hidden_size.

    Where the key is absent, it is `head_dim`, or else hidden_size / num_attention_heads.
    """
    hidden_size, num_heads, num_kv_heads = _widths(reader)
    if head_dim is None and reader.take("head_dim") is None:
        head_dim = reader.head_dim("hidden_size", "num_attention_heads", hidden_size, num_heads)
    head_dim = reader.own_head_dim("head_dim", head_dim or 0)
    return _llama_shape(reader, hidden_size, num_heads, num_kv_heads, head_dim)


def _widths(reader: ConfigReader) -> tuple[int, int, int]:
    hidden_size = reader.integer("hidden_size")
    num_heads = reader.integer("num_attention_heads")
    num_kv_heads = reader.integer("num_key_value_heads", num_heads)
    reader.divides("num_attention_heads", "num_key_value_heads", num_heads, num_kv_heads)
    return hidden_size, num_heads, num_kv_heads


def _llama_shape(reader: ConfigReader, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Shape:
    return Shape(
        num_layers=reader.layers("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.integer("intermediate_size"),
        vocab_size=reader.integer("vocab_size"),
    )


# The keys and defaults that most classes of transformers have.
_EPS = Key("rms_norm_eps", 1e-6)
_MAX_LENGTH = Key("max_position_embeddings", 32768)
_TIE_WEIGHTS = Key("tie_word_embeddings", False)


@dataclass(frozen=True)
class Architecture:
    """A published model class. The `class_name` or the `model_type` (in lower case) of a config.json selects it.

    Attributes:
        title: What users call the models, as errors list them.
        model_type: Its name in lower case.
        class_name: The name of the class.
        family: The models that are sampled in the same way.
        names: The names of its tensors. They also say whether queries and keys are normalised.
        shape: Reads the sizes.
        fixed: Keys with one supported value each: (this value, the one that the published code assumes for an absent
            key).
        ignored: Keys of training, of initialisation, and of features that `fixed` switches off.
        rms_norm_eps, max_length, tie_weights: The keys of these values.
        qkv_bias, rope_full_precision: True, False, or the key that says it.
        mask_token: The mask token, where neither config.json nor the tokenizer names one; None: one of them has to.
        pad_token: The padding token where config.json names none; None: it is the eos token.
        rope_theta: The base of RoPE in a config without any settings of RoPE; None: it is required.
        rope_top_level: Whether the published code reads the base of RoPE only at the top level.
        attention: Which tokens see which.
        shift_logits: Whether the logits at position i predict token i + 1.
        masked_positions: Whether positions count only the real tokens when a key mask is given.
        needs_mask_token: Whether the class is also that of other models, which have no mask token.
    """

    title: str
    model_type: str
    class_name: str
    family: Family
    names: TensorNames = LLAMA_NAMES
    shape: Callable[[ConfigReader], Shape] = read_llama_shape
    fixed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    rms_norm_eps: Key = _EPS
    max_length: Key = _MAX_LENGTH
    tie_weights: Key = _TIE_WEIGHTS
    qkv_bias: bool | Key = False
    rope_full_precision: bool | Key = False
    mask_token: int | None = None
    pad_token: int | None = None
    rope_theta: float | None = None
    rope_top_level: bool = False
    attention: Topology = "bidirectional"
    shift_logits: bool = False
    masked_positions: bool = False
    needs_mask_token: bool = False

    def read_config(self, reader: ConfigReader, rope_scaling: Mapping[str, Any] | None = None) -> ModelConfig:
        """Reads a config.json, and refuses what the forward pass does not support.

        Args:
            reader: The reader of the file.
            rope_scaling: Settings of RoPE that replace those of the file, as `load_model` describes them.

        Raises:
            ValueError: A value is missing, malformed or not supported. The message names its key.
        """
        for key, (expected, default) in self.fixed.items():
            reader.require(key, expected, default)
        shape = self.shape(reader)
        max_length = reader.integer(*self.max_length)
        rope, scaled_length = read_rope(
            reader,
            shape["head_dim"],
            max_length,
            only_top_level=self.rope_top_level,
            default=self.rope_theta,
            rope_scaling=rope_scaling,
        )
        eos_token_id = reader.token("eos_token_id")
        config = ModelConfig(
            family=self.family,
            **shape,
            rms_norm_eps=reader.positive(*self.rms_norm_eps),
            rope=rope,
            max_length=scaled_length,
            mask_token_id=reader.mask_token(shape["vocab_size"], self.mask_token),
            eos_token_id=eos_token_id,
            bos_token_id=reader.token("bos_token_id"),
            pad_token_id=reader.token("pad_token_id", eos_token_id if self.pad_token is None else self.pad_token),
            end_token_ids=reader.tokens("eos_token_id"),
            tie_weights=reader.flag(*self.tie_weights),
            qkv_bias=_flag(reader, self.qkv_bias),
            qk_norm=self.names.query_norm is not None,
            attention=self.attention,
            shift_logits=self.shift_logits,
            rope_full_precision=_flag(reader, self.rope_full_precision),
            masked_positions=self.masked_positions,
        )
        reader.finish(self.ignored)
        return config


def _flag(reader: ConfigReader, value: bool | Key) -> bool:
    return reader.flag(*value) if isinstance(value, Key) else value


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
    if config.qk_norm:
        per_layer |= {f"{name}.weight": (config.head_dim,) for name in (names.query_norm, names.key_norm)}
    shapes: dict[str, tuple[int, ...]] = {
        f"{names.embedding}.weight": (config.vocab_size, hidden),
        f"{names.final_norm}.weight": (hidden,),
        f"{names.head}.weight": (config.vocab_size, hidden),
    }
    for layer in range(config.num_layers):
        prefix = names.layer.format(layer)
        shapes |= {prefix + name: shape for name, shape in per_layer.items()}
    return shapes
