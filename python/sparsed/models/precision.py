"""The dtype of the computation that `load_model` chooses by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import ml_dtypes
import numpy as np

from ..kernels.attention import active_backend
from .quantization import is_int8, is_scale
from .safetensors import TensorInfo

AUTO = "auto"
_NATIVE_BFLOAT16 = ("amx", "avx512_bf16", "cuda")  # the backends with instructions that multiply bfloat16


def multiplies_bfloat16(backend: str | None = None) -> bool:
    """Returns whether a backend has instructions that multiply bfloat16. None is the active one.

    Raises:
        ValueError: The environment variable SPARSED_ISA names a backend that cannot run here.
    """
    return (active_backend() if backend is None else backend) in _NATIVE_BFLOAT16


def automatic_dtype(tensors: Mapping[str, TensorInfo], backend: str | None = None) -> Literal["float32", "bfloat16"]:
    """Returns what dtype "auto" stands for: bfloat16 if the checkpoint is stored in it and the backend multiplies it.

    Only matrices count, because bfloat16 checkpoints may keep their norms in float32; int8 weights and their scales do
    not count.
    """
    stored = {
        info.dtype for name, info in tensors.items() if len(info.shape) > 1 and not is_int8(info) and not is_scale(name)
    }
    fits = stored == {np.dtype(ml_dtypes.bfloat16)} and multiplies_bfloat16(backend)
    return "bfloat16" if fits else "float32"
