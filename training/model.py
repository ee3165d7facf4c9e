"""The demo model in torch: LLaDA's layers, an initialisation that can already look things up, and the export.

B batch, L tokens, d width, H heads, D head_dim, V vocabulary size.
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

# The parts of the residual stream at the beginning of training: a code of the token, a constant, and five slots that
# attention fills. The slots hold codes of the tokens at offsets -2, -1, +2 and -4, and the result of the look-up.
_CONTENT = slice(0, 90)
_FOUND, _WORDS = slice(0, 60), slice(60, 90)
_CONSTANT = slice(90, 96)
_SLOT = 32
_NAME_DIMS = 24
_OFFSETS = (-2, -1, 2, -4)
_LOOKED_UP = 4
# The score of <bos>, where a head looks that finds nothing. It is above chance similarity and below a match.
_SINK = 16.0
_MATCH = 2.6


@dataclass(frozen=True)
class Shape:
    """The model's sizes. The defaults are those of the demo model."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    mlp: int = 768
    rope_theta: float = 1e7
    max_length: int = 8192

    @property
    def head_dim(self) -> int:
        """The size D of one attention head."""
        return self.width // self.heads


class Block(nn.Module):
    """A layer with pre-norm attention and a SiLU-gated MLP. The weights of the norms begin as ones."""

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
        """Applies the layer to x (B, L, d), with cos and sin (B, 1, L, D / 2)."""
        x = x + self.out(attend(*self.heads(x, cos, sin)).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rotated queries, rotated keys, and values, (B, H, L, D) each."""
        qkv = self.qkv(rms_norm(x, self.attention_norm)).unflatten(-1, (3, self.shape.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class DemoModel(nn.Module):
    """A LLaDA with a few million parameters."""

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        self.register_buffer("frequencies", frequencies(shape), persistent=False)

    def forward(self, ids: Tensor, positions: Tensor, attend: Sequence[Attend] | Attend = dense) -> Tensor:
        """Returns the last hidden state (B, L, d) after the final norm.

        Args:
            ids: (B, L), the token ids.
            positions: (B, L), the positions that RoPE uses.
            attend: The attention of all layers, or one function per layer.
        """
        angles = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, attend if callable(attend) else attend[i])
        return rms_norm(x, self.norm)


def frequencies(shape: Shape) -> Tensor:
    """Returns RoPE's frequencies, (D / 2,)."""
    return shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Computes LLaDA's norm in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (j, j + D / 2) of x (B, H, L, D)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


@torch.no_grad()
def initialise(model: DemoModel, vocabulary: Vocabulary, seed: int) -> None:
    """Sets weights with which the model can look things up before it has learned anything.

    Training changes all of them. From random weights, it does not find key matching within tens of millions of tokens,
    because three steps have to work together before any of them lowers the loss. The initial weights contain these
    steps:

    - The heads of layer 0 look at fixed offsets. Each writes a code of the token there into its slot.
    - Layer 1 compares the code of a token with the slots of all others through RoPE's slow pairs. It notes the token
      that a match belongs to: the value of a key, the variable that another is assigned to, or the next key of the
      question.
    - Layer 2 copies the note to the position where it is needed.

    So the look-up happens at every mention of a key, including those in the question, whose tokens are the same in
    every denoising step. A pattern that is selected early therefore stays right.

    Shapes other than the demo model's get only random weights.
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
    # Names and numbers, which can be looked up, and all other words have separate parts of the content, so that a code
    # of one part ignores the other. All embeddings have the same length, because the norm after a longer one would
    # shrink the constant, which the heads for fixed offsets need.
    embedding = torch.zeros_like(model.embedding.weight)
    embedding[:, _WORDS] = normal(len(embedding), 30)
    found = [vocabulary[word] for word in (*vocabulary.names, *vocabulary.numbers)]
    embedding[found] = 0
    embedding[found, _FOUND] = normal(len(found), 60)
    # Names share a direction, numbers share another, and the mask points to both, so that a masked position attends to
    # tokens that may fill it.
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
        """Returns a code (size, 90) that reads one part of the content."""
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
        """Returns the rows of qkv for a head; part 0, 1 or 2 is q, k or v."""
        start = (part * shape.heads + head) * shape.head_dim
        return slice(start, start + shape.head_dim)

    def write(layer: int, head: int, source: Tensor, columns: slice, target: slice, decode: Tensor) -> None:
        """Sets a head's value and output: it reads source (n, columns) of a token and writes decode (target, n)."""
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
        """Sets a head whose query and key are codes, (columns, code) each. It prefers tokens after the word `after`."""
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

    content, plain, note = _CONTENT, torch.eye(_SLOT), slots[_LOOKED_UP]
    previous = torch.eye(_SLOT)[:_NAME_DIMS]  # the part of slot 1 that encodes names
    match(1, 0, (content, key), (slots[0], plain), "is")  # a key finds the token after "is" that has the key at -2
    write(1, 0, note_code, _CONTENT, note, 0.8 * plain)
    match(1, 1, (content, ahead), (slots[2], plain), "var")  # a variable finds the one after "var" that has it at +2
    write(1, 1, note_code, _CONTENT, note, 0.8 * plain)
    match(1, 2, (slots[3], plain), (slots[0], plain), "and")  # the key at -4 finds the next key of the question
    write(1, 2, note_code, _CONTENT, _CONTENT, 3.0 * note_code.T)
    match(2, 0, (slots[0], plain), (content, key), None)  # reads the note of the key at -2
    write(2, 0, plain, note, _CONTENT, 4.0 * note_code.T)
    match(2, 1, (slots[1], previous), (content, before[:_NAME_DIMS]), None)  # reads the note of the variable at -1
    write(2, 1, plain, note, _CONTENT, 4.0 * note_code.T)
    for part in (0, 1):  # one head attends equally to everything, which lets it count words
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
    """Writes the safetensors format: the length of the header, the header as JSON, and the tensors."""
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
    with replacing(path) as new:  # a process that has mapped the old file must not see it shrink
        new.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
