"""The page that plays a generation: one HTML file without any reference to the network."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import re
import zlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...models.tokenizer import Tokenizer
from .grid import Cells, cells_of, check_index, head_masks, row_patterns
from .palette import PHASE_COLOURS, confidence_shade
from .pieces import is_special, token_texts

if TYPE_CHECKING:
    from ...generation.result import GenerationResult

# Cells on a side of a drawn head, and cells of all heads together.
_LARGE, _MOST_LARGE = 256, 1 << 24
_SMALL, _MOST_SMALL = 48, 1 << 19  # in the overview
_FULL = 15  # the level of a cell whose blocks are all selected


def render(result: GenerationResult, tokenizer: Tokenizer, *, row: int, title: str) -> str:
    """`GenerationResult.page`."""
    check_index("page", "row", row, len(result.tokens))
    if not isinstance(title, str):
        raise TypeError(f"page: title is {title!r}, expected a text")
    parts = {
        "title": escape(title),
        "text": escape(tokenizer.text(result.generated[row])),
        "data": _script_json(_data(result, tokenizer, row)),
        "css": _read("page.css"),
        "js": _read("page.js"),
        "patterns": _read("patterns.js"),
    }
    # One pass: what is put in is not searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def _read(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _script_json(data: dict[str, Any]) -> str:
    """JSON that no HTML parser takes for a tag."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(result: GenerationResult, tokenizer: Tokenizer, row: int) -> dict[str, Any]:
    padding = next(group.padding for group in result.groups if row in group.batch_indices)
    prompt = result.tokens[row, padding : result.prompt_length]
    return {
        "colours": PHASE_COLOURS,
        "facts": _facts(result, row),
        "steps": [
            {
                "phase": step.phase,
                "seconds": round(step.seconds, 6),
                "density": round(step.density, 4),
            }
            for step in result.stats
        ],
        "tokens": _tokens(result, tokenizer, row),
        "prompt": tokenizer.decode(prompt, skip_special_tokens=False),
        "promptTokens": len(prompt),
        "patterns": _patterns(result, row),
    }


def _facts(result: GenerationResult, row: int) -> list[tuple[str, str]]:
    patterns = row_patterns(result, row)
    facts = [("attention", "dense")]
    if patterns is not None:
        config = patterns.cache.config
        names = {"SparseConfig": "SparseD", "BlockPattern": "a given pattern", "NoneType": "given patterns"}
        kind = type(config).__name__
        facts = [("attention", names.get(kind, kind))]
        changed = vars(config) if dataclasses.is_dataclass(config) else {}
        shown = [name for name in ("rho", "skip", "block_size", "window", "sinks") if name in changed]
        facts += [(name.replace("_", " "), str(changed[name])) for name in shown]
    stats = result.stats
    facts += [
        ("tokens", str(result.generated.shape[1])),
        ("steps", str(len(stats))),
        ("seconds", f"{stats.seconds:.2f}"),
        ("mean density", f"{stats.density:.2f}"),
    ]
    return [*facts, ("interrupted", "yes")] if result.interrupted else facts


def _tokens(result: GenerationResult, tokenizer: Tokenizer, row: int) -> list[dict[str, Any]]:
    ids = result.generated[row].tolist()
    steps, confidence = result.filled_at[row].tolist(), result.confidence[row]
    special = {token: is_special(tokenizer, token) for token in set(ids)}
    return [
        {
            "text": text,
            "id": token,
            "special": special[token],
            "step": step,
            "confidence": round(float(confidence[i]), 4) if np.isfinite(confidence[i]) else None,
            "shade": round(float(shade), 3),
        }
        for i, (text, token, step, shade) in enumerate(
            zip(token_texts(tokenizer, ids), ids, steps, confidence_shade(confidence), strict=True)
        )
    ]


def _patterns(result: GenerationResult, row: int) -> dict[str, Any] | None:
    """The heads of all layers, small for the overview and large."""
    where = row_patterns(result, row)
    if where is None:
        return None
    cache, batch = where
    patterns = [cache.pattern(layer) for layer in cache.layers]
    first, heads = patterns[0], sum(pattern.heads for pattern in patterns)
    large_side = min(_LARGE, int((_MOST_LARGE / heads) ** 0.5))
    small_side = min(_SMALL, max(1, int((_MOST_SMALL / heads) ** 0.5)))
    large = [cells_of(head_masks(pattern, batch)).shrunk(large_side) for pattern in patterns]
    small = [cells.shrunk(small_side) for cells in large]
    return {
        "layers": cache.layers,
        "heads": first.heads,
        "qBlocks": first.q_blocks,
        "kvBlocks": first.kv_blocks,
        "qLen": first.q_len,
        "kvLen": first.kv_len,
        "blockSize": first.block_size,
        "promptLength": first.prompt_length,
        "densities": [pattern.head_density[batch].round(4).tolist() for pattern in patterns],
        "large": _packed(large),
        "small": _packed(small),
    }


def _packed(layers: Sequence[Cells]) -> dict[str, Any]:
    """The cells of each layer's heads: 1 or 4 bits per cell, packed, deflated, as base64.

    One bit where a cell is a block. Else a level: 0 where none of the blocks are selected, 15 where all are.
    """
    rows, columns = layers[0].blocks.shape
    factor = layers[0].factor
    bits = 1 if factor == 1 else 4
    packed = [np.packbits(layer.counts) if bits == 1 else _pairs(_levels(layer)) for layer in layers]
    return {
        "rows": rows,
        "columns": columns,
        "factor": factor,
        "bits": bits,
        "cells": [base64.b64encode(zlib.compress(part.tobytes(), 1)).decode("ascii") for part in packed],
    }


def _levels(cells: Cells) -> NDArray[np.uint8]:
    """A level of 0 ... 15 per cell; 1 ... 14 where a part of the blocks is selected."""
    partial, blocks = _FULL - 1, cells.blocks.astype(np.uint32)
    levels = (cells.counts * np.uint32(partial) + (blocks - 1)) // blocks
    levels += cells.counts == blocks
    return np.asarray(levels, np.uint8)


def _pairs(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two levels per byte, the first one in the high bits."""
    flat = levels.ravel()
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[::2] * 16 + flat[1::2], np.uint8)
