"""Model families: how their checkpoints are read, and the transformer that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import recognise
from .architecture import Architecture, TensorNames, tensor_shapes
from .config import ConfigReader, ModelConfig
from .dream import DREAM
from .inputs import Inputs, inverse_frequencies, read_inputs, require_activations
from .key_values import KeyValues
from .llada import ILLADA, LLADA
from .transformer import DTYPES, Attend, Layer, Model, Transformer

ARCHITECTURES = (LLADA, ILLADA, DREAM)

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
    "inverse_frequencies",
    "read_inputs",
    "require_activations",
    "tensor_shapes",
]


def find_architecture(values: Mapping[str, Any], source: str) -> Architecture:
    """Returns the architecture that a config.json names by its class or, if it names no class, by its model_type.

    The class decides because a model_type can be shared: LLaDA-MoE has that of LLaDA.

    Raises:
        ValueError: The architecture is not supported. The message names the model if it is a known one.
    """
    classes, model_type = values.get("architectures"), values.get("model_type")
    if isinstance(classes, list) and classes:
        names = [str(name) for name in classes]
        matches = [a for a in ARCHITECTURES if a.class_name in classes]
        found, expected = f"architectures is {classes}", [a.class_name for a in ARCHITECTURES]
    else:
        names = [f"{model_type}_moe" if values.get("num_experts") else str(model_type)]
        matches = [a for a in ARCHITECTURES if a.model_type == names[0].lower()]
        found, expected = f"model_type is {model_type!r}", [a.model_type for a in ARCHITECTURES]
    if len(matches) != 1:
        raise ValueError(f"load_model: {found}, expected one of {expected}: {recognise.model(names)} (in {source})")
    return matches[0]
