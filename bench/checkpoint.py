"""Writes random checkpoints in the published format: a few layers of a model's shape, often with a small vocabulary."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sparsed.models import ConfigReader, find_architecture, tensor_shapes

from .cases import RANDOM_VOCABULARY, LayerShape

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# All weights are cut from this many random numbers. It is prime so that the rows of a matrix differ.
_POOL = 1_048_583
# Each tensor begins at another of them, so that tensors of the same shape differ.
_OFFSET = 4099
# The token that ends a text.
_END = 1


@contextlib.contextmanager
def checkpoint_folder(folder: Path | None) -> Iterator[Path]:
    """Yields `folder`, or a temporary folder that is deleted afterwards if it is None."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sparsed-bench-") as temporary:
        yield Path(temporary)


def config_values(shape: LayerShape, layers: int, vocab_size: int = RANDOM_VOCABULARY) -> dict[str, Any]:
    """Returns a config.json with the published keys of the family. The mask token is the vocabulary's last token."""
    tokens = {"mask_token_id": vocab_size - 1, "eos_token_id": _END, "pad_token_id": _END, "torch_dtype": "bfloat16"}
    common = {"rms_norm_eps": shape.rms_norm_eps, "rope_theta": shape.rope_theta, "vocab_size": vocab_size}
    if shape.family == "dream":
        return {
            "architectures": ["DreamModel"],
            "model_type": "Dream",
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "intermediate_size": shape.intermediate_size,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
            **common,
            **tokens,
        }
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rope": True,
        "d_model": shape.hidden_size,
        "n_layers": layers,
        "n_heads": shape.num_heads,
        "n_kv_heads": shape.num_kv_heads,
        "mlp_hidden_size": shape.intermediate_size,
        "embedding_size": vocab_size,
        "max_sequence_length": 4096,
        "weight_tying": False,
        **common,
        **tokens,
    }


def write_checkpoint(
    folder: Path, shape: LayerShape, layers: int, seed: int = 0, vocab_size: int = RANDOM_VOCABULARY
) -> Path:
    """Writes config.json and model.safetensors in bfloat16 below `folder`, unless they exist. Returns their folder."""
    path = folder / f"{shape.name}-{layers}-layers-{vocab_size}-tokens"
    if (path / "model.safetensors").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    values = config_values(shape, layers, vocab_size)
    (path / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    architecture = find_architecture(values, "config.json")
    shapes = tensor_shapes(architecture.read_config(ConfigReader(values, "config.json")), architecture.names)
    header: dict[str, Any] = {}
    end = 0
    for name, size in shapes.items():
        begin, end = end, end + int(np.prod(size)) * _BFLOAT16.itemsize
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path / "model.safetensors.part"
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in _arrays(shapes, f"{architecture.names.head}.weight", seed):
            file.write(array.view(np.uint8).data)
    partial.replace(path / "model.safetensors")
    return path


def _arrays(shapes: dict[str, tuple[int, ...]], head: str, seed: int) -> Iterator[NDArray[Any]]:
    """Yields the tensors: weights of variance 1 / inputs, norms of 1 and small biases.

    With these, hidden states keep their size from layer to layer. The head gives the logit 0 to the mask and to the end
    of the text, so that no generation chooses them, which would change its number of steps.
    """
    pool = np.random.default_rng(seed).standard_normal(_POOL, np.float32)
    for number, (name, size) in enumerate(shapes.items()):
        if len(size) == 2:
            scaled = (pool * np.float32(size[1] ** -0.5)).astype(_BFLOAT16)
            weight = np.resize(np.roll(scaled, number * _OFFSET), size)
            if name == head:
                weight[[_END, -1]] = 0
            yield weight.reshape(-1)
        elif name.endswith(".bias"):
            yield (np.resize(pool, size) * np.float32(0.02)).astype(_BFLOAT16)
        else:
            yield np.ones(size, _BFLOAT16)
