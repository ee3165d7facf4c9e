"""The demo model in torch: LLaDA's layers, an initialisation that can already look things up, and the export.

B rows, L tokens, d width, H heads of D, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsed.models.files import replacing

from .attention import Attend, dense
from .vocabulary import BOS, EOS, MASK, PAD, Vocabulary

# Parts of the residual stream at the beginning of training: what a token is, a constant, and slots for what attention
# brings: the tokens at offsets -2, -1, +2 and -4, and what was looked up for the token itself.
_CONTENT = slice(0, 90)
_FOUND, _WORDS = slice(0, 60), slice(60, 90)
_CONSTANT = slice(90, 96)
_SLOT = 32
_NAME_DIMS = 24
_OFFSETS = (-2, -1, 2, -4)
_LOOKED_UP = 4
# How strongly a head that finds nothing looks at <bos>: above chance resemblance, below a match.
_SINK = 16.0
_MATCH = 2.6


@dataclass(frozen=True)
class Shape:
    """The model's sizes; the defaults are the demo model's."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    mlp: int = 768
    rope_theta: float = 1e7
    max_length: int = 8192

    @property
    def head_dim(self) -> int:
        """D."""
        return self.width // self.heads


class Block(nn.Module):
    """Pre-norm attention and a SiLU-gated MLP; the norms' weights are folded in at the start (ones)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.Parameter(torch.ones(shape.width))
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(shape.width))
        self.gate_up = nn.Linear(shape.width, 2 * shape.mlp, bias=False)
        self.down = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """X (B, L, d); cos, sin (B, 1, L, D / 2)."""
        x = x + self.out(attend(*self.heads(x, cos, sin)).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, (B, H, L, D) each."""
        qkv = self.qkv(rms_norm(x, self.attention_norm)).unflatten(-1, (3, self.shape.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class DemoModel(nn.Module):
    """A LLaDA of a few million parameters."""

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        self.register_buffer("frequencies", frequencies(shape), persistent=False)

    def forward(self, ids: Tensor, positions: Tensor, attend: Sequence[Attend] | Attend = dense) -> Tensor:
        """The last hidden state (B, L, d), normed.

        Args:
            ids: (B, L).
            positions: (B, L), what RoPE turns by.
            attend: The attention of all layers, or of each.
        """
        angles = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, attend if callable(attend) else attend[i])
        return rms_norm(x, self.norm)


def frequencies(shape: Shape) -> Tensor:
    """RoPE's, (D / 2,)."""
    return shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """LLaDA's norm, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half rotation of x (B, H, L, D)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


@torch.no_grad()
def initialise(model: DemoModel, vocabulary: Vocabulary, seed: int) -> None:
    """Weights with which the model can look up before it has learned anything; all of them are trained afterwards.

    A random start does not find key matching within tens of millions of tokens, because three things have to be there
    at once. So: layer 0's first heads look at fixed offsets and write a code of that token into a slot of their own;
    layer 1 compares a token's own code with the slots of all others through RoPE's slow pairs and notes what stands
    there (KEY -> its value, a variable -> the one that is assigned it, a key of the question -> the next one); layer 2
    carries what was noted to the place where it is asked for. The look-up thus happens at every mention of a key, in
    the question too, whose tokens are the same in every denoising step: a pattern selected early stays right.

    Other shapes than the demo model's get the random start alone.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 0.02 if "blocks" in name else 1.0
            weight.copy_(std * normal(*weight.shape))
    for block in model.blocks:
        block.down.weight.div_(math.sqrt(2 * len(model.blocks)))
    shape = model.shape
    if (shape.width, shape.head_dim) != (256, 64) or shape.layers < 3:
        return
    # What can be looked up (names, numbers) and the words around it lie in parts of the content of their own, so that
    # a code of the one part is blind to the other. All have one length: a longer token would shorten the normed
    # constant, by which the offsets are told apart.
    embedding = torch.zeros_like(model.embedding.weight)
    embedding[:, _WORDS] = normal(len(embedding), 30)
    found = [vocabulary[word] for word in (*vocabulary.names, *vocabulary.numbers)]
    embedding[found] = 0
    embedding[found, _FOUND] = normal(len(found), 60)
    # Names and numbers have a direction in common, and the mask points there: an open place looks at what fits it.
    embedding[vocabulary[MASK], _WORDS] *= 0.5
    for words in (vocabulary.names, vocabulary.numbers):
        common = normal(60)
        embedding[[vocabulary[word] for word in words], _FOUND] += 0.3 * common
        embedding[vocabulary[MASK], _FOUND] += 0.5 * common
    embedding *= math.sqrt(90) / embedding.norm(dim=1, keepdim=True)
    embedding[:, _CONSTANT] = 2.0
    model.embedding.weight.copy_(embedding)
    model.head.weight.zero_()
    model.head.weight[:, _CONTENT] = 0.3 * embedding[:, _CONTENT]
    model.head.weight[vocabulary[MASK]] = 0

    def code(size: int, part: slice) -> Tensor:
        """(size, 90), which reads one part of the content."""
        matrix = torch.zeros(size, 90)
        matrix[:, part] = torch.linalg.qr(normal(part.stop - part.start, size)).Q.T
        return matrix

    key, ahead, note_code = (code(_SLOT, _FOUND) for _ in range(3))
    before = torch.cat([code(_NAME_DIMS, _FOUND), code(_SLOT - _NAME_DIMS, _WORDS)])
    slots = [slice(96 + i * _SLOT, 96 + (i + 1) * _SLOT) for i in range(5)]
    codes = [key, before, ahead, key]  # of the tokens at _OFFSETS
    sink = embedding[vocabulary[BOS], _CONTENT]

    fast, slow = slice(0, 7), slice(17, 31)
    half = shape.head_dim // 2
    spin = frequencies(shape)[fast]

    def place(part: int, head: int) -> slice:
        """A head's rows of qkv; part 0, 1, 2: q, k, v."""
        start = (part * shape.heads + head) * shape.head_dim
        return slice(start, start + shape.head_dim)

    def write(layer: int, head: int, source: Tensor, columns: slice, target: slice, decode: Tensor) -> None:
        """A head's value and output: source (n, columns) of what it looks at, decode (target, n) into the stream."""
        block, n = model.blocks[layer], len(source)
        rows = place(2, head)
        block.qkv.weight[rows] = 0
        block.qkv.weight[rows.start : rows.start + n, columns] = source
        block.out.weight[:, head * 64 : (head + 1) * 64] = 0
        block.out.weight[target, head * 64 : head * 64 + n] = decode

    for head, offset in enumerate(_OFFSETS):
        qkv = model.blocks[0].qkv.weight
        for part in (0, 1):
            qkv[place(part, head)] = 0
        q, k = place(0, head).start, place(1, head).start
        qkv[q : q + 7, _CONSTANT] = (0.7 * torch.cos(offset * spin))[:, None]
        qkv[q + half : q + half + 7, _CONSTANT] = (0.7 * torch.sin(offset * spin))[:, None]
        qkv[k : k + 7, _CONSTANT] = 0.7
        write(0, head, codes[head], _CONTENT, slots[head], 0.65 * torch.eye(_SLOT))

    def match(layer: int, head: int, query: tuple[slice, Tensor], key: tuple[slice, Tensor], after: str | None) -> None:
        """A head whose query and key are codes, (columns, code) each; `after`: prefers tokens that follow this word."""
        qkv = model.blocks[layer].qkv.weight
        n = slow.stop - slow.start
        size = len(query[1])
        mix = torch.zeros(2 * n, size)
        mix[: min(2 * n, size)] = torch.linalg.qr(normal(size, min(2 * n, size))).Q.T
        mix *= _MATCH * math.sqrt(_SLOT / size)
        for part, (columns, code) in enumerate((query, key)):
            start = place(part, head).start
            qkv[place(part, head)] = 0
            both = mix @ code
            qkv[start + slow.start : start + slow.stop, columns] = both[:n]
            qkv[start + half + slow.start : start + half + slow.stop, columns] = both[n:]
        qkv[place(0, head).start + half - 2, _CONSTANT] = 0.5
        qkv[place(1, head).start + half - 2, _CONTENT] = _SINK * sink / sink.square().sum()
        if after is not None:
            word = before @ embedding[vocabulary[after], _CONTENT]
            qkv[place(0, head).start + half - 1, _CONSTANT] = 0.5
            qkv[place(1, head).start + half - 1, slots[1]] = 6.0 * word / word.square().sum()

    own, plain, note = _CONTENT, torch.eye(_SLOT), slots[_LOOKED_UP]
    previous = torch.eye(_SLOT)[:_NAME_DIMS]  # the part of slot 1 that knows names
    match(1, 0, (own, key), (slots[0], plain), "is")  # KEY -> the token that has it at -2, after "is"
    write(1, 0, note_code, _CONTENT, note, 0.8 * plain)
    match(1, 1, (own, ahead), (slots[2], plain), "var")  # a variable -> the one that has it at +2, after "var"
    write(1, 1, note_code, _CONTENT, note, 0.8 * plain)
    match(1, 2, (slots[3], plain), (slots[0], plain), "and")  # the key at -4 -> the next key of the question
    write(1, 2, note_code, _CONTENT, _CONTENT, 3.0 * note_code.T)
    match(2, 0, (slots[0], plain), (own, key), None)  # where KEY stands at -2: what every KEY noted
    write(2, 0, plain, note, _CONTENT, 4.0 * note_code.T)
    match(2, 1, (slots[1], previous), (own, before[:_NAME_DIMS]), None)  # the variable at -1: what every mention noted
    write(2, 1, plain, note, _CONTENT, 4.0 * note_code.T)
    for part in (0, 1):  # one head that counts: it looks at everything alike
        model.blocks[1].qkv.weight[place(part, 3)] = 0


def export(model: DemoModel, vocabulary: Vocabulary, folder: Path) -> None:
    """Writes a LLaDA checkpoint folder: config.json, model.safetensors in bfloat16, tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    tensors = {
        "model.transformer.wte.weight": state["embedding.weight"],
        "model.transformer.ln_f.weight": state["norm"],
        "model.transformer.ff_out.weight": state["head.weight"],
    }
    for i in range(shape.layers):
        source, target = f"blocks.{i}.", f"model.transformer.blocks.{i}."
        tensors[f"{target}attn_norm.weight"] = state[f"{source}attention_norm"]
        for name, part in zip("qkv", np.split(state[f"{source}qkv.weight"], 3), strict=True):
            tensors[f"{target}{name}_proj.weight"] = part
        tensors[f"{target}attn_out.weight"] = state[f"{source}out.weight"]
        tensors[f"{target}ff_norm.weight"] = state[f"{source}mlp_norm"]
        gate, up = np.split(state[f"{source}gate_up.weight"], 2)
        tensors[f"{target}ff_proj.weight"], tensors[f"{target}up_proj.weight"] = gate, up
        tensors[f"{target}ff_out.weight"] = state[f"{source}down.weight"]
    _write_safetensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": shape.width,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "n_layers": shape.layers,
        "mlp_hidden_size": shape.mlp,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "alibi": False,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": shape.rope_theta,
        "attention_layer_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "rms_norm_eps": 1e-5,
        "max_sequence_length": shape.max_length,
        "include_qkv_bias": False,
        "include_bias": False,
        "scale_logits": False,
        "vocab_size": len(vocabulary),
        "embedding_size": len(vocabulary),
        "weight_tying": False,
        "bos_token_id": vocabulary[BOS],
        "eos_token_id": vocabulary[EOS],
        "pad_token_id": vocabulary[PAD],
        "mask_token_id": vocabulary[MASK],
        "input_emb_norm": False,
        "multi_query_attention": None,
        "torch_dtype": "bfloat16",
    }
    with replacing(folder / "config.json") as new:
        new.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    vocabulary.save(folder, shape.max_length)


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """The safetensors format: the header's length, the header as JSON, the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, offset = [], 0
    for name in sorted(tensors):
        data = np.ascontiguousarray(tensors[name]).astype(ml_dtypes.bfloat16).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as new:  # who has the old file mapped must not see it shrink
        new.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
