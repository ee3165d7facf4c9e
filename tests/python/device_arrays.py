"""numpy arrays as arrays on a GPU and back, for tests that run there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsed


def require_gpu() -> Any:
    """torch, where it and sparsed can use a GPU; skips the test elsewhere."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reasons = sparsed.backends()[-1].reasons
    if reasons:
        pytest.skip(", ".join(reasons))
    return torch


def to_device(array: Any) -> Any:
    """A tensor with the strides of the array, wherever torch knows such strides."""
    if not isinstance(array, np.ndarray):
        return array
    import torch

    bfloat16 = array.dtype == ml_dtypes.bfloat16
    bits = array.view(np.int16) if bfloat16 else array
    if any(stride < 0 or stride % array.itemsize for stride in bits.strides):
        bits = np.ascontiguousarray(bits)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(bits.shape, bits.strides, strict=True)) // bits.itemsize
    memory = np.lib.stride_tricks.as_strided(bits, (reach if bits.size else 0,), (bits.itemsize,))
    strides = [stride // bits.itemsize for stride in bits.strides]
    there = torch.from_numpy(memory.copy()).to("cuda").as_strided(bits.shape, strides)
    return there.view(torch.bfloat16) if bfloat16 else there


def to_numpy(result: Any) -> Any:
    """Arrays in a result as numpy's; patterns and numbers stay."""
    if isinstance(result, tuple):
        return tuple(to_numpy(part) for part in result)
    if not hasattr(result, "is_cuda"):
        return result
    assert result.is_cuda
    import torch

    if result.dtype == torch.bfloat16:
        return result.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return result.cpu().numpy()


def through_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of numpy arrays that computes on the GPU."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        there = [to_device(arg) for arg in args], {name: to_device(arg) for name, arg in kwargs.items()}
        return to_numpy(function(*there[0], **there[1]))

    return call


def send_to_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here to the end of the test, the calls with numpy arrays compute on the GPU."""
    require_gpu()
    for name in ("attention", "attention_and_select", "select"):
        monkeypatch.setattr(sparsed, name, through_device(getattr(sparsed, name)))
    monkeypatch.setattr(sparsed.PatternCache, "attend", through_device(sparsed.PatternCache.attend))
