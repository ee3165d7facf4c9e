"""A dense peer: torch's scaled_dot_product_attention, which has a flash kernel for CPUs."""

from __future__ import annotations

from typing import Any

from ..arrays import Array
from ..harness import Contender
from .torch_common import TorchPeer, load_torch, to_numpy, to_torch


class TorchSdpa(TorchPeer):
    """Computes dense attention only. torch expands the shared key/value heads as views."""

    name = "torch SDPA"

    def dense(self, q: Array, k: Array, v: Array) -> Contender:
        torch = load_torch()
        tensors = [to_torch(array) for array in (q, k, v)]
        grouped = q.shape[1] != k.shape[1]

        def run() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=grouped)

        return Contender(self.name, run, to_numpy)
