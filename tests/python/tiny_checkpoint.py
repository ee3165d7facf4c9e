"""Tiny checkpoints under published config keys, and a float64 forward pass that shares no code with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from published_configs import PUBLISHED

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_VOCAB = 96
_LLADA_KEYS = ("d_model", "mlp_hidden_size")
_LLAMA_KEYS = ("hidden_size", "intermediate_size")
_TINY_LLADA = {
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 112,
    "vocab_size": _VOCAB - 2,
    "embedding_size": _VOCAB,
    "max_sequence_length": 64,
}
_TINY_LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "vocab_size": _VOCAB,
    "max_position_embeddings": 64,
}


def tiny_config(name: str, **changes: Any) -> dict[str, Any]:
    """The published config `name` with small sizes and token ids; a change to `...` drops the key."""
    published = PUBLISHED[name]
    values = published | (_TINY_LLADA if "d_model" in published else _TINY_LLAMA)
    if "d_model" in published:
        values["n_kv_heads"] = 4 if published["n_kv_heads"] == published["n_heads"] else 2
    if "head_dim" in published:
        values["head_dim"] = 32  # the heads together are wider than hidden_size, as in Qwen3-0.6B
    if "layer_types" in published:
        values["layer_types"] = ["full_attention"] * 2
    if published["model_type"].startswith("a2d"):
        values.setdefault("mask_token_id", 10**6)
    for key in ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id"):
        if values.get(key, 0) >= _VOCAB:
            values[key] = 90 + len(key) % 4
    values |= changes
    return {key: value for key, value in values.items() if value is not ...}


def random_tensors(values: Mapping[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under the published names. A tied model has no head of its own."""
    rng = np.random.default_rng(seed)
    llada = "d_model" in values
    hidden, mlp = (values[key] for key in (_LLADA_KEYS if llada else _LLAMA_KEYS))
    heads, kv_heads, head_dim = _heads(values)
    queries, keys = heads * head_dim, kv_heads * head_dim
    rows = values.get("embedding_size") or values["vocab_size"]
    bias = values.get("include_qkv_bias") if llada else values["model_type"] in ("Dream", "a2d-qwen2", "qwen2")
    tied = values["weight_tying" if llada else "tie_word_embeddings"]
    (embedding, norm, head), prefix, names = _names(values)
    sizes = [(hidden,), (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    sizes += [(hidden,), (mlp, hidden), (mlp, hidden), (hidden, mlp)]
    shapes: dict[str, tuple[int, ...]] = {embedding: (rows, hidden), norm: (hidden,)}
    if not tied:
        shapes[head] = (rows, hidden)
    for number in range(values["n_layers"] if llada else values["num_hidden_layers"]):
        for name, size in zip(names, sizes, strict=True):
            shapes[f"{prefix}.{number}.{name}.weight"] = size
        if bias:
            for name, size in zip(names[1:4], (queries, keys, keys), strict=True):
                shapes[f"{prefix}.{number}.{name}.bias"] = (size,)
        if values["model_type"] == "a2d-qwen3":
            for name in ("q_norm", "k_norm"):
                shapes[f"{prefix}.{number}.self_attn.{name}.weight"] = (head_dim,)
    tensors = {}
    for name, shape in shapes.items():
        matrix = len(shape) == 2
        drawn = rng.normal(size=shape) * (shape[-1] ** -0.5 if matrix else 0.5)
        tensors[name] = (drawn if matrix else 1 + drawn).astype(dtype)
    return tensors


def _names(values: Mapping[str, Any]) -> tuple[tuple[str, str, str], str, list[str]]:
    """The tensors above the layers (embedding, norm, head), the prefix of a layer, and its modules in order of use."""
    if "d_model" in values:
        top = [f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")]
        modules = ["attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"]
        return (top[0], top[1], top[2]), "model.transformer.blocks", modules
    attention = [f"self_attn.{part}_proj" for part in "qkvo"]
    mlp = [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    modules = ["input_layernorm", *attention, "post_attention_layernorm", *mlp]
    return ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), "model.layers", modules


def _heads(values: Mapping[str, Any]) -> tuple[int, int, int]:
    """The numbers of query heads and of key/value heads, and their size."""
    heads = values.get("n_heads") or values["num_attention_heads"]
    kv_heads = values.get("n_kv_heads") or values.get("num_key_value_heads")
    hidden = values.get("d_model") or values["hidden_size"]
    kv_heads = kv_heads or (1 if values.get("multi_query_attention") else heads)
    return heads, kv_heads, values.get("head_dim") or hidden // heads


def safetensors_bytes(tensors: Mapping[str, np.ndarray], **changes: Any) -> bytes:
    """A safetensors file; `changes` replace entries of its header by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}[tensor.dtype.name]
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header | changes).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_checkpoint(
    folder: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    shards: int = 0,
) -> Path:
    """config.json and the weights, in one file or in `shards` with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = random_tensors(values) if tensors is None else tensors
    if not shards:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        (folder / name).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def reference_logits(
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    ids: np.ndarray,
    positions: np.ndarray | None = None,
    key_mask: np.ndarray | None = None,
    margins: list[float] | None = None,
    angles: tuple[np.ndarray, float] | None = None,
) -> np.ndarray:
    """(B, l, V) in float64, one row and one head at a time; `positions` (B, l) are what RoPE turns by.

    `angles` are those of RoPE per position and the factor of cosines and sines; None: as `rope_angles` has them.
    Where a weight is int8 it has a scale per row, and its input is rounded to int8 with a scale per token. `margins`
    gets the distance of each such input to the next value that rounds to another integer.
    """
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        if tensors[name].dtype != np.int8:
            return x @ weights[name].T
        scale = np.abs(x).max(axis=1, keepdims=True) / 127
        steps = x / scale
        if margins is not None:
            margins.append(float(np.abs(steps - np.floor(steps) - 0.5).min()))
        return np.rint(steps) * scale @ (weights[name] * weights[f"{name}_scale"]).T

    (embedding, norm, head_name), prefix, names = _names(values)
    heads, kv_heads, size = _heads(values)
    eps = values["rms_norm_eps"]
    angles, scale = rope_angles(values) if angles is None else angles
    batch, length = ids.shape
    logits = []
    for row in range(batch):
        hidden = weights[embedding][ids[row]]
        turn = np.arange(length) if positions is None else positions[row]
        live = np.ones(length, bool) if key_mask is None else key_mask[row]
        for number in range(values.get("n_layers") or values["num_hidden_layers"]):
            at = [f"{prefix}.{number}.{name}" for name in names]
            normed = _rms(hidden, weights[f"{at[0]}.weight"], eps)
            q, k, v = (linear(normed, f"{name}.weight") + weights.get(f"{name}.bias", 0.0) for name in at[1:4])
            out = np.zeros_like(q)
            head_norms = [weights.get(f"{prefix}.{number}.self_attn.{name}.weight") for name in ("q_norm", "k_norm")]
            for head in range(heads):
                one = slice(head * size, (head + 1) * size)
                shared = slice(head * kv_heads // heads * size, (head * kv_heads // heads + 1) * size)
                q_head, k_head = (
                    _turn(x if weight is None else _rms(x, weight, eps), turn, angles, scale)
                    for x, weight in zip((q[:, one], k[:, shared]), head_norms, strict=True)
                )
                scores = q_head @ k_head.T / np.sqrt(size)
                scores = np.where(live, scores, -np.inf)
                shares = np.exp(scores - scores.max(axis=1, keepdims=True))
                out[:, one] = shares / shares.sum(axis=1, keepdims=True) @ v[:, shared]
            hidden = hidden + linear(out, f"{at[4]}.weight")
            normed = _rms(hidden, weights[f"{at[5]}.weight"], eps)
            gate, up = (linear(normed, f"{name}.weight") for name in at[6:8])
            hidden = hidden + linear(gate / (1 + np.exp(-gate)) * up, f"{at[8]}.weight")
        logits.append(linear(_rms(hidden, weights[norm], eps), head_name if head_name in weights else embedding))
    return np.stack(logits)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * weight


def rope_angles(values: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """The angle per position of each pair of features in float64, by the definitions of plain RoPE and of Llama 3."""
    half = _heads(values)[2] // 2
    angles = values["rope_theta"] ** -(np.arange(half) / half)
    scaling = values.get("rope_scaling")
    if scaling:
        low, high, factor = (scaling[name] for name in ("low_freq_factor", "high_freq_factor", "factor"))
        turns = scaling["original_max_position_embeddings"] * angles / (2 * np.pi)
        share = np.clip((turns - low) / (high - low), 0, 1)
        angles = angles * (share + (1 - share) / factor)
    return angles, 1.0


def _turn(x: np.ndarray, positions: np.ndarray, angles: np.ndarray, scale: float) -> np.ndarray:
    half = len(angles)
    turned = positions[:, None] * angles
    cos, sin = scale * np.cos(turned), scale * np.sin(turned)
    a, b, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=1)
