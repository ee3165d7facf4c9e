"""Converts between arrays and torch tensors. torch is imported only when a peer needs it."""

from __future__ import annotations

import importlib.util
from typing import Any

import ml_dtypes
import numpy as np

import sparsed

from ..arrays import Array
from .base import Peer

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TorchPeer(Peer):
    """A peer that uses torch, with as many threads as sparsed."""

    def why_not(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed (pip install torch)"
        return None

    def version(self) -> str:
        import torch

        return f"torch {torch.__version__}"


def load_torch() -> Any:
    """Imports torch and sets its number of threads to that of sparsed."""
    import torch

    torch.set_num_threads(sparsed.get_num_threads())
    return torch


def to_torch(array: Array) -> Any:
    """Returns a tensor that shares the array's memory. Read-only arrays are copied."""
    torch = load_torch()
    array = array if array.flags.writeable else array.copy()
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: Any) -> Array:
    """Returns an array that shares the tensor's memory."""
    torch = load_torch()
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(_BFLOAT16)
    return np.asarray(tensor.numpy())
