"""Model families: how their checkpoints are read, and the transformer that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import recognise
from .a2d import A2D_LLAMA, A2D_QWEN2, A2D_QWEN3
from .architecture import Architecture, TensorNames, tensor_shapes
from .config import ConfigReader, ModelConfig
from .dream import DREAM
from .inputs import Inputs, read_inputs, require_activations
from .key_values import KeyValues
from .llada import ILLADA, LLADA
from .open_dcoder import OPEN_DCODER
from .transformer import DTYPES, Attend, Layer, Model, Transformer

ARCHITECTURES = (LLADA, ILLADA, DREAM, A2D_QWEN3, A2D_QWEN2, A2D_LLAMA, OPEN_DCODER)

__all__ = [
    "ARCHITECTURES",
    "DTYPES",
    "Architecture",
    "Attend",
    "ConfigReader",
    "Inputs",
    "KeyValues",
    "Layer",
    "Model",
    "ModelConfig",
    "TensorNames",
    "Transformer",
    "find_architecture",
    "read_inputs",
    "require_activations",
    "tensor_shapes",
]


def find_architecture(values: Mapping[str, Any], source: str) -> Architecture:
    """Returns the architecture that a config.json names by its class or, if it names no class, by its model_type.

    The class decides because a model_type can be shared: LLaDA-MoE has that of LLaDA. A class that autoregressive
    models have too counts only beside a mask token.

    Raises:
        ValueError: The architecture is not supported. The message names the model if it is a known one.
    """
    classes, model_type = values.get("architectures"), values.get("model_type")
    unmasked = values.get("mask_token_id") is None
    if isinstance(classes, list) and classes:
        names = [str(name) for name in classes]
        matches = [a for a in ARCHITECTURES if a.class_name in classes]
        found, expected = f"architectures is {classes}", [a.class_name for a in ARCHITECTURES]
    else:
        names = [f"{model_type}_moe" if values.get("num_experts") else str(model_type)]
        matches = [a for a in ARCHITECTURES if a.model_type == names[0].lower()]
        found, expected = f"model_type is {model_type!r}", [a.model_type for a in ARCHITECTURES]
    lacking = next((f" ({a.title} has this class and names a mask token)" for a in matches if a.needs_mask_token), "")
    if len(matches) != 1 or (unmasked and lacking):
        families = ", ".join(a.title for a in ARCHITECTURES)
        known = recognise.model(names, families)
        raise ValueError(f"load_model: {found}, expected one of {expected}: {known}{lacking} (in {source})")
    return matches[0]
