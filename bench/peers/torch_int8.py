"""A peer for linear layers with int8 weights: torch's dynamic quantisation, which uses oneDNN or FBGEMM."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from sparsed.kernels import ops

from ..arrays import DTYPES, Array
from ..harness import Contender
from .torch_common import TorchPeer, load_torch, to_numpy, to_torch


class TorchInt8(TorchPeer):
    """Multiplies with int8 weights, which have a scale per output, and with x in 8 bits, which has one scale in all.

    torch takes and returns float32 here, so x is converted before. It takes part where others multiply bfloat16.
    """

    name = "torch int8"
    int8 = True

    def linear(self, x: Array, weight: Array) -> Contender | None:
        if x.dtype != DTYPES["bfloat16"]:
            return None
        torch = load_torch()
        packed = pack_int8(weight)
        wide = to_torch(x.astype(np.float32))

        def run() -> Any:
            with torch.inference_mode():
                return torch.ops.quantized.linear_dynamic(wide, packed)

        return Contender(self.name, run, to_numpy)


def pack_int8(weight: Array) -> Any:
    """Returns weight (outputs, inputs) packed for `linear_dynamic`, with the fastest of torch's engines."""
    torch = load_torch()
    if "onednn" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "onednn"
    values, scales = ops.quantize_rows(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants to replace this way to make a tensor of integers
        integers = torch._make_per_channel_quantized_tensor(
            to_torch(values), to_torch(scales).double(), torch.zeros(len(scales), dtype=torch.long), 0
        )
        return torch.ops.quantized.linear_prepack(integers, None)
