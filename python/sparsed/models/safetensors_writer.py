"""Writes a safetensors file tensor by tensor, so that memory never holds more than one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import replacing
from .safetensors import DTYPES

_ALIGNMENT = 8
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    arrays: Iterable[tuple[str, NDArray[Any]]],
) -> None:
    """Writes `arrays` to `path`, which readers see only when it is whole.

    Args:
        path: The file.
        layout: The dtype and the shape of every tensor by name, in the order of `arrays`.
        arrays: The tensors by name.

    Raises:
        ValueError: The arrays are not those of the layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers does not read files without it
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as new:
        with open(new, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            expected = iter(layout.items())
            for name, array in arrays:
                if next(expected, None) != (name, (array.dtype, array.shape)):
                    raise ValueError(f"write_safetensors: {name} is {array.dtype} {array.shape}, expected the layout's")
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
            if next(expected, None) is not None:
                raise ValueError("write_safetensors: there are fewer arrays than the layout has, expected all of them")
