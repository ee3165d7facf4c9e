"""torch as a peer in a pass over all tokens: in bfloat16, and with weights and activations in int8."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsed.models import ModelConfig

from ..arrays import Array
from ..cases import LayerShape
from .base import INT8_TOLERANCE, Pass, SkipError
from .torch_common import load_torch
from .torch_layers import TorchLayers

NAME = "torch"


def bfloat16_passes(checkpoint: Path, shape: LayerShape, config: ModelConfig) -> list[Pass]:
    """Returns the pass in bfloat16 with the attention of SDPA.

    Raises:
        SkipError: torch is not installed.
    """
    _require_torch()
    return [_pass(TorchLayers(checkpoint, shape, config), "bfloat16")]


def int8_passes(checkpoint: Path, shape: LayerShape, config: ModelConfig) -> list[Pass]:
    """Returns the pass with int8 linear layers, and the rest in bfloat16.

    Raises:
        SkipError: torch is not installed or has no oneDNN.
    """
    _require_torch()
    torch = load_torch()
    if not hasattr(torch, "quantize_per_channel") or "onednn" not in torch.backends.quantized.supported_engines:
        raise SkipError("this torch has no quantised layers of oneDNN")
    return [dataclasses.replace(_pass(Int8Layers(checkpoint, shape, config), "int8"), tolerance=INT8_TOLERANCE)]


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise SkipError("torch is not installed (pip install torch)")


def _pass(layers: TorchLayers, weights: str) -> Pass:
    return Pass(NAME, weights, "SDPA", partial(_logits, layers), layers.nbytes)


def _logits(layers: TorchLayers, ids: NDArray[np.int64]) -> Array:
    return layers.logits(ids, np.arange(ids.shape[1])).astype(np.float32)


class Int8Layers(TorchLayers):
    """Linear layers by torch's dynamic quantisation: a scale per output of the weights, and one per call for x.

    oneDNN's engine is the fastest of torch's. On one layer of LLaDA-8B's shape, torchao's compiled layers, which have a
    scale per token, took the same time with 2,048 tokens and 1.15 times as long with 512.
    """

    def __init__(self, folder: Path, shape: LayerShape, config: ModelConfig) -> None:
        super().__init__(folder, shape, config)
        torch = self._torch
        torch.backends.quantized.engine = "onednn"
        self._packed: dict[str, Any] = {}
        for name in [name for name, weight in self.weights.items() if weight.dim() == 2]:
            if name == f"{self.names.embedding}.weight":
                continue
            weight = self.weights.pop(name).float()
            scales = weight.abs().amax(dim=1) / 127
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch is going to remove this
                quantised = torch.quantize_per_channel(weight, scales.clamp(min=1e-12), zeros, 0, torch.qint8)
            self._packed[name] = torch.ops.quantized.linear_prepack(quantised, None)

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(int(packed.unpack()[0].numel()) for packed in self._packed.values())

    def linear(self, x: Any, name: str) -> Any:
        return self._torch.ops.quantized.linear_dynamic(x.float(), self._packed[f"{name}.weight"]).to(x.dtype)
