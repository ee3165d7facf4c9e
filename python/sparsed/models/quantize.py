"""Writes a checkpoint folder whose linear layers are int8, from one whose weights are floating point."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import Checker, SparsedWarning
from ..kernels import ops
from ..progress import progress_bar
from .architecture import TensorNames
from .checkpoint import Checkpoint, SafetensorsCheckpoint, check_tensors
from .config import ModelConfig
from .files import find_folder, read_json, replacing
from .gguf import find_gguf
from .loader import load_model, read_config
from .quantization import KEY, scale_name, scheme_values
from .safetensors_writer import write_safetensors
from .smoothing import MAX_TOKENS, Smoothing, calibrate, find_smoothing, smoothed_inputs
from .tokenizer import load_tokenizer

Array = NDArray[Any]

# The linear layers; those that read one input are int8 together.
PARTS = ("qkv", "attention_out", "gate_up", "down", "head")
MIN_TOKENS = 256  # of a calibration text; with fewer the model often becomes worse than without the text
# Everything else in a folder is copied. Weights are not, of whatever format, nor what a download leaves behind.
_NOT_COPIED = shutil.ignore_patterns(
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack"),
    *("*.onnx", "config.json", ".*", "__pycache__"),
)


def quantize(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    calibration: str | None = None,
    keep: Iterable[str] = ("head",),
    progress: bool = False,
) -> None:
    """Writes a checkpoint with int8 weights, which `load_model(out)` loads (W8A8).

    The folder has the layout of compressed-tensors that transformers, vLLM and llmcompressor use ("int-quantized"): a
    scale per output row of a weight, and inputs that are quantised per token while the model runs. The tokenizer and
    all other files that are not weights are copied.

    Args:
        folder: A checkpoint folder with floating-point weights, as `load_model` loads it.
        out: The folder to write. It must not exist, or be empty, and it is so again after an error.
        calibration: A text in which the largest inputs of the layers are looked up. With it the inputs are smoothed
            before they are quantised (SmoothQuant). It takes a model in memory and one pass over the first 32,768
            tokens. The text should be like those that the model will see and have 256 tokens or more: a shorter one,
            or one in words that the tokenizer does not know, makes the model worse than none.
        keep: The linear layers that stay as they are: "qkv", "attention_out", "gate_up", "down", "head". A head
            that is tied to the embedding always stays.
        progress: Whether to show a progress bar on stderr.

    Raises:
        FileNotFoundError, MemoryError: As `load_model`.
        FileExistsError: `out` exists and is not an empty folder.
        TypeError, ValueError: As `load_model`; the weights are int8 already, or not finite; an argument is wrong.
        OSError: A file cannot be copied.

    Warns:
        SparsedWarning: The calibration text has fewer than 256 tokens, or most of them are the unknown token.

    Source: arXiv 2211.10438 for smoothing; the format is that of vllm-project/compressed-tensors.
    """
    kept = _kept_parts(keep)
    path, target = find_folder(folder, "quantize"), _empty_folder(out)
    if find_gguf(path, "quantize"):
        raise ValueError(
            f"quantize: {path} is a GGUF checkpoint, expected safetensors (load_model(..., weights='int8') loads it)"
        )
    config, architecture, scheme = read_config(path)
    if scheme:
        raise ValueError(f"quantize: the weights of {path} are int8 already, expected floating point")
    names = architecture.names
    checkpoint = SafetensorsCheckpoint(path)
    embedding, head = check_tensors(checkpoint, config, names)
    if config.tie_weights or embedding == head:
        kept = kept | {"head"}
    smoothing = Smoothing({}, {})
    if calibration is not None:
        smoothing = _smoothing(path, calibration, checkpoint, names, kept)
    parts = _modules(config, names)
    chosen = {f"{name}.weight" for part in PARTS if part not in kept for name in parts[part]}
    with _empty_again_after_an_error(target):
        _copy(path, target)
        bytes_read = {"total": checkpoint.nbytes, "unit": "B", "unit_scale": True, "unit_divisor": 1024}
        with progress_bar(progress, desc="quantising", leave=False, **bytes_read) as bar:
            checkpoint.on_read = bar.update
            layout = dict(_layout(checkpoint, chosen, smoothing))
            write_safetensors(target / "model.safetensors", layout, _arrays(checkpoint, chosen, smoothing))
        # A folder counts as a checkpoint when it has this file, so it comes last.
        ignored = [name for part in kept for name in parts[part]]
        values = read_json(path / "config.json") | {KEY: scheme_values(ignored)}
        with replacing(target / "config.json") as new:
            new.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _kept_parts(keep: Iterable[str]) -> frozenset[str]:
    if isinstance(keep, (str, bytes, Mapping)) or not isinstance(keep, Iterable):
        raise TypeError(f"quantize: keep is {keep!r:.200}, expected a list of names")
    names = list(keep)
    for part in names:
        Checker("quantize").choice("keep", part, PARTS)
    kept = frozenset(names)
    if kept >= set(PARTS) - {"head"}:
        raise ValueError(f"quantize: keep is {sorted(kept)}, expected at least one layer that is not kept")
    return kept


def _empty_folder(out: str | os.PathLike[str]) -> Path:
    if not isinstance(out, (str, os.PathLike)):
        raise TypeError(f"quantize: out is {out!r:.200}, expected a path")
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"quantize: out is {str(out)!r}, expected a folder that is empty or does not exist")
    return path


@contextlib.contextmanager
def _empty_again_after_an_error(folder: Path) -> Iterator[None]:
    """Makes an empty folder. After an error it is empty or absent, as before, so that the caller can try again."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        if not existed:
            folder.rmdir()
        raise


def _copy(folder: Path, target: Path) -> None:
    """Copies all files that are not weights. A target inside of the folder is not copied into itself."""

    def ignored(place: str, names: list[str]) -> set[str]:
        return _NOT_COPIED(place, names) | {name for name in names if Path(place, name).resolve() == target.resolve()}

    try:
        shutil.copytree(folder, target, ignore=ignored, dirs_exist_ok=True)
    except shutil.Error as error:  # it holds one entry for each file: source, target, reason
        source, _, reason = error.args[0][0]
        raise OSError(f"quantize: {source} cannot be copied: {reason}") from None


def _modules(config: ModelConfig, names: TensorNames) -> dict[str, list[str]]:
    """Returns the names of the modules of each part."""
    of_layer = {
        "qkv": (names.query, names.key, names.value),
        "attention_out": (names.attention_out,),
        "gate_up": (names.gate, names.up),
        "down": (names.down,),
    }
    prefixes = [names.layer.format(number) for number in range(config.num_layers)]
    found = {part: [prefix + name for prefix in prefixes for name in modules] for part, modules in of_layer.items()}
    return found | {"head": [names.head]}


def _smoothing(
    path: Path, calibration: str, checkpoint: Checkpoint, names: TensorNames, kept: frozenset[str]
) -> Smoothing:
    Checker("quantize").text("calibration", calibration)
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(calibration, add_special_tokens=False)[:MAX_TOKENS]
    unknown = tokenizer.count_unknown(ids)
    if unknown == len(ids):
        raise ValueError("quantize: calibration holds nothing that the tokenizer knows, expected a text")
    if len(ids) < MIN_TOKENS:
        _warn(f"has {len(ids)} tokens, fewer than {MIN_TOKENS}")
    if 2 * unknown > len(ids):
        _warn(f"has {unknown} tokens of {len(ids)} that stand for text that the tokenizer does not know")
    activations = calibrate(load_model(path), ids)
    inputs = [part for part in smoothed_inputs(names) if part.input not in kept]
    return find_smoothing(activations, names, inputs, checkpoint.array)


def _warn(problem: str) -> None:
    text = f"the calibration text {problem}, so the model can become worse than without calibration"
    warnings.warn(text, SparsedWarning, stacklevel=4)


def _layout(
    checkpoint: Checkpoint, chosen: set[str], smoothing: Smoothing
) -> Iterator[tuple[str, tuple[np.dtype[Any], tuple[int, ...]]]]:
    """Yields the dtypes and shapes of the tensors to write, in the order of `_arrays`."""
    for name, info in checkpoint.in_order():
        if name in chosen:
            yield name, (np.dtype(np.int8), info.shape)
            yield scale_name(name), (np.dtype(np.float32), (info.shape[0], 1))
        else:
            # A norm that takes factors becomes float32; a matrix would change what `dtype="auto"` is for the folder.
            wide = smoothing.changes(name) and len(info.shape) == 1
            yield name, (np.dtype(np.float32) if wide else info.dtype, info.shape)


def _arrays(checkpoint: Checkpoint, chosen: set[str], smoothing: Smoothing) -> Iterator[tuple[str, Array]]:
    for name, stored in checkpoint.stream():
        array = smoothing.apply(name, stored)
        if name in chosen:
            try:
                quantised, scales = ops.quantize_rows(array)
            except ValueError as error:
                text = str(error).replace("quantize_rows: weight", name)
                raise ValueError(f"quantize: {text} (in {checkpoint.tensors[name].file})") from error
            yield name, quantised
            yield scale_name(name), scales.reshape(-1, 1)
        else:
            yield name, array if array.ndim == 1 else array.astype(stored.dtype, copy=False)
