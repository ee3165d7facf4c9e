"""llama.cpp as a peer: its forward pass of a LLaDA model from GGUF files, through the C API of llama-cpp-python.

The package comes from a folder that the user names, since it is built for one machine. llama.cpp's graph of LLaDA keeps
no keys and values, attends in both directions and computes the logits of every position, all in one batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsed
from sparsed.models import ModelConfig, TensorNames

from ..arrays import Array, CheckError
from .base import TOLERANCE, Pass, SkipError
from .gguf_writer import write_gguf

NAME = "llama.cpp"
# The types of its weights, and how much their logits may differ: the 4-bit matrices themselves differ by 7 %. llama.cpp
# makes that type from the first.
_WEIGHTS = {"BF16": TOLERANCE, "Q8_0": TOLERANCE, "Q4_K_M": 0.4}
# llama.cpp calls these until the process ends.
_CALLBACKS: list[Any] = []


def llama_passes(
    folder: Path | None, checkpoint: Path, config: ModelConfig, names: TensorNames, ids: NDArray[np.int64]
) -> list[Pass]:
    """Returns the passes with each type of weights. Flash attention is on or off, whichever was faster for these ids.

    Args:
        folder: The folder that contains the package llama_cpp, such as the site-packages of an environment.
        checkpoint: The folder of a random checkpoint. The GGUF files are kept there.
        config: The checked config of the checkpoint.
        names: The names of its tensors.
        ids: (1, l), the longest sequence that the passes will get.

    Raises:
        SkipError: No folder was given, the package gguf is missing, the model is not a LLaDA, or an instruction set is
            forced, which llama.cpp would not follow.
        ValueError: The folder does not contain llama_cpp.
    """
    if folder is None:
        raise SkipError("no folder with llama_cpp was given (--llama-cpp)")
    if names.layer != "model.transformer.blocks.{}.":
        raise SkipError("only the GGUF files of LLaDA are written here")
    if "SPARSED_ISA" in os.environ:
        raise SkipError("it uses the instruction sets that it was built for, and a single one is forced (SPARSED_ISA)")
    with _importable(folder):
        if importlib.util.find_spec("gguf") is None:
            raise SkipError("the package gguf is not installed")
        library = _Library(importlib.import_module("llama_cpp"))
        files = _write_files(library, checkpoint, config, names)
    length = ids.shape[1]
    flash = _faster_with_flash(library, files["BF16"], length, ids)
    models = {weights: _Model(library, file, length, flash=flash) for weights, file in files.items()}
    attention = "flash" if flash else "plain"
    return [
        Pass(
            NAME,
            weights,
            attention,
            model.logits,
            weights_nbytes=files[weights].stat().st_size,
            tolerance=_WEIGHTS[weights],
            versions=library.versions,
        )
        for weights, model in models.items()
    ]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets packages in the folder be imported where this environment does not have them.

    Raises:
        ValueError: The folder does not contain llama_cpp.
    """
    if not (folder / "llama_cpp" / "llama_cpp.py").is_file():
        raise ValueError(f"peers: {folder} has no llama_cpp, expected the folder of that package in --llama-cpp")
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


class _Library:
    """The functions of llama.h, without its messages.

    Args:
        package: The package llama_cpp.
    """

    def __init__(self, package: Any) -> None:
        self.versions = {"llama-cpp-python": package.__version__}
        self.api = package.llama_cpp
        _CALLBACKS.append(self.api.llama_log_callback(lambda *_: None))
        self.api.llama_log_set(_CALLBACKS[-1], ctypes.c_void_p(0))
        self.api.llama_backend_init()


def _write_files(library: _Library, checkpoint: Path, config: ModelConfig, names: TensorNames) -> dict[str, Path]:
    """Writes the GGUF files that do not exist yet. Returns them by type of the weights."""
    files = {weights: checkpoint / f"model-{weights}.gguf" for weights in _WEIGHTS}
    for weights in ("BF16", "Q8_0"):
        if not files[weights].exists():
            write_gguf(files[weights], checkpoint, config, names, weights)
    if not files["Q4_K_M"].exists():
        partial = files["Q4_K_M"].with_suffix(".part")
        params = library.api.llama_model_quantize_default_params()
        params.ftype = library.api.LLAMA_FTYPE_MOSTLY_Q4_K_M
        params.nthread = sparsed.get_num_threads()
        status = library.api.llama_model_quantize(bytes(files["BF16"]), bytes(partial), ctypes.byref(params))
        if status != 0:
            raise CheckError(f"{NAME}: quantizing to Q4_K_M gave status {status}, expected 0")
        partial.replace(files["Q4_K_M"])
    return files


class _Model:
    """A GGUF file in memory, and a context for sequences of at most `length` tokens."""

    def __init__(self, library: _Library, file: Path, length: int, *, flash: bool) -> None:
        self._api = api = library.api
        model = api.llama_model_load_from_file(bytes(file), api.llama_model_default_params())
        if not model:
            raise CheckError(f"{NAME}: {file} was not loaded")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        params.n_threads = params.n_threads_batch = sparsed.get_num_threads()
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = api.llama_init_from_model(model, params)
        if not self._context:
            raise CheckError(f"{NAME}: made no context of {length} tokens for {file}")
        weakref.finalize(self, _free, api, self._context, model)

    def logits(self, ids: NDArray[np.int64]) -> Array:
        """Returns the logits (l, V) of token ids (1, l)."""
        tokens = np.ascontiguousarray(ids[0], np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(pointer, tokens.size))
        if status != 0:
            raise CheckError(f"{NAME}: llama_decode gave status {status}, expected 0")
        values = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(values, (tokens.size, self._vocab_size)).copy()


def _free(api: Any, context: Any, model: Any) -> None:
    api.llama_free(context)
    api.llama_model_free(model)


def _faster_with_flash(library: _Library, file: Path, length: int, ids: NDArray[np.int64]) -> bool:
    """Returns whether a pass is faster with flash attention. Each setting gets one cold pass."""
    seconds: dict[bool, float] = {}
    for flash in (False, True):
        model = _Model(library, file, length, flash=flash)
        began = time.perf_counter()
        model.logits(ids)
        seconds[flash] = time.perf_counter() - began
        del model
    return seconds[True] < seconds[False]
