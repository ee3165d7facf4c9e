"""Random arrays for the model operations, and their bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
F16 = np.dtype(np.float16)

Array = NDArray[Any]


def normal(seed: int, *shape: int, dtype: Any = F32, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)


def bits(a: Array) -> NDArray[np.uint8]:
    return np.ascontiguousarray(a).view(np.uint8)
