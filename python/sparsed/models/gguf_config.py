"""Reads the config of a LLaDA or Dream model from the metadata of a GGUF file.

The metadata is turned into the config.json of the same model, which the family then reads.

Source: `set_gguf_parameters` in conversion/base.py, llada.py and dream.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import Architecture, ConfigReader, ModelConfig, TensorNames, find_architecture, recognise
from .gguf_file import GgufFile
from .token_declarations import TURN_ENDS

_NAMES = TensorNames(
    embedding="token_embd",
    final_norm="output_norm",
    head="output",
    layer="blk.{}.",
    attention_norm="attn_norm",
    query="attn_q",
    key="attn_k",
    value="attn_v",
    attention_out="attn_output",
    mlp_norm="ffn_norm",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
)


class _Family(NamedTuple):
    """How the metadata of a family says what its config.json says.

    Attributes:
        class_name: The published class.
        keys: The key of config.json for each key of the metadata that begins with the name of the architecture.
        fixed: Values of config.json that all files of this architecture have.
        tied: The key of config.json that says whether the head is the embedding.
    """

    class_name: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any]
    tied: str


_FAMILIES = {
    "llada": _Family(
        class_name="LLaDAModelLM",
        keys={
            "attention.head_count": "n_heads",
            "attention.head_count_kv": "n_kv_heads",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "block_count": "n_layers",
            "context_length": "max_sequence_length",
            "embedding_length": "d_model",
            "feed_forward_length": "mlp_hidden_size",
            "rope.freq_base": "rope_theta",
            "vocab_size": "vocab_size",
        },
        fixed={"activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms", "rope": True},
        tied="weight_tying",
    ),
    "dream": _Family(
        class_name="DreamModel",
        keys={
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_key_value_heads",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "block_count": "num_hidden_layers",
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "feed_forward_length": "intermediate_size",
            "rope.freq_base": "rope_theta",
            "vocab_size": "vocab_size",
        },
        fixed={},
        tied="tie_word_embeddings",
    ),
}
# The keys of the tokenizer for each key of config.json. The first one that exists is the token; all of eos end a text.
_TOKEN_KEYS = {
    "mask_token_id": ("tokenizer.ggml.mask_token_id",),
    "eos_token_id": ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"),
    "bos_token_id": ("tokenizer.ggml.bos_token_id",),
    "pad_token_id": ("tokenizer.ggml.padding_token_id",),
}
_TOKENS = "tokenizer.ggml.tokens"
_SHIFT_LOGITS = "diffusion.shift_logits"


def family_of(file: GgufFile) -> str | None:
    """Returns "llada" or "dream", the name of the architecture, for a model of such a family; None for others."""
    name = file.get("general.architecture")
    return name if isinstance(name, str) and name in _FAMILIES else None


def read_gguf_config(file: GgufFile, rope_scaling: Mapping[str, Any] | None = None) -> tuple[ModelConfig, Architecture]:
    """Returns what the metadata of a file says about its model. The names of the tensors are those in the file.

    Args:
        file: The file.
        rope_scaling: As in `load_model`.

    Raises:
        ValueError: The file holds another model or only a part of one, or a value is not supported.
    """
    name, found = family_of(file), file.get("general.architecture")
    if name is None:
        # Classes and model types, which are recognised, have no hyphens.
        known = recognise.model([str(found).replace("-", "_")], "GGUF files of LLaDA and Dream")
        raise ValueError(
            f"load_model: general.architecture is {found!r:.100}, expected one of {list(_FAMILIES)}: {known} "
            f"(in {file.path})"
        )
    if (file.get("split.count") or 1) != 1:
        raise ValueError(
            f"load_model: {file.path} is one of {file.get('split.count')} parts, expected a whole file "
            "(llama-gguf-split --merge joins them)"
        )
    family = _FAMILIES[name]
    names = {config_key: f"{name}.{key}" for key, config_key in family.keys.items()}
    names |= {config_key: keys[0] for config_key, keys in _TOKEN_KEYS.items()}
    tokens = file.texts(_TOKENS) if _TOKENS in file.keys() else []
    values = _config_values(file, name, len(tokens))
    reader = ConfigReader(values, str(file.path), names)
    _require_plain(reader, name, values, family)
    shift_logits = reader.flag(_SHIFT_LOGITS, True) if _SHIFT_LOGITS in values else None
    architecture = find_architecture(values, str(file.path))
    config = architecture.read_config(reader, rope_scaling)
    turn_ends = (i for i, token in enumerate(tokens) if token in TURN_ENDS and i < config.vocab_size)
    config = dataclasses.replace(
        config,
        end_token_ids=tuple(dict.fromkeys((*config.end_token_ids, *turn_ends))),
        shift_logits=config.shift_logits if shift_logits is None else shift_logits,
    )
    return config, dataclasses.replace(architecture, names=_NAMES)


def _config_values(file: GgufFile, name: str, num_tokens: int) -> dict[str, Any]:
    """Returns the values of the config.json. Keys of the metadata that are not known keep their names."""
    family = _FAMILIES[name]
    values: dict[str, Any] = {"architectures": [family.class_name], **family.fixed}
    values[family.tied] = f"{_NAMES.head}.weight" not in file.tensors
    if num_tokens:
        values["vocab_size"] = num_tokens  # Dream's files say it nowhere else
    for key in file.keys():
        if key.startswith(f"{name}."):
            values[family.keys.get(key.removeprefix(f"{name}."), key)] = file.get(key)
        elif key == _SHIFT_LOGITS:
            values[key] = file.get(key)
    for config_key, keys in _TOKEN_KEYS.items():
        ids = [token for token in map(file.get, keys) if token is not None]
        if ids:
            values[config_key] = ids[0] if len(ids) == 1 else ids
    return values


def _require_plain(reader: ConfigReader, name: str, values: Mapping[str, Any], family: _Family) -> None:
    """Refuses files with another attention or RoPE than the family's, and files that do not say eps and the base."""
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        reader.positive(family.keys[key])
    reader.require(f"{name}.attention.causal", False, False)
    reader.require(f"{name}.rope.scaling.type", "none", "none")
    hidden_size, num_heads = (values.get(family.keys[key]) for key in ("embedding_length", "attention.head_count"))
    if type(hidden_size) is type(num_heads) is int and num_heads > 0:  # read_config refuses others
        head_dim = hidden_size // num_heads
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            reader.require(f"{name}.{key}", head_dim, head_dim)
