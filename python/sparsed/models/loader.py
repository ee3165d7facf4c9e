"""Loads a model from a checkpoint folder or a GGUF file, without running remote code."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..checks import Checker, SparsedWarning, dtype_name
from ..kernels import ops
from ..progress import progress_bar
from . import (
    DTYPES,
    Architecture,
    ConfigReader,
    Layer,
    ModelConfig,
    TensorNames,
    Transformer,
    find_architecture,
    recognise,
)
from .checkpoint import Checkpoint, SafetensorsCheckpoint, check_tensors
from .files import find_folder, read_json
from .gguf import GgufCheckpoint, find_gguf
from .gguf_config import read_gguf_config
from .gguf_file import GgufFile
from .precision import AUTO, automatic_dtype
from .quantization import KEY as QUANTIZATION_KEY
from .quantization import Scheme, is_int8, read_scheme, scale_name
from .safetensors import TensorInfo
from .token_declarations import declared_mask_token, declared_turn_ends, find_mask_token, read_optional

if TYPE_CHECKING:
    import torch

    from ..torch.engine import TorchTransformer

WEIGHTS = (AUTO, "int8")
Dtype = Literal["float32", "bfloat16", "int8"]


@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = ...,
    *,
    weights: str = ...,
    engine: Literal["native"] = ...,
    rope_scaling: Mapping[str, Any] | None = ...,
    progress: bool = ...,
) -> Transformer: ...
@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = ...,
    *,
    weights: str = ...,
    engine: Literal["torch"],
    device: str | int | torch.device | None = ...,
    device_map: str | Mapping[str, Any] | None = ...,
    group: torch.distributed.ProcessGroup | None = ...,
    rope_scaling: Mapping[str, Any] | None = ...,
    progress: bool = ...,
) -> TorchTransformer: ...
@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = ...,
    *,
    weights: str = ...,
    engine: str,
    device: str | int | torch.device | None = ...,
    device_map: str | Mapping[str, Any] | None = ...,
    group: torch.distributed.ProcessGroup | None = ...,
    rope_scaling: Mapping[str, Any] | None = ...,
    progress: bool = ...,
) -> Transformer | TorchTransformer: ...
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = AUTO,
    *,
    weights: str = AUTO,
    engine: str = "native",
    device: str | int | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Transformer | TorchTransformer:
    """Loads a diffusion language model from its checkpoint folder or a GGUF file: LLaDA, Dream, A2D and their like.

    Args:
        folder: A folder with config.json and model.safetensors, or with shards and model.safetensors.index.json.
            Or a GGUF file in F32, F16, BF16, Q8_0 or Q4_K_M, or a folder with one such file and no safetensors.
            "demo" stands for the shipped model unless a folder has that name.
        dtype: The dtype of activations and attention: "float32" or "bfloat16", or one of these as a dtype of numpy,
            ml_dtypes or torch. "auto" is bfloat16 if the checkpoint is stored in it and the backend has instructions
            for it (`amx`, `avx512_bf16`, a GPU), else float32. The native engine keeps bfloat16 weights as bfloat16
            with either dtype, and rounds other weights to bfloat16 if `dtype` is "bfloat16". Quantised weights of a
            GGUF file count as bfloat16. The torch engine stores all weights in `dtype`.
        weights: "auto" keeps the weights as the folder stores them. "int8" quantises the linear layers except the head
            to int8 while loading: one scale per output row, and inputs with one scale per token (W8A8). It needs the
            native engine. Layers that a folder of `sparsed quantize` or of llmcompressor stores as int8 stay int8, and
            the layers that its config.json ignores stay as they are, with either value.
        engine: "native" runs sparsed's kernels for every operation. "torch" runs matrix products in torch and
            attention in sparsed.
        device: The device of the model, with engine "torch". None is the CPU.
        device_map: Replaces `device`, with engine "torch": "auto", "balanced" ... or {module: device}. The library
            accelerate then splits the layers over several devices.
        group: A torch.distributed group, with engine "torch". Each of its processes holds its share of the heads, and
            selects, stores and reports the patterns of these heads.
        rope_scaling: Settings of RoPE in place of those of config.json, for sequences longer than the model was trained
            on. "rope_type" is "linear", "yarn" or "llama3", with the keys that transformers has for them; "ntk" with
            "factor", which multiplies the base as LongLLaDA does (LLaDA: 4 for 8k tokens, 14 for 16k, 31 for 24k), or
            with "target_length", from which LongLLaDA's rule computes the factor; "ultrallada" with "target_length",
            which is UltraLLaDA's rule; or "default", which removes the scaling of config.json. All but "default" take
            "original_max_position_embeddings", the length of the training. If it is not given, it is the one that
            config.json has under this name, or else the maximum of config.json. A "factor" is at least 1.
            `config.max_length` is then the length that the scaling makes of the length of the training, and the length
            of the training itself with "default".
        progress: Whether to show a progress bar on stderr.

    Raises:
        FileNotFoundError: The folder, its config.json or its weights do not exist.
        ValueError: The folder holds another kind of model, which the message names; a config value changes the
            arithmetic in a way that is not supported; a tensor is missing, extra or misshapen; a file is damaged; or
            two arguments exclude each other.
        TypeError: `folder` is not a path, or `rope_scaling` is no dict of plain values.
        MemoryError: The weights do not fit into the available memory.
        ImportError: Engine "torch" needs torch, `device_map` needs accelerate, and a quantised GGUF file needs gguf.
    """
    name = dtype_name(dtype)
    if not isinstance(name, str) or name not in (AUTO, *DTYPES):
        raise ValueError(f"load_model: dtype is {dtype!r}, expected one of {[AUTO, *DTYPES]}")
    if engine not in ("native", "torch"):
        raise ValueError(f"load_model: engine is {engine!r}, expected 'native' or 'torch'")
    Checker("load_model").choice("weights", weights, WEIGHTS)
    if weights == "int8" and engine == "torch":
        raise ValueError("load_model: weights is 'int8' and engine is 'torch', expected engine 'native' with int8")
    placement = {"device": device, "device_map": device_map, "group": group}
    given = [key for key, value in placement.items() if value is not None]
    if given and engine == "native":
        raise ValueError(f"load_model: {given[0]} is given, expected engine 'torch' with it")
    if len(given) > 1 and "device_map" in given:
        raise ValueError(f"load_model: device_map and {given[0]} are given, expected only device_map")
    path = find_folder(folder, "load_model")
    config, architecture, scheme = read_config(path, rope_scaling)
    warn_of_mask_token(path, config)
    if scheme and engine == "torch":
        raise ValueError(f"load_model: {path} holds int8 weights and engine is 'torch', expected engine 'native'")
    checkpoint = open_checkpoint(path, config)
    ends = check_tensors(checkpoint, config, architecture.names, scheme)
    bytes_read = {"total": checkpoint.nbytes, "unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with progress_bar(progress, desc="loading", leave=False, **bytes_read) as bar:
        checkpoint.on_read = bar.update
        if engine == "torch":
            from ..torch.loading import backend_of, load_transformer

            if name == AUTO:
                name = automatic_dtype(checkpoint.tensors, backend_of(device, device_map))
            return load_transformer(checkpoint, config, architecture.names, ends, name, device, device_map, group)
        if name == AUTO:
            name = automatic_dtype(checkpoint.tensors)
        return _Packer(checkpoint, name, weights == "int8" and not scheme).transformer(config, architecture.names, ends)


def read_config(
    path: Path, rope_scaling: Mapping[str, Any] | None = None
) -> tuple[ModelConfig, Architecture, Scheme | None]:
    """Returns what the files say about their model, without the weights, and which of these they declare as int8.

    Args:
        path: A folder or a GGUF file.
        rope_scaling: As in `load_model`.

    Raises:
        FileNotFoundError, ValueError, TypeError: As `load_model`.
    """
    if gguf := find_gguf(path, "load_model"):
        return *read_gguf_config(GgufFile(gguf, "load_model"), rope_scaling), None
    config_path = path / "config.json"
    if adapter := recognise.adapter(path):
        raise ValueError(f"load_model: {path} is {adapter}")
    if not config_path.is_file():
        raise FileNotFoundError(f"load_model: {config_path} does not exist{recognise.contents(path)}")
    values = read_json(config_path)
    mask_file = config_path.name
    if values.get("mask_token_id") is None and (found := find_mask_token(path)):
        values["mask_token_id"], mask_file = found
    architecture = find_architecture(values, str(config_path))
    scheme = read_scheme(values, str(config_path))
    if scheme:
        del values[QUANTIZATION_KEY]
    config = architecture.read_config(ConfigReader(values, str(config_path)), rope_scaling)
    return _read_generation(config, path, mask_file), architecture, scheme


def warn_of_mask_token(path: Path, config: ModelConfig) -> None:
    """Warns if the files of the tokenizer in the folder `path` name another mask token than the model's config.

    Raises:
        ValueError: A file is damaged or a token is malformed.
    """
    declared = None if path.is_file() else declared_mask_token(path)
    if declared is not None and declared.id != config.mask_token_id:
        source = find_gguf(path, "load_model") or path / "config.json"
        warnings.warn(
            f"load_model: the mask token is {config.mask_token_id} in {source}, but {declared.id} in "
            f"{path / declared.file}: the model has {config.mask_token_id}, that of {source.name}, and the tokenizer "
            f"has {declared.id}",
            SparsedWarning,
            stacklevel=3,
        )


def open_checkpoint(path: Path, config: ModelConfig) -> Checkpoint:
    """Opens the tensors of a folder or a GGUF file whose config `read_config` returned.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `load_model`.
    """
    gguf = find_gguf(path, "load_model")
    return GgufCheckpoint(GgufFile(gguf, "load_model"), config) if gguf else SafetensorsCheckpoint(path)


def _read_generation(config: ModelConfig, path: Path, mask_file: str) -> ModelConfig:
    """Adds the end tokens of generation_config.json and of turns, and checks that it names the same mask token.

    `mask_file` is the name of the file that the config's mask token comes from.
    """
    generation = path / "generation_config.json"
    reader = ConfigReader(read_optional(generation), str(generation))
    if reader.token("mask_token_id", config.mask_token_id) != config.mask_token_id:
        reader.fail("mask_token_id", f"{config.mask_token_id} (that of {mask_file})")
    turn_ends = (token for token in declared_turn_ends(path) if token < config.vocab_size)
    ends = (*config.end_token_ids, *reader.tokens("eos_token_id"), *turn_ends)
    return dataclasses.replace(config, end_token_ids=tuple(dict.fromkeys(ends)))


def loaded_nbytes(checkpoint: Checkpoint, ends: tuple[str, str]) -> int:
    """Returns about how many bytes the weights take after `load_model(path)`; `ends` are those of `check_tensors`."""
    return _Packer(checkpoint, automatic_dtype(checkpoint.tensors), False).needed(*ends)


class _Packer:
    """Packs the weights one by one from the mapped files, so that memory holds only one copy of them."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, quantise: bool) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._quantise = quantise  # the linear layers that are not int8 yet, except for the head

    def transformer(self, config: ModelConfig, names: TensorNames, ends: tuple[str, str]) -> Transformer:
        embedding, head = ends
        module = head.removesuffix(".weight")
        needed = self.needed(embedding, head) + self._checkpoint.scratch_nbytes
        ops.require_memory(needed, "load_model: the weights")
        layers = tuple(
            self._layer(names, names.layer.format(number), config.qkv_bias) for number in range(config.num_layers)
        )
        return Transformer(
            config=config,
            embedding=self._embedding(embedding),
            layers=layers,
            final_norm=self._norm(f"{names.final_norm}.weight"),
            head=self._pack([module], self._packed(module, quantise=False)),
            dtype=self._dtype,
        )

    def needed(self, embedding: str, head: str) -> int:
        """Returns the bytes of the packed weights and of the embedding, which lies in memory beside a tied head."""
        sizes = {
            name: self._packed_bytes(info, quantise=len(info.shape) > 1 and name not in (embedding, head))
            for name, info in self._checkpoint.tensors.items()
        }
        table = self._checkpoint.tensors[embedding]
        packed = sum(sizes.values()) - (sizes[embedding] if embedding != head else 0)
        return packed + math.prod(table.shape) * (2 if self._dtype == "bfloat16" else table.dtype.itemsize)

    def _packed_bytes(self, info: TensorInfo, *, quantise: bool) -> int:
        if is_int8(info):
            return math.prod(info.shape)  # its scales are a tensor of their own
        if quantise and self._quantise:
            return math.prod(info.shape) + 4 * info.shape[0]
        return math.prod(info.shape) * (2 if self._dtype == "bfloat16" or info.dtype == ml_dtypes.bfloat16 else 4)

    def _layer(self, names: TensorNames, prefix: str, qkv_bias: bool) -> Layer:
        qkv = [prefix + name for name in (names.query, names.key, names.value)]
        gate, up = prefix + names.gate, prefix + names.up
        mlp_dtype = self._packed(gate, up)  # one dtype, because one call computes both
        return Layer(
            attention_norm=self._norm(f"{prefix}{names.attention_norm}.weight"),
            qkv=self._pack(qkv, self._packed(*qkv), bias=qkv_bias),
            attention_out=self._pack([prefix + names.attention_out]),
            mlp_norm=self._norm(f"{prefix}{names.mlp_norm}.weight"),
            gate=self._pack([gate], mlp_dtype),
            up=self._pack([up], mlp_dtype),
            down=self._pack([prefix + names.down]),
            query_norm=self._norm_of(prefix, names.query_norm),
            key_norm=self._norm_of(prefix, names.key_norm),
        )

    def _packed(self, *modules: str, quantise: bool = True) -> Dtype:
        """Returns the dtype in which the weights of these modules, which read one input, are packed."""
        infos = {name: self._checkpoint.tensors[f"{name}.weight"] for name in modules}
        stored = {info.dtype for info in infos.values()}
        if any(map(is_int8, infos.values())):
            for name, info in infos.items():
                if not is_int8(info):
                    raise ValueError(
                        f"load_model: {name}.weight is {info.dtype}, expected int8 like the other projections of its "
                        f"input (in {info.file})"
                    )
            return "int8"
        if quantise and self._quantise:
            return "int8"
        return "bfloat16" if self._dtype == "bfloat16" or stored == {np.dtype(ml_dtypes.bfloat16)} else "float32"

    def _pack(self, modules: Sequence[str], dtype: Dtype | None = None, *, bias: bool = False) -> ops.PackedWeight:
        """Packs the weights of `modules` as one matrix with their rows one after the other."""
        names = [f"{module}.weight" for module in modules]
        weights = [self._checkpoint.array(name) for name in names]
        biases = [self._checkpoint.array(f"{module}.bias") for module in modules] if bias else None
        scales = [self._scales(name) for name in names] if weights[0].dtype == np.int8 else None
        try:
            packed = ops.pack_weights(weights, biases, dtype=dtype or self._packed(*modules), scales=scales)
        except ValueError as error:
            raise self._named(error, names) from error
        self._checkpoint.release()
        return packed

    def _named(self, error: ValueError, names: Sequence[str]) -> ValueError:
        """Returns an error of `pack_weights` with the tensor and its file in place of its place in the arguments."""
        text = str(error).removeprefix("pack_weights: ")
        number = next((i for i in range(len(names)) if f"weights[{i}]" in text), 0)
        text = text.replace(f"weights[{number}]", names[number])
        return ValueError(f"load_model: {text} (in {self._checkpoint.tensors[names[number]].file})")

    def _scales(self, weight: str) -> NDArray[np.float32]:
        """Returns the scales of an int8 weight (N, K), one for each row, (N,)."""
        name = scale_name(weight)
        scales = self._checkpoint.array(name).astype(np.float32).reshape(-1)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            file = self._checkpoint.tensors[name].file
            raise ValueError(f"load_model: {name} has a scale below 0 or not finite (in {file})")
        return scales

    def _embedding(self, name: str) -> NDArray[Any]:
        """Copies the embedding into memory, because a mapped array changes when its file is overwritten later."""
        mapped = self._checkpoint.array(name)
        embedding = np.array(mapped, ml_dtypes.bfloat16 if self._dtype == "bfloat16" else mapped.dtype)
        self._checkpoint.release()
        return embedding

    def _norm_of(self, prefix: str, name: str | None) -> NDArray[np.float32] | None:
        return None if name is None else self._norm(f"{prefix}{name}.weight")

    def _norm(self, name: str) -> NDArray[np.float32]:
        return self._checkpoint.array(name).astype(np.float32)
