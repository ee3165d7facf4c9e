"""Finds the attention layers of a model by what they are made of, not by the names of their classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["AttentionLayer", "find_layers"]


def _projection(letter: str, *words: str) -> re.Pattern[str]:
    """q_proj, wq, query, query_layer, to_q, linear_q ..."""
    name = "|".join((letter, *words))
    part = "proj|projection|lin|linear|layer"
    return re.compile(rf"(w_?)?({name})(_?({part}))?|(to|{part}|w|fc)_?({name})", re.IGNORECASE)


_QUERY, _KEY, _VALUE = _projection("q", "query"), _projection("k", "key"), _projection("v", "value")
_OUT = _projection(
    "o", "out", "output", "att_out", "attn_out", "attention_out", "dense", "c_proj", "proj", "projection"
)
_FUSED = _projection("qkv", "query_key_value", "att_proj", "c_attn")
_ROTARY = re.compile("rot|rope", re.IGNORECASE)
_ROTARY_BUFFER = re.compile("inv_freq|freqs|freqs_cis|cos|sin|cos_cached|sin_cached")


_CROSS = re.compile("cross|encoder_attn|enc_?dec", re.IGNORECASE)


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer: a module whose forward pass projects and attends.

    Attributes:
        name: Its path in the model.
        projections: The names of its query, key, value (or fused) and output projections.
        rotary: The path of what turns queries and keys; None where transformers dispatches the attention.
        q_width: Features of all query heads.
        kv_width: Features of all key heads.
    """

    name: str
    module: nn.Module
    projections: tuple[str, ...]
    rotary: str | None
    q_width: int
    kv_width: int

    @property
    def groups(self) -> int:
        """Query heads that share a key/value head."""
        return self.q_width // self.kv_width

    @property
    def place(self) -> str:
        """The path with the layer's number open: "model.layers.*.self_attn"."""
        return re.sub(r"(^|(?<=\.))\d+(?=\.|$)", "*", self.name)

    @property
    def is_local(self) -> bool:
        """Whether it sees a sliding window, as some layers of ModernBERT do: it stays as it is."""
        return is_dispatched(self.module) and getattr(self.module, "sliding_window", None) is not None


def find_layers(model: nn.Module) -> list[AttentionLayer]:
    """The attention layers in the order of the model's modules, those with a sliding window too.

    Known are layers that project, turn by a rotary module and project back, and those whose attention transformers
    dispatches by ``attn_implementation``.

    Raises:
        ValueError: None found, or layers of different kinds; the message says what was there.
    """
    layers, near = [], []
    for name, module in model.named_modules():
        projections = _projections(module)
        if projections is None:
            continue
        names, q_width, kv_width = projections
        rotary = _rotary(model, name)
        has_out = len(names) in (2, 4)
        if (has_out and rotary is not None) or (len(names) > 1 and is_dispatched(module)):
            layers.append(AttentionLayer(name, module, names, rotary, q_width, kv_width))
        else:
            missing = "rotary module" if has_out else "output projection"
            near.append(f"{name} ({type(module).__name__}) has {', '.join(names)}, but no {missing}")
    if not layers:
        raise ValueError(
            f"accelerate: {type(model).__name__} has no attention layer that is known, expected modules with "
            "projections for query, key, value (or one for all) and output, and a rotary module on them or above them, "
            "or a model of transformers that runs by attn_implementation; "
            + ("found: " + "; ".join(near[:3]) if near else "found no query, key and value projections")
        )
    _check_layers(type(model).__name__, layers)
    return layers


def _check_layers(model: str, layers: list[AttentionLayer]) -> None:
    for layer in layers:
        of_class = type(layer.module).__name__
        if _CROSS.search(layer.name) or _CROSS.search(of_class):
            raise ValueError(
                f"accelerate: {model} has cross-attention ({layer.name}), expected only attention of a sequence to "
                "itself"
            )
        if getattr(layer.module, "sinks", None) is not None:
            raise ValueError(f"accelerate: {layer.name} ({of_class}) has sinks, expected plain softmax attention")
    whole = [layer for layer in layers if not layer.is_local]
    if not whole:
        raise ValueError(
            f"accelerate: every attention layer of {model} has a sliding window, expected some that see the whole "
            "sequence"
        )
    kinds = {(layer.place, layer.projections, layer.q_width, layer.kv_width): layer for layer in whole}
    if len(kinds) > 1:
        raise ValueError(
            f"accelerate: {model} has attention layers of different kinds, expected one: "
            + "; ".join(f"{layer.name} ({', '.join(layer.projections)})" for layer in kinds.values())
        )


def is_dispatched(module: nn.Module) -> bool:
    """Whether transformers calls an attention function for it, the one that its config names."""
    if not hasattr(getattr(module, "config", None), "_attn_implementation"):
        return False
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return hasattr(module, "is_causal") or "ALL_ATTENTION_FUNCTIONS" in getattr(code, "co_names", ())


def _projections(module: nn.Module) -> tuple[tuple[str, ...], int, int] | None:
    """Names and widths: query, key, value and output, or fused and output; without the output where there is none."""
    linear: dict[str, Any] = {name: child for name, child in module.named_children() if _is_linear(child)}
    q, k, v, out, fused = (
        next((name for name in linear if kind.fullmatch(name)), None) for kind in (_QUERY, _KEY, _VALUE, _OUT, _FUSED)
    )
    if q and k and v:
        names = (q, k, v) if out is None else (q, k, v, out)
        q_width, k_width, v_width = (int(linear[name].out_features) for name in (q, k, v))
        return (names, q_width, k_width) if k_width == v_width and q_width % k_width == 0 else None
    if fused:
        total = int(linear[fused].out_features)
        if out is None:
            return (fused,), total, 0
        q_width = int(linear[out].in_features)
        kv_width = (total - q_width) // 2
        return ((fused, out), q_width, kv_width) if kv_width > 0 and q_width % kv_width == 0 else None
    return None


def _is_linear(module: nn.Module) -> bool:
    """``nn.Linear`` and what replaces it: quantised, with adapters."""
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def _rotary(model: nn.Module, name: str) -> str | None:
    """The rotary module (or its buffers) of a layer or of what holds it, the nearest one."""
    for path, holder in _from_inside(model, name):
        for child, module in holder.named_children():
            if _ROTARY.search(child) or _ROTARY.search(type(module).__name__):
                return f"{path}.{child}" if path else child
        for buffer, _ in holder.named_buffers(recurse=False):
            if _ROTARY.search(buffer) or _ROTARY_BUFFER.fullmatch(buffer):
                return f"{path}.{buffer}" if path else buffer
    return None


def _from_inside(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    parts = name.split(".") if name else []
    for count in range(len(parts), -1, -1):
        path = ".".join(parts[:count])
        yield path, model.get_submodule(path)
