"""Reads the tensors of LLaDA and Dream from GGUF files, as llama.cpp's converter and quantiser write them.

Quantised tensors are dequantised one by one to bfloat16, by the package gguf.

llama.cpp turns neighbouring pairs of a head by RoPE in LLaDA, and pairs half a head apart in Dream. So the converter
interleaves the halves of each head's rows in LLaDA's query and key, which is undone here.

Source: conversion/llada.py and conversion/dream.py of ggml-org/llama.cpp, and `llama_model_rope_type` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.attention import get_num_threads
from . import ModelConfig, recognise
from .checkpoint import Checkpoint
from .gguf_config import family_of
from .gguf_file import GgufFile, GgufTensor

# Values that a thread dequantises at a time, which takes some 30 MB, and the most threads.
_CHUNK_VALUES = 1 << 20
_MAX_THREADS = 8
_QUERY_OR_KEY = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")


def find_gguf(path: Path, function: str) -> Path | None:
    """Returns the GGUF file of a checkpoint: `path` itself, or the only one in the folder `path`.

    Returns:
        The file, or None if the folder holds none, or holds safetensors.

    Raises:
        ValueError: The folder holds several. The message begins with `function`.
    """
    if path.is_file():
        return path
    if any((path / name).is_file() for name in recognise.WEIGHTS):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise ValueError(f"{function}: {path} holds {len(found)} GGUF files, expected the path of one of them: {names}")
    return found[0] if found else None


class GgufCheckpoint(Checkpoint):
    """The tensors of one GGUF file, under their names in it.

    The arrays of quantised tensors are bfloat16. Those of other tensors have the dtype of the file.

    Raises:
        ImportError: A tensor is quantised, and the package gguf is not installed.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        super().__init__(file.path)
        self._file = file
        self._heads = {"q": config.num_heads, "k": config.num_kv_heads} if family_of(file) == "llada" else {}
        quantised = next((info.kind.name for info in file.tensors.values() if info.kind.dtype is None), None)
        if quantised is not None:
            try:
                import gguf.quants  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    f"load_model: {file.path} has tensors of the type {quantised}, which the package gguf dequantises, "
                    "expected it to be installed: pip install gguf"
                ) from error

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """The place of each tensor, by name."""
        return self._file.tensors

    def release(self) -> None:
        """Gives back the memory of the pages read so far."""
        self._file.release()

    @property
    def scratch_nbytes(self) -> int:
        """The bytes of the largest tensor that is dequantised or whose rows are put into order."""
        copied = (
            info.dtype.itemsize * int(np.prod(info.shape))
            for name, info in self.tensors.items()
            if info.kind.dtype is None or self._num_heads(name)
        )
        return max(copied, default=0)

    def _load(self, name: str) -> NDArray[Any]:
        """Returns a tensor, with the rows of each head in the order of the published checkpoint."""
        info, blocks = self.tensors[name], self._file.blocks(name)
        if num_heads := self._num_heads(name):
            blocks = _halves_apart(blocks, num_heads)
        return blocks if info.kind.dtype is not None else _dequantise(blocks, info)

    def _num_heads(self, name: str) -> int:
        """Returns the number of heads of an interleaved tensor, and 0 for other tensors."""
        match = _QUERY_OR_KEY.fullmatch(name)
        return self._heads.get(match[1], 0) if match else 0


def _halves_apart(rows: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Returns the rows of each head in two halves; they lie in pairs (j, j + head_dim / 2) one after the other."""
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _dequantise(blocks: NDArray[np.uint8], info: GgufTensor) -> NDArray[Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[info.kind.name]
    out = np.empty((len(blocks), info.shape[-1]), info.dtype)
    step = max(1, _CHUNK_VALUES // info.shape[-1])

    def dequantise_rows(begin: int) -> None:
        out[begin : begin + step] = dequantize(blocks[begin : begin + step], kind)

    # The package computes with numpy, which lets other threads run.
    with ThreadPoolExecutor(min(get_num_threads(), _MAX_THREADS)) as threads:
        for _ in threads.map(dequantise_rows, range(0, len(blocks), step)):
            pass
    return out.reshape(info.shape)
