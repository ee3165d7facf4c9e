"""Finds the attention layers of a model by the modules that they contain, not by the names of their classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["AttentionLayer", "find_layers"]


def _projection(letter: str, *words: str) -> re.Pattern[str]:
    """Returns a pattern for the name of a projection: q_proj, wq, query, query_layer, to_q, linear_q ..."""
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
    """An attention layer: a module whose forward pass projects queries, keys and values and computes attention.

    Attributes:
        name: The path of the module in the model.
        module: The module.
        projections: The names of its query, key, value (or fused) and output projections.
        rotary: The path of its rotary module or buffer. None if transformers dispatches the attention.
        q_width: The number of features of all query heads.
        kv_width: The number of features of all key heads.
    """

    name: str
    module: nn.Module
    projections: tuple[str, ...]
    rotary: str | None
    q_width: int
    kv_width: int

    @property
    def groups(self) -> int:
        """The number of query heads that share a key/value head."""
        return self.q_width // self.kv_width

    @property
    def place(self) -> str:
        """The path with a * for the number of the layer: "model.layers.*.self_attn"."""
        return re.sub(r"(^|(?<=\.))\d+(?=\.|$)", "*", self.name)

    @property
    def is_local(self) -> bool:
        """Whether the layer sees only a sliding window, as some of ModernBERT do. Such layers stay as they are."""
        return is_dispatched(self.module) and getattr(self.module, "sliding_window", None) is not None


def find_layers(model: nn.Module) -> list[AttentionLayer]:
    """Returns the attention layers in the order of the model's modules, including those with a sliding window.

    A known layer has input projections, a rotary module and an output projection, or it has input projections and
    transformers dispatches its attention by ``attn_implementation``.

    Raises:
        ValueError: No layer was found, or there are layers of different kinds. The message says what was found.
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
    """Returns whether transformers dispatches the module's attention to the function that its config names."""
    if not hasattr(getattr(module, "config", None), "_attn_implementation"):
        return False
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return hasattr(module, "is_causal") or "ALL_ATTENTION_FUNCTIONS" in getattr(code, "co_names", ())


def _projections(module: nn.Module) -> tuple[tuple[str, ...], int, int] | None:
    """Returns the names of a module's projections and the widths of its queries and keys, or None.

    The names are those for query, key, value and output, or for fused and output. The output may be missing.
    """
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
    """Returns whether a module is a linear layer, which need not be an ``nn.Linear``: it may be quantised."""
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def _rotary(model: nn.Module, name: str) -> str | None:
    """Returns the path of the nearest rotary module or buffer, in the layer or in a module around it."""
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
