"""torch as a peer in a pass over all tokens: in bfloat16, and with weights and activations in int8."""

from __future__ import annotations

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsed.models import ModelConfig

from ..arrays import Array
from ..cases import LayerShape
from .base import INT8_TOLERANCE, Pass, SkipError
from .torch_common import to_numpy
from .torch_int8 import pack_int8
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
        SkipError: torch is not installed.
    """
    _require_torch()
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

    On one layer of LLaDA-8B's shape, torchao's compiled layers, which have a scale per token, took the same time with
    2,048 tokens and 1.15 times as long with 512.
    """

    def __init__(self, folder: Path, shape: LayerShape, config: ModelConfig) -> None:
        super().__init__(folder, shape, config)
        matrices = [name for name, weight in self.weights.items() if weight.dim() == 2]
        matrices.remove(f"{self.names.embedding}.weight")
        self._packed = {name: pack_int8(to_numpy(self.weights.pop(name))) for name in matrices}

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(int(packed.unpack()[0].numel()) for packed in self._packed.values())

    def linear(self, x: Any, name: str) -> Any:
        return self._torch.ops.quantized.linear_dynamic(x.float(), self._packed[f"{name}.weight"]).to(x.dtype)
