"""Tiny GGUF files of LLaDA and Dream, as llama.cpp's converter and quantiser write them, from a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind

from tiny_checkpoint import BFLOAT16

# The names in a GGUF file of the tensors above the layers and of the modules of a layer, in the order of use.
_TOP = {
    "llada": {"model.transformer.wte": "token_embd", "model.transformer.ln_f": "output_norm"}
    | {"model.transformer.ff_out": "output"},
    "dream": {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
}
_LAYER = {"llada": "model.transformer.blocks.", "dream": "model.layers."}
_PLACES = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_LLADA_MODULES = ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out")
_DREAM_MODULES = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_MODULES = {
    "llada": dict(zip(_LLADA_MODULES, _PLACES, strict=True)),
    "dream": dict(zip(_DREAM_MODULES, _PLACES, strict=True)),
}
# The sizes under the keys of config.json.
_SIZES = {
    "block_count": ("n_layers", "num_hidden_layers"),
    "context_length": ("max_sequence_length", "max_position_embeddings"),
    "embedding_length": ("d_model", "hidden_size"),
    "feed_forward_length": ("mlp_hidden_size", "intermediate_size"),
    "attention.head_count": ("n_heads", "num_attention_heads"),
    "attention.head_count_kv": ("n_kv_heads", "num_key_value_heads"),
}
_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "mask": "mask"}


def arch_of(values: Mapping[str, Any]) -> str:
    return "llada" if "d_model" in values else "dream"


def gguf_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the converter writes for a config.json: ints, floats (as float32), bools, texts and lists by key."""
    arch = arch_of(values)
    found: dict[str, Any] = {"general.name": "tiny", "general.file_type": 0}
    for key, names in _SIZES.items():
        found[f"{arch}.{key}"] = next(values[name] for name in names if name in values)
    found[f"{arch}.attention.layer_norm_rms_epsilon"] = float(values["rms_norm_eps"])
    found[f"{arch}.rope.freq_base"] = float(values["rope_theta"])
    found[f"{arch}.attention.causal"] = False
    if arch == "llada":
        found[f"{arch}.vocab_size"] = values["embedding_size"]
        found[f"{arch}.rope.dimension_count"] = values["d_model"] // values["n_heads"]
        found["diffusion.shift_logits"] = False
    else:  # the converter fills the vocabulary up to the rows of the embedding
        found["tokenizer.ggml.tokens"] = [f"[PAD{i}]" for i in range(values["vocab_size"])]
    for name, token in _TOKENS.items():
        if values.get(f"{name}_token_id") is not None:
            found[f"tokenizer.ggml.{token}_token_id"] = values[f"{name}_token_id"]
    return found


def gguf_tensors(values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint under their names in a GGUF file, with LLaDA's query and key rows interleaved."""
    arch = arch_of(values)
    heads = {"attn_q": values.get("n_heads"), "attn_k": values.get("n_kv_heads") or values.get("n_heads")}
    renamed = {}
    for name, tensor in tensors.items():
        module, _, what = name.rpartition(".")
        if module in _TOP[arch]:
            renamed[f"{_TOP[arch][module]}.{what}"] = tensor
            continue
        number, _, part = module.removeprefix(_LAYER[arch]).partition(".")
        place = _MODULES[arch][part]
        if arch == "llada" and place in heads:
            tensor = interleaved(tensor, heads[place])
        renamed[f"blk.{number}.{place}.{what}"] = tensor
    return renamed


def interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Row j of a head's first half goes to 2 j, row j of its second half to 2 j + 1."""
    out = np.empty_like(rows)
    size = len(rows) // num_heads
    for head in range(num_heads):
        for j in range(size // 2):
            out[head * size + 2 * j] = rows[head * size + j]
            out[head * size + 2 * j + 1] = rows[head * size + size // 2 + j]
    return out


def write_gguf(
    path: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
    *,
    kinds: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    arch: str | None = None,
) -> Path:
    """Writes a checkpoint as a GGUF file whose matrices have the type `kind`; the others are F32.

    `kinds` has other types by name. `metadata` replaces keys of the metadata; a value `...` drops the key. Tensors that
    already are bytes are blocks of their type.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch or arch_of(values))
    for key, value in (gguf_metadata(values) | dict(metadata or {})).items():
        if value is ...:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in gguf_tensors(values, tensors).items():
        own = Kind[(kinds or {}).get(name, kind if tensor.ndim == 2 else "F32")]
        if tensor.dtype == np.uint8:
            data = tensor
        elif own is Kind.BF16 and tensor.dtype == BFLOAT16:
            data = tensor.view(np.uint8)
        else:
            data = gguf.quants.quantize(tensor.astype(np.float32), own)
        writer.add_tensor(name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_metadata(folder: Path, pre: str, *, num_tokens: int, add_bos: bool = False) -> dict[str, Any]:
    """What the converter writes for the tokenizer.json and tokenizer_config.json of a folder."""
    data = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    texts = {token_id: token for token, token_id in data["model"]["vocab"].items()}
    added = {token["id"]: token for token in data["added_tokens"]}
    texts |= {token_id: token["content"] for token_id, token in added.items()}
    types = [5 if i not in texts else (3 if added[i]["special"] else 4) if i in added else 1 for i in range(num_tokens)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [texts.get(i, f"[PAD{i}]") for i in range(num_tokens)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.chat_template": config["chat_template"],
        "tokenizer.ggml.add_bos_token": add_bos,
    }


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Blocks of Q4_K or Q6_K, (rows, bytes), with random bits and scales of both signs."""
    rng = np.random.default_rng(seed)
    block, nbytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = rng.integers(0, 256, (rows, columns // block, nbytes), np.uint8)
    for at in {"Q4_K": (0, 2), "Q6_K": (208,)}[kind]:
        scales = (rng.normal(size=blocks.shape[:2]) * 1e-3).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def decoded_blocks(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The values of blocks, (rows, columns) in float64, one by one as block_q4_K, block_q6_K, block_q8_0 are laid out.

    Source: ggml-common.h and dequantize_row_* in ggml-quants.c of ggml-org/llama.cpp.
    """
    size = gguf.GGML_QUANT_SIZES[Kind[kind]][1]
    decode = {"Q4_K": _q4_k, "Q6_K": _q6_k, "Q8_0": _q8_0}[kind]
    return np.array([np.concatenate([decode(block) for block in row.reshape(-1, size)]) for row in blocks])


def _half(block: np.ndarray, at: int) -> float:
    return float(block[at : at + 2].copy().view(np.float16)[0])


def _q8_0(block: np.ndarray) -> np.ndarray:
    return _half(block, 0) * block[2:].view(np.int8).astype(np.float64)


def _q4_k(block: np.ndarray) -> np.ndarray:
    """d, dmin, 12 bytes with 8 scales and 8 minima of 6 bits, 128 bytes of quants.

    Each 32 bytes of quants hold 32 values in their low halves, and the next 32 values in their high halves.
    """
    d, dmin, packed, quants = _half(block, 0), _half(block, 2), [int(b) for b in block[4:16]], block[16:]
    values = np.zeros(256)
    for group in range(8):
        if group < 4:
            scale, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4
            minimum = packed[group + 4] >> 4 | (packed[group] >> 6) << 4
        for i in range(32):
            byte = int(quants[group // 2 * 32 + i])
            quant = byte >> 4 if group % 2 else byte & 15
            values[group * 32 + i] = d * scale * quant - dmin * minimum
    return values


def _q6_k(block: np.ndarray) -> np.ndarray:
    """128 bytes of low bits, 64 of high bits, 16 signed scales, d. Each half of the block is laid out by itself."""
    low, high, scales, d = block[:128], block[128:192], block[192:208].view(np.int8), _half(block, 208)
    values = np.zeros(256)
    for half in range(2):
        for quarter in range(4):
            for i in range(32):
                byte = int(low[half * 64 + quarter % 2 * 32 + i])
                bits = byte >> 4 if quarter >= 2 else byte & 15
                bits |= (int(high[half * 32 + i]) >> 2 * quarter & 3) << 4
                at = half * 128 + quarter * 32 + i
                values[at] = d * int(scales[at // 16]) * (bits - 32)
    return values


def bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(ml_dtypes.bfloat16)
