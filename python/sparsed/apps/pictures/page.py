"""The page that plays a generation: one HTML file without any reference to the network."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import re
import zlib
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.tokenizer import Tokenizer
from .grid import check_index, head_masks, row_patterns, shares
from .palette import PHASE_COLOURS, confidence_shade
from .pieces import is_special, token_texts

if TYPE_CHECKING:
    from ...generation.result import GenerationResult

_MAX_SIDE = 256  # cells on a side of a drawn head
_MAX_CELLS = 1 << 24  # of all heads together


def render(result: GenerationResult, tokenizer: Tokenizer, *, row: int, title: str) -> str:
    """`GenerationResult.page`."""
    check_index("page", "row", row, len(result.tokens))
    parts = {
        "title": escape(title),
        "text": escape(tokenizer.text(result.generated[row])),
        "data": _script_json(_data(result, tokenizer, row)),
        **{kind: _read(f"page.{kind}") for kind in ("css", "js")},
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
        facts = [("attention", "SparseD" if type(config).__name__ == "SparseConfig" else type(config).__name__)]
        changed = dataclasses.asdict(config)
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
    """The heads of all layers: a byte per cell, 255 where all its blocks are selected; deflated, base64."""
    where = row_patterns(result, row)
    if where is None:
        return None
    cache, batch = where
    layers = cache.layers
    first = cache.pattern(layers[0])
    side = min(_MAX_SIDE, int((_MAX_CELLS / (len(layers) * first.heads)) ** 0.5))
    cells = [
        np.ceil(255 * shares(mask, side)).astype(np.uint8)
        for layer in layers
        for mask in head_masks(cache.pattern(layer), batch)
    ]
    rows, columns = cells[0].shape
    return {
        "layers": layers,
        "heads": first.heads,
        "rows": rows,
        "columns": columns,
        "qBlocks": first.q_blocks,
        "kvBlocks": first.kv_blocks,
        "qLen": first.q_len,
        "kvLen": first.kv_len,
        "blockSize": first.block_size,
        "promptBlocks": columns * first.prompt_length / (first.kv_blocks * first.block_size),
        "densities": [cache.pattern(layer).head_density[batch].round(4).tolist() for layer in layers],
        "cells": base64.b64encode(zlib.compress(np.stack(cells).tobytes(), 9)).decode("ascii"),
    }
