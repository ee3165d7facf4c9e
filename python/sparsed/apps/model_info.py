"""What the files of a checkpoint folder say about its model, for `sparsed info MODEL`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ..generation.sampling import SAMPLERS
from ..models import ModelConfig, tensor_shapes
from ..models.checkpoint import Checkpoint, check_tensors
from ..models.loader import loaded_nbytes, open_checkpoint, read_config, warn_of_mask_token
from ..models.precision import automatic_dtype
from ..models.rope_scaling import Rope
from ..tables import format_bytes


def model_info(path: Path) -> dict[str, Any]:
    """Returns what was recognised in a folder or a GGUF file, and how `load_model` loads it by default.

    The weights are not read.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    config, architecture, scheme = read_config(path)
    warn_of_mask_token(path, config)
    checkpoint = open_checkpoint(path, config)
    ends = check_tensors(checkpoint, config, architecture.names, scheme)
    shapes = tensor_shapes(config, architecture.names)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    if config.tie_weights:
        parameters -= config.vocab_size * config.hidden_size
    return {
        "model": f"{architecture.title} ({architecture.class_name})",
        "parameters": parameters,
        "weights": _stored(checkpoint),
        "memory": f"{format_bytes(loaded_nbytes(checkpoint, ends))} of weights after loading",
        "dtype": automatic_dtype(checkpoint.tensors),
        "layers": config.num_layers,
        "hidden size": f"{config.hidden_size}, MLP {config.intermediate_size}",
        "heads": _heads(config),
        "attention": config.attention,
        "RoPE": _rope(config.rope, config.head_dim),
        "longest sequence": config.max_length,
        "vocabulary": f"{config.vocab_size}, head {'tied to the embedding' if config.tie_weights else 'of its own'}",
        "logits": "predict the next token" if config.shift_logits else "predict their own token",
        "mask token": config.mask_token_id,
        "end tokens": list(config.end_token_ids),
        "sampler": SAMPLERS[config.family].__name__,
    }


def _stored(checkpoint: Checkpoint) -> str:
    """Returns the types of the tensors, the one with the most bytes first, and the size of the files."""
    nbytes: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        nbytes[info.stored] += info.end - info.begin
    files = {info.file for info in checkpoint.tensors.values()}
    types = " and ".join(name for name, _ in nbytes.most_common())
    return f"{types}, {format_bytes(sum(file.stat().st_size for file in files))}"


def _heads(config: ModelConfig) -> str:
    parts = [f"{config.num_heads} of {config.head_dim}", f"{config.num_kv_heads} of keys and values"]
    parts += ["q and k normalised"] if config.qk_norm else []
    parts += ["q, k and v with a bias"] if config.qkv_bias else []
    return ", ".join(parts)


def _rope(rope: Rope, head_dim: int) -> str:
    parts = [f"base {rope.theta:g}"]
    parts += [f"{rope.dim} of {head_dim} features"] if rope.dim < head_dim else []
    if rope.scaling is not None:
        fields = dataclasses.asdict(rope.scaling)  # type: ignore[call-overload]
        settings = ", ".join(f"{name} {value:g}" for name, value in fields.items())
        parts.append(f"{type(rope.scaling).__name__}: {settings}")
    return ", ".join(parts)
