"""Reads GGUF files by mapping them into memory, and checks every field of their headers.

The header holds metadata (numbers, texts and arrays by key) and the place of each tensor. Arrays are decoded when they
are asked for, because a tokenizer has hundreds of thousands of texts and a model needs none of them.

Source: docs/gguf.md of ggml-org/ggml; the checks of offsets are those of `gguf_init_from_file`.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .recognise import FIRST_BYTES, GGUF_MAGIC, first_bytes
from .safetensors import TensorInfo

# A longer header is refused. The headers of published files have up to 10 MB, most of it the tokenizer.
MAX_HEADER_BYTES = 100_000_000
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**62
_MAX_ALIGNMENT = 1 << 20

# The number of a metadata type: its format for struct.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT, _TEXT, _ARRAY = 6, 8, 9
_LENGTH = struct.Struct("<Q")  # of a text


class Kind(NamedTuple):
    """How a tensor is stored: blocks of `values` consecutive values of a row take `nbytes` bytes each.

    `dtype` is that of the values. None stands for quantised values, which are read as bfloat16.
    """

    name: str
    values: int
    nbytes: int
    dtype: np.dtype[Any] | None = None


# By the numbers of ggml_type in ggml.h.
KINDS = {
    0: Kind("F32", 1, 4, np.dtype(np.float32)),
    1: Kind("F16", 1, 2, np.dtype(np.float16)),
    8: Kind("Q8_0", 32, 34),
    12: Kind("Q4_K", 256, 144),
    14: Kind("Q6_K", 256, 210),
    30: Kind("BF16", 1, 2, np.dtype(ml_dtypes.bfloat16)),
}
# The names of the types that are refused.
_OTHER_KINDS = {
    **{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}


@dataclass(frozen=True)
class GgufTensor(TensorInfo):
    """The place of a tensor in a GGUF file. `dtype` is the one that a quantised tensor has after it was read."""

    kind: Kind

    @property
    def stored(self) -> str:
        """The name of the type that the file stores."""
        return self.kind.name


class _Items(NamedTuple):
    """The place of an array of the metadata."""

    type: int
    length: int
    begin: int


class GgufFile:
    """One mapped file.

    Args:
        path: The path of the file.
        function: The function that reads it. Errors begin with this name.

    Attributes:
        path: The path of the file.
        tensors: The places of the tensors, by name.
    """

    def __init__(self, path: Path, function: str) -> None:
        self.path = path
        self._named = f"{function}: {path}"  # as errors begin
        with open(path, "rb") as file:
            begin = file.read(FIRST_BYTES)
            if not begin.startswith(GGUF_MAGIC):
                raise ValueError(f"{self._named} is {first_bytes(begin) or 'not a GGUF file'}")
            self._size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = len(GGUF_MAGIC)
        self._values: dict[str, Any] = {}
        version = self._take("I", "the version")
        if version not in _VERSIONS:
            big = " (a file for big-endian machines)" if version and version % 2**16 == 0 else ""
            raise ValueError(f"{self._named} is a GGUF file of version {version}{big}, expected version 2 or 3")
        num_tensors, num_keys = self._take("Q", "the number of tensors"), self._take("Q", "the number of keys")
        for number in range(num_keys):
            self._read_key(number)
        self.tensors = self._read_tensors(num_tensors)

    def keys(self) -> list[str]:
        """Returns the keys of the metadata."""
        return list(self._values)

    def texts(self, key: str) -> list[str]:
        """Returns the array of texts under `key`.

        Raises:
            ValueError: There is no such array, or a text is not UTF-8.
        """
        value = self._values.get(key)
        if not isinstance(value, _Items) or value.type != _TEXT:
            found = "missing" if value is None else "something else"
            raise ValueError(f"{self._named}: {key} is {found}, expected an array of texts")
        texts: list[str] = self.get(key)
        return texts

    def get(self, key: str) -> Any:
        """Returns the number or the text under `key`, a list for an array, or None if there is no such key.

        Raises:
            ValueError: A text is not UTF-8.
        """
        value = self._values.get(key)
        if isinstance(value, _Items):
            if value.type == _TEXT:
                return self._read_texts(value, key)
            return list(struct.unpack_from(f"<{value.length}{_NUMBERS[value.type]}", self._map, value.begin))
        return self._decode(value, key) if isinstance(value, bytes) else value

    def blocks(self, name: str) -> NDArray[Any]:
        """Returns a tensor as a read-only view of the mapped file, or a copy of it if the file stores it unaligned.

        Returns:
            The values, in the tensor's shape; for a quantised tensor the bytes of its blocks, (rows, bytes per row).
        """
        info = self.tensors[name]
        data = np.frombuffer(self._map, np.uint8, info.end - info.begin, info.begin)
        if info.kind.dtype is None:
            return data.reshape(math.prod(info.shape[:-1]), -1)
        return np.require(data.view(info.dtype).reshape(info.shape), requirements="A")

    def release(self) -> None:
        """Gives back the memory of the pages read so far. Arrays stay valid; their pages are read again when needed."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self._named} is truncated or damaged: {what}")

    def _take(self, format: str, what: str) -> Any:
        """Reads one number at the current place."""
        begin, self._at = self._at, self._at + struct.calcsize(f"<{format}")
        self._check_end(self._at, what)
        return struct.unpack_from(f"<{format}", self._map, begin)[0]

    def _check_end(self, end: int, what: str) -> None:
        if end > self._size:
            self._fail(f"{what} reaches to byte {end}, but the file ends at byte {self._size}")
        if end > MAX_HEADER_BYTES:
            self._fail(f"{what} reaches to byte {end}, expected a header of at most {MAX_HEADER_BYTES} bytes")

    def _take_bytes(self, what: str) -> bytes:
        """Reads the bytes of a text at the current place."""
        begin = self._at + 8
        self._check_end(begin, what)
        self._at = begin + int(_LENGTH.unpack_from(self._map, self._at)[0])
        self._check_end(self._at, what)
        return self._map[begin : self._at]

    def _decode(self, text: bytes, key: str) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._named}: {key} is not UTF-8: {error}") from None

    def _read_texts(self, items: _Items, key: str) -> list[str]:
        """Decodes an array of texts whose lengths were checked."""
        unpack, at = _LENGTH.unpack_from, items.begin
        texts = []
        for _ in range(items.length):
            begin = at + 8
            at = begin + unpack(self._map, at)[0]
            texts.append(self._map[begin:at])
        return [self._decode(text, key) for text in texts]

    def _read_key(self, number: int) -> None:
        what = f"key {number} of the metadata"
        key = self._decode(self._take_bytes(what), what)
        if key in self._values:
            self._fail(f"the key {key!r:.100} occurs twice")
        type_ = self._take("I", what)
        if type_ in _NUMBERS:
            value = self._take(_NUMBERS[type_], key)
            # The shortest decimal of a float32 is the number that was written, such as 1e-5.
            self._values[key] = float(str(np.float32(value))) if type_ == _FLOAT else value
        elif type_ == _TEXT:
            self._values[key] = self._take_bytes(key)
        elif type_ == _ARRAY:
            self._values[key] = self._read_items(key)
        else:
            self._fail(f"{key!r:.100} has the type {type_}, expected one from 0 to 12")

    def _read_items(self, key: str) -> _Items:
        """Checks the array at the current place and steps over it."""
        type_, count = self._take("I", key), self._take("Q", key)
        items = _Items(type_, count, self._at)
        if type_ in _NUMBERS:
            self._at += count * struct.calcsize(f"<{_NUMBERS[type_]}")
            self._check_end(self._at, key)
        elif type_ == _TEXT:
            self._check_end(self._at + 8 * count, key)
            unpack, end = _LENGTH.unpack_from, min(self._size, MAX_HEADER_BYTES) - 8
            for _ in range(count):
                if self._at > end:
                    self._check_end(self._at + 8, key)
                self._at += 8 + unpack(self._map, self._at)[0]
            self._check_end(self._at, key)
        else:
            self._fail(f"{key!r:.100} is an array of the type {type_}, expected numbers or texts")
        return items

    def _read_tensors(self, num_tensors: int) -> dict[str, GgufTensor]:
        entries = [self._read_entry(number) for number in range(num_tensors)]
        alignment = self._values.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment!r:.100}, expected a power of 2 up to {_MAX_ALIGNMENT}")
        data_begin = end = _aligned(self._at, alignment)
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in entries:
            if name in tensors:
                self._fail(f"the tensor {name!r:.100} occurs twice")
            begin = _aligned(end, alignment)
            end = begin + math.prod(shape) // kind.values * kind.nbytes
            if data_begin + offset != begin:
                self._fail(f"tensor {name} begins at byte {offset} of the data, expected {begin - data_begin}")
            if end > self._size:
                self._fail(f"tensor {name} ends at byte {end}, expected at most {self._size}, the size of the file")
            dtype = kind.dtype or np.dtype(ml_dtypes.bfloat16)
            tensors[name] = GgufTensor(self.path, dtype, shape, begin, end, kind)
        return tensors

    def _read_entry(self, number: int) -> tuple[str, Kind, tuple[int, ...], int]:
        """Reads the name, kind, shape and offset of a tensor."""
        what = f"the entry of tensor {number}"
        name = self._decode(self._take_bytes(what), what)
        what = f"tensor {name!r:.100}"
        num_dimensions = self._take("I", what)
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            self._fail(f"{what} has {num_dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        shape = tuple(self._take("Q", what) for _ in range(num_dimensions))[::-1]  # the file begins with the last one
        if 0 in shape or any(size > _MAX_ELEMENTS for size in itertools.accumulate(shape, int.__mul__)):
            self._fail(f"{what} has shape {list(shape)}, expected 1 to {_MAX_ELEMENTS} elements")
        type_, offset = self._take("I", what), self._take("Q", what)
        kind = KINDS.get(type_)
        if kind is None:
            named = _OTHER_KINDS.get(type_, f"number {type_}")
            known = ", ".join(kind.name for kind in KINDS.values())
            raise ValueError(f"{self._named}: {what} has the type {named}, expected one of {known}")
        if shape[-1] % kind.values:
            self._fail(f"{what} has shape {list(shape)}, expected rows of a multiple of {kind.values} for {kind.name}")
        return name, kind, shape, offset


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
