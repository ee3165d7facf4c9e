"""Writes a random LLaDA checkpoint as a GGUF file for llama.cpp, with the package gguf.

The names, the metadata and the order of the rows follow llama.cpp's converter for LLaDA (conversion/llada.py). Its RoPE
turns neighbouring rows of a head, while that of the checkpoint turns rows of its two halves.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsed.models import ModelConfig, TensorNames
from sparsed.models.safetensors import SafetensorsFile

from ..arrays import Array

# Fields of TensorNames and the names of their tensors in a GGUF file.
_WHOLE = {"embedding": "token_embd", "final_norm": "output_norm", "head": "output"}
_LAYER = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention_out": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def write_gguf(
    path: Path, checkpoint: Path, config: ModelConfig, names: TensorNames, weights: Literal["BF16", "Q8_0"]
) -> None:
    """Writes the tensors of a LLaDA checkpoint: matrices in the type `weights`, norms in float32.

    Args:
        path: The file to write.
        checkpoint: The folder with model.safetensors.
        config: The checked config of the checkpoint.
        names: The names of its tensors.
        weights: The type of the matrices.

    Raises:
        ModuleNotFoundError: The package gguf is not installed.
    """
    gguf: Any = importlib.import_module("gguf")
    kind = gguf.GGMLQuantizationType[weights]
    partial = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(partial, "llada")
    _add_metadata(writer, config)
    for name, array in _tensors(SafetensorsFile(checkpoint / "model.safetensors"), config, names):
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _add_metadata(writer: Any, config: ModelConfig) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_causal_attention(False)
    writer.add_tokenizer_model("none")


def _tensors(file: SafetensorsFile, config: ModelConfig, names: TensorNames) -> Iterator[tuple[str, Array]]:
    """Yields the names in the GGUF file and the values in float32."""
    for field, name in _WHOLE.items():
        yield f"{name}.weight", _float32(file, getattr(names, field))
    heads = {"query": config.num_heads, "key": config.num_kv_heads}
    for layer in range(config.num_layers):
        for field, name in _LAYER.items():
            array = _float32(file, names.layer.format(layer) + getattr(names, field))
            yield f"blk.{layer}.{name}.weight", interleave(array, heads[field]) if field in heads else array


def _float32(file: SafetensorsFile, name: str) -> Array:
    return np.asarray(file.array(f"{name}.weight")).astype(np.float32)


def interleave(weight: Array, heads: int) -> Array:
    """Puts row i of a head's second half after row i of its first half. weight is (heads D, inputs)."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
