"""The CUDA backend through hook.cpp: attention on torch tensors, patterns that stay on the device."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

_DTYPES = {"torch.float32": 0, "torch.float16": 1, "torch.bfloat16": 2}


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("shape", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4))


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, _Array) for name in ("q", "k", "v", "out")),
        ("dtype", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("lse", ctypes.c_void_p),
        ("key_mask", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


def _array(tensor: Any | None) -> _Array:
    if tensor is None:
        return _Array()
    return _Array(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.shape), (ctypes.c_int64 * 4)(*tensor.stride()))


class Pattern:
    """A pattern in device memory."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self.handle = library, ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self._library.sparsed_gpu_free(self.handle)

    @property
    def density(self) -> float:
        return float(self._library.sparsed_gpu_density(self.handle))

    def read(self, mask: Any) -> None:
        """mask: [batch, heads, q_blocks, kv_blocks] uint8 in host memory, written to."""
        if not self._library.sparsed_gpu_mask(self.handle, ctypes.c_void_p(mask.data_ptr())):
            raise RuntimeError(self._library.sparsed_gpu_error().decode())


class Sparsed:
    """Calls of the backend, queued on the default stream of torch."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.sparsed_gpu_error.restype = library.sparsed_gpu_missing.restype = ctypes.c_char_p
        library.sparsed_gpu_attention.restype = library.sparsed_gpu_mask.restype = ctypes.c_bool
        library.sparsed_gpu_select.restype = library.sparsed_gpu_pattern.restype = ctypes.c_void_p
        library.sparsed_gpu_density.restype = ctypes.c_double
        self._library = library

    def missing(self) -> str:
        """Why the backend cannot run here; empty where it can."""
        return str(self._library.sparsed_gpu_missing().decode())

    def _raise(self) -> None:
        raise RuntimeError(self._library.sparsed_gpu_error().decode())

    def _call(self, q: Any, k: Any, v: Any | None, out: Any | None) -> _Call:
        return _Call(
            _array(q), _array(k), _array(v), _array(out), _DTYPES[str(q.dtype)], 1 / math.sqrt(q.shape[-1]), 0, 0, 0
        )

    def attention(self, q: Any, k: Any, v: Any, out: Any, pattern: Pattern | None = None) -> None:
        call = self._call(q, k, v, out)
        if not self._library.sparsed_gpu_attention(ctypes.byref(call), pattern.handle if pattern else None):
            self._raise()

    def attention_and_select(
        self, q: Any, k: Any, v: Any, out: Any, prompt_length: int, block_size: int, rho: float
    ) -> Pattern:
        return self._selected(self._call(q, k, v, out), prompt_length, block_size, rho)

    def select(self, q: Any, k: Any, prompt_length: int, block_size: int, rho: float) -> Pattern:
        return self._selected(self._call(q, k, None, None), prompt_length, block_size, rho)

    def _selected(self, call: _Call, prompt_length: int, block_size: int, rho: float) -> Pattern:
        handle = self._library.sparsed_gpu_select(
            ctypes.byref(call), ctypes.c_int64(prompt_length), block_size, ctypes.c_double(rho)
        )
        return self._pattern(handle)

    def pattern(self, mask: Any, block_size: int, length: int) -> Pattern:
        """mask: [batch, heads, q_blocks, kv_blocks] uint8 in host memory."""
        batch, heads = mask.shape[:2]
        handle = self._library.sparsed_gpu_pattern(
            ctypes.c_void_p(mask.data_ptr()), ctypes.c_int64(batch), ctypes.c_int64(heads), block_size,
            ctypes.c_int64(length), None,
        )  # fmt: skip
        return self._pattern(handle)

    def _pattern(self, handle: int | None) -> Pattern:
        if handle is None:
            self._raise()
        assert handle is not None
        return Pattern(self._library, handle)
