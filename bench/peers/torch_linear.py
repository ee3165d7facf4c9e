"""torch's linear: oneDNN or MKL matrix products."""

from __future__ import annotations

from typing import Any

from ..arrays import Array
from ..harness import Contender
from .torch_common import TorchPeer, load_torch, to_numpy, to_torch


class TorchLinear(TorchPeer):
    """The weight as a checkpoint holds it, (outputs, inputs)."""

    name = "torch linear"

    def linear(self, x: Array, weight: Array) -> Contender:
        torch = load_torch()
        tensors = [to_torch(array) for array in (x, weight)]

        def run() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.linear(*tensors)

        return Contender(self.name, run, to_numpy)
