"""Arrays and tensors that share their memory, bfloat16 included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from ..models import Attend

Array = NDArray[Any]
# Attention of one layer: (layer, q, k, v, key_mask) -> out, in tensors.
TensorAttend = Callable[..., torch.Tensor]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_tensor(array: Array) -> torch.Tensor:
    """The same memory as a tensor; the array must be writable."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: torch.Tensor) -> Array:
    """The same memory as an array; a copy where the tensor is not on the CPU."""
    host = tensor.detach().cpu()
    if host.dtype == torch.bfloat16:
        return np.asarray(host.view(torch.int16).numpy().view(_BFLOAT16))
    return np.asarray(host.numpy())


def through_numpy(attend: Attend) -> TensorAttend:
    """`attend` for tensors: sparsed's kernels take arrays."""

    def attend_tensors(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        mask = None if key_mask is None else as_array(key_mask)
        out = attend(layer, as_array(q), as_array(k), as_array(v), key_mask=mask)
        return as_tensor(out).to(q.device)

    return attend_tensors
