"""A peer for linear layers: torch's linear, which uses oneDNN or MKL."""

from __future__ import annotations

from typing import Any

from ..arrays import Array
from ..harness import Contender
from .torch_common import TorchPeer, load_torch, to_numpy, to_torch


class TorchLinear(TorchPeer):
    """Multiplies with the weight in the layout of a checkpoint, (outputs, inputs)."""

    name = "torch linear"

    def linear(self, x: Array, weight: Array) -> Contender:
        torch = load_torch()
        tensors = [to_torch(array) for array in (x, weight)]

        def run() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.linear(*tensors)

        return Contender(self.name, run, to_numpy)
