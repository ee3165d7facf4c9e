"""Recognises models and files that `load_model` does not read, so that an error can say what to do instead.

The first row of a table that matches counts, so the order of the rows matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_GGUF = "a GGUF file: give load_model the path of this file"
GGUF_MAGIC = b"GGUF"
_PICKLE = (
    "pickled PyTorch weights, which are not read because unpickling runs code: convert them to model.safetensors with "
    "save_file of safetensors.torch"
)


class _Model(NamedTuple):
    """A model of another package. The regular expression `names` is searched in its class or model_type, lower case."""

    names: str
    what: str
    runs_it: str


_MODELS = (
    _Model("llada2", "LLaDA2, a mixture of experts with block diffusion", "SGLang, dInfer and LMDeploy run"),
    _Model("llada_?moe", "LLaDA-MoE, a mixture of experts", "llama.cpp and dInfer run"),
    _Model("sdar|trado", "SDAR or TraDo, a block diffusion model", "SGLang runs"),
    _Model("fast_?dllm", "Fast-dLLM v2, a block diffusion model", "the code of NVlabs/Fast-dLLM runs"),
    _Model("diffusion_?gemma", "DiffusionGemma, a block diffusion model", "transformers, vLLM and SGLang run"),
    _Model("a2d", "an A2D model of another class", "the code of ZHZisZZ/dllm runs"),
    _Model("rnd1", "RND1, a mixture of experts", "llama.cpp runs"),
    _Model("nemotron.*diffusion", "Nemotron-Labs-Diffusion, a block diffusion model", "its remote code runs"),
    _Model("llada|dream|diffu|mmada", "a diffusion model of another class", "its remote code in transformers runs"),
    _Model(
        "bert|electra|maskedlm",
        "a masked language model like BERT",
        "transformers runs, with sparse attention after sparsed.torch.accelerate(model)",
    ),
    _Model("t5|bart|conditionalgeneration", "a sequence-to-sequence or multimodal model", "transformers runs"),
    _Model(
        "causallm|lmheadmodel|llama|qwen|mistral|mixtral|gemma|phi|gpt|olmo|falcon|deepseek|glm|granite|mamba",
        "an autoregressive model",
        "transformers, vLLM and llama.cpp run",
    ),
)


class _Kind(NamedTuple):
    """A kind of file. `pattern` is a glob pattern of its name, or its first bytes."""

    pattern: Any
    what: str


_TOKENIZER = "a tokenizer without a model: load_tokenizer reads it"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Files that a folder without config.json or without weights may hold instead.
_CONTENTS = (
    _Kind("snapshots/*/", "a folder of the Hugging Face cache, which holds the model in a folder below snapshots"),
    _Kind("model_index.json", "a pipeline of diffusers, which makes pictures"),
    _Kind("model-*-of-*.safetensors", "parts of a checkpoint without the list of them, model.safetensors.index.json"),
    _Kind("*.safetensors", "safetensors of another name than model.safetensors"),
    _Kind("pytorch_model*.bin", _PICKLE),
    _Kind("*.pt", _PICKLE),
    _Kind("*.pth", _PICKLE),
    _Kind("*.ckpt", _PICKLE),
    _Kind("*.h5", "weights of TensorFlow: save them as safetensors"),
    _Kind("*.msgpack", "weights of Flax: save them as safetensors"),
    _Kind("*.onnx", "an ONNX model, which ONNX Runtime runs"),
    _Kind("*/config.json", "the model in a folder below it: give that folder"),
    _Kind("tokenizer*", _TOKENIZER),
    _Kind("vocab*", _TOKENIZER),
)
LFS_POINTER = (
    "a Git LFS pointer, which stands for the file: fetch the file itself with `git lfs pull` (or with `hf download`)"
)
_FIRST_BYTES = (
    _Kind(b"version https://git-lfs.github.com/", LFS_POINTER),
    _Kind(b"version https://hawser.github.com/", LFS_POINTER),
    _Kind(GGUF_MAGIC, _GGUF),
    _Kind(b"PK\x03\x04", _PICKLE),
    _Kind(b"\x80\x02\x8a\x0a", _PICKLE),
    _Kind(b"<!doctype html", "a web page, so that the download went wrong"),
    _Kind(b"<html", "a web page, so that the download went wrong"),
)
FIRST_BYTES = 64

# Keys of config.json that tell that the weights are quantised. The value is the key inside that names the method.
_QUANTISED = {"quantization_config": "quant_method", "quantization": "mode", "compression_config": "format"}


def model(names: Iterable[str], families: str) -> str:
    """Describes the model that has these class names or this model_type, as the end of an error message.

    `families` are the models that this package loads.
    """
    text = " ".join(names).lower()
    known = next((row for row in _MODELS if re.search(row.names, text)), None)
    found = f"this is {known.what}, which {known.runs_it}; " if known else ""
    return f"{found}this package loads {families}"


def quantised(key: str, value: Any) -> str | None:
    """Returns what an error should expect in place of a key about quantised weights; None for other keys."""
    if key not in _QUANTISED:
        return None
    method = value.get(_QUANTISED[key]) if isinstance(value, dict) else None
    named = f" ({method})" if isinstance(method, str) else ""
    return f"no such key: quantised weights{named} are not read, so load the checkpoint that they were made from"


def adapter(folder: Path) -> str | None:
    """Describes a folder that holds an adapter; returns None for other folders."""
    if not (folder / "adapter_config.json").is_file():
        return None
    if any((folder / name).is_file() for name in WEIGHTS):
        return "a model with an adapter_config.json, expected one without it: it is unclear whether it counts"
    return (
        "a PEFT adapter, which is not a whole model: merge it into its base model with merge_and_unload() of peft, "
        "save the result with save_pretrained() in another folder, and load that"
    )


def contents(folder: Path) -> str:
    """Describes the content of a folder without weights, as the end of an error message."""
    known = _contents(folder)
    return f"; the folder holds {known}" if known else ""


def without_tokenizer(folder: Path) -> str:
    """Describes the content of a folder without tokenizer files, as the end of an error message."""
    known = adapter(folder) or _contents(folder)
    return f"; the folder holds {known}" if known and known != _TOKENIZER else ""


def _contents(folder: Path) -> str | None:
    if any((folder / name).is_file() for name in WEIGHTS):
        return None
    return next((row.what for row in _CONTENTS if next(folder.glob(row.pattern), None)), None)


def first_bytes(data: bytes) -> str | None:
    """Describes a file that begins with `data`; returns None if its kind is not known."""
    begin = data[:FIRST_BYTES].lstrip().lower()
    return next((row.what for row in _FIRST_BYTES if begin.startswith(row.pattern.lower())), None)


def is_gguf(path: Path) -> bool:
    """Returns whether a file begins as a GGUF file does."""
    with open(path, "rb") as opened:
        return opened.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def file(path: Path) -> str:
    """Describes a file that was given in place of a folder."""
    with open(path, "rb") as opened:
        begin = opened.read(FIRST_BYTES)
    if known := first_bytes(begin):
        return f"it is {known}"
    if path.suffix.lower() == ".gguf":
        return "it is no GGUF file: it does not begin with GGUF" if begin else "it is an empty file"
    return f"it is a file, and the model is its folder {str(path.absolute().parent)!r}"
