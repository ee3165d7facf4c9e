"""Reads safetensors files by mapping them into memory, without a copy, and checks every field of their headers."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .files import parse_json
from .recognise import FIRST_BYTES, first_bytes

# A longer header is refused before it is read. This size is enough for 100,000 tensors. The format allows ten times as
# much, but the objects of such a header could take gigabytes.
MAX_HEADER_BYTES = 10_000_000
# Shapes with more dimensions or elements are refused before anything is multiplied or allocated.
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**62

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "I8": np.dtype(np.int8),
}


@dataclass(frozen=True)
class TensorInfo:
    """The place of a tensor: it takes the bytes `begin` ... `end` of the file."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def stored(self) -> str:
        """The name of the type that the file stores."""
        return self.dtype.name


class SafetensorsFile:
    """One mapped file. `tensors` lists its content; `array` returns a read-only view that keeps the mapping alive."""

    def __init__(self, path: Path) -> None:
        size = os.stat(path).st_size
        header, data_begin = _read_header(path, size)
        self.path = path
        self.tensors = _check_entries(header, path, data_begin, size)
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self, name: str) -> NDArray[Any]:
        """Returns a tensor as a read-only view of the mapped file, or as a copy if the file stores it unaligned."""
        info = self.tensors[name]
        values = np.frombuffer(self._map, np.uint8, info.end - info.begin, info.begin)
        return np.require(values.view(info.dtype).reshape(info.shape), requirements="A")

    def release(self) -> None:
        """Gives back the memory of the pages read so far. Arrays stay valid; their pages are read again when needed."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Returns the parsed header and the offset of the data."""
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{path} is truncated: it has {size} bytes, expected at least 8")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or length > size - 8:
            if known := first_bytes(prefix + file.read(FIRST_BYTES)):
                raise ValueError(f"{path} is {known}")
            raise ValueError(
                f"{path} is truncated or not a safetensors file: its header has {length} bytes, "
                f"expected at most {min(MAX_HEADER_BYTES, size - 8)}"
            )
        return parse_json(file.read(length), f"the header of {path}", unique=True), 8 + length


def _check_entries(header: Mapping[str, Any], path: Path, data_begin: int, size: int) -> dict[str, TensorInfo]:
    tensors = {
        name: _check_entry(name, entry, path, data_begin, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    expected = data_begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != expected:
            raise ValueError(
                f"{path}: tensor {name} begins at byte {info.begin - data_begin} of the data, "
                f"expected {expected - data_begin} (tensors may neither overlap nor leave gaps)"
            )
        expected = info.end
    if expected != size:
        raise ValueError(f"{path} has {size - data_begin} bytes of data, expected {expected - data_begin}")
    return tensors


def _check_entry(name: str, entry: Any, path: Path, data_begin: int, size: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{path}: tensor {name} has the header {entry!r:.200}, expected dtype, shape and data_offsets")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise ValueError(
            f"{path}: tensor {name} has dtype {dtype_name}, expected one of {', '.join(DTYPES)} "
            "(of quantised weights only int8 is read)"
        )
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(
            f"{path}: tensor {name} has shape {shape!r:.200}, expected a list of at most {_MAX_DIMENSIONS} sizes"
        )
    if math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS:  # NumPy multiplies sizes beside a 0, too
        raise ValueError(f"{path}: tensor {name} has shape {shape!r:.200}, expected at most {_MAX_ELEMENTS} elements")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - data_begin:
        raise ValueError(
            f"{path}: tensor {name} has data_offsets {offsets!r:.200}, "
            f"expected [begin, end] within the {size - data_begin} bytes of data"
        )
    needed = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != needed:
        raise ValueError(
            f"{path}: tensor {name} has {offsets[1] - offsets[0]} bytes, "
            f"expected {needed} for shape {shape} of {dtype_name}"
        )
    return TensorInfo(path, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
