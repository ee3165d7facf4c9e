"""Loads a model from a checkpoint folder with config.json and safetensors files, without running remote code."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..checks import dtype_name
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
from .checkpoint import Checkpoint, check_tensors
from .files import find_folder, read_json
from .token_declarations import declared_mask_token, declared_turn_ends, read_optional

if TYPE_CHECKING:
    import torch

    from ..torch.engine import TorchTransformer


@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = ...,
    *,
    engine: Literal["native"] = ...,
    rope_scaling: Mapping[str, Any] | None = ...,
    progress: bool = ...,
) -> Transformer: ...
@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = ...,
    *,
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
    engine: str,
    device: str | int | torch.device | None = ...,
    device_map: str | Mapping[str, Any] | None = ...,
    group: torch.distributed.ProcessGroup | None = ...,
    rope_scaling: Mapping[str, Any] | None = ...,
    progress: bool = ...,
) -> Transformer | TorchTransformer: ...
def load_model(
    folder: str | os.PathLike[str],
    dtype: DTypeLike | torch.dtype = "float32",
    *,
    engine: str = "native",
    device: str | int | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Transformer | TorchTransformer:
    """Loads a diffusion language model from its checkpoint folder: LLaDA, Dream, A2D and their like.

    Args:
        folder: A folder with config.json and model.safetensors, or with shards and model.safetensors.index.json.
            "demo" stands for the shipped model unless a folder has that name.
        dtype: The dtype of activations and attention: "float32" or "bfloat16", or one of these as a dtype of numpy,
            ml_dtypes or torch. The native engine keeps bfloat16 weights as bfloat16 with either dtype, and rounds
            other weights to bfloat16 if `dtype` is "bfloat16". The torch engine stores all weights in `dtype`.
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
            "original_max_position_embeddings", the length of the training; it is the maximum of config.json if it is
            not given. `config.max_length` is then the length that the scaling is made for.
        progress: Whether to show a progress bar on stderr.

    Raises:
        FileNotFoundError: The folder, its config.json or its weights do not exist.
        ValueError: The folder holds another kind of model, which the message names; a config value changes the
            arithmetic in a way that is not supported; a tensor is missing, extra or misshapen; a file is damaged; or
            two arguments exclude each other.
        TypeError: `folder` is not a path, or `rope_scaling` is no dict of plain values.
        MemoryError: The weights do not fit into the available memory.
        ImportError: Engine "torch" needs torch, and `device_map` needs accelerate.
    """
    name = dtype_name(dtype)
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"load_model: dtype is {dtype!r}, expected one of {list(DTYPES)}")
    if engine not in ("native", "torch"):
        raise ValueError(f"load_model: engine is {engine!r}, expected 'native' or 'torch'")
    placement = {"device": device, "device_map": device_map, "group": group}
    given = [key for key, value in placement.items() if value is not None]
    if given and engine == "native":
        raise ValueError(f"load_model: {given[0]} is given, expected engine 'torch' with it")
    if len(given) > 1 and "device_map" in given:
        raise ValueError(f"load_model: device_map and {given[0]} are given, expected only device_map")
    path = find_folder(folder, "load_model")
    config, architecture = read_config(path, rope_scaling)
    checkpoint = Checkpoint(path)
    ends = check_tensors(checkpoint, config, architecture.names)
    bytes_read = {"total": checkpoint.nbytes, "unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with progress_bar(progress, desc="loading", leave=False, **bytes_read) as bar:
        checkpoint.on_read = bar.update
        if engine == "torch":
            from ..torch.loading import load_transformer

            return load_transformer(checkpoint, config, architecture.names, ends, name, device, device_map, group)
        return _Packer(checkpoint, name).transformer(config, architecture.names, ends)


def read_config(path: Path, rope_scaling: Mapping[str, Any] | None = None) -> tuple[ModelConfig, Architecture]:
    """What the files of a folder say about its model, without the weights.

    Args:
        path: The folder.
        rope_scaling: As in `load_model`.

    Raises:
        FileNotFoundError, ValueError, TypeError: As `load_model`.
    """
    config_path = path / "config.json"
    if adapter := recognise.adapter(path):
        raise ValueError(f"load_model: {path} is {adapter}")
    if not config_path.is_file():
        raise FileNotFoundError(f"load_model: {config_path} does not exist{recognise.contents(path)}")
    values = read_json(config_path)
    if values.get("mask_token_id") is None:
        declared = declared_mask_token(path)
        values |= {} if declared is None else {"mask_token_id": declared}
    architecture = find_architecture(values, str(config_path))
    config = architecture.read_config(ConfigReader(values, str(config_path)), rope_scaling)
    return _read_generation(config, path), architecture


def _read_generation(config: ModelConfig, path: Path) -> ModelConfig:
    """Adds the end tokens of generation_config.json and of turns, and checks that both files name one mask token."""
    generation = path / "generation_config.json"
    reader = ConfigReader(read_optional(generation), str(generation))
    if reader.token("mask_token_id", config.mask_token_id) != config.mask_token_id:
        reader.fail("mask_token_id", f"{config.mask_token_id} (that of config.json)")
    turn_ends = (token for token in declared_turn_ends(path) if token < config.vocab_size)
    ends = (*config.end_token_ids, *reader.tokens("eos_token_id"), *turn_ends)
    return dataclasses.replace(config, end_token_ids=tuple(dict.fromkeys(ends)))


class _Packer:
    """Packs the weights one by one from the mapped files, so that memory holds only one copy of them."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._packed_dtype: Literal["bfloat16"] | None = "bfloat16" if dtype == "bfloat16" else None

    def transformer(self, config: ModelConfig, names: TensorNames, ends: tuple[str, str]) -> Transformer:
        embedding, head = ends
        ops.require_memory(self._needed(embedding, head), "load_model: the weights")
        layers = tuple(
            self._layer(names, names.layer.format(number), config.qkv_bias) for number in range(config.num_layers)
        )
        return Transformer(
            config=config,
            embedding=self._embedding(embedding),
            layers=layers,
            final_norm=self._norm(f"{names.final_norm}.weight"),
            head=self._pack([head.removesuffix(".weight")]),
            dtype=self._dtype,
        )

    def _needed(self, embedding: str, head: str) -> int:
        """Returns the bytes of the packed weights and of the embedding, which lies in memory beside a tied head."""
        sizes = {
            name: math.prod(info.shape) * (2 if self._packed_dtype or info.dtype == ml_dtypes.bfloat16 else 4)
            for name, info in self._checkpoint.tensors.items()
        }
        table = self._checkpoint.tensors[embedding]
        packed = sum(sizes.values()) - (sizes[embedding] if embedding != head else 0)
        return packed + math.prod(table.shape) * (2 if self._packed_dtype else table.dtype.itemsize)

    def _layer(self, names: TensorNames, prefix: str, qkv_bias: bool) -> Layer:
        qkv = [prefix + name for name in (names.query, names.key, names.value)]
        return Layer(
            attention_norm=self._norm(f"{prefix}{names.attention_norm}.weight"),
            qkv=self._pack(qkv, bias=qkv_bias),
            attention_out=self._pack([prefix + names.attention_out]),
            mlp_norm=self._norm(f"{prefix}{names.mlp_norm}.weight"),
            gate=self._pack([prefix + names.gate]),
            up=self._pack([prefix + names.up]),
            down=self._pack([prefix + names.down]),
            query_norm=self._norm_of(prefix, names.query_norm),
            key_norm=self._norm_of(prefix, names.key_norm),
        )

    def _pack(self, modules: Sequence[str], *, bias: bool = False) -> ops.PackedWeight:
        """Packs the weights of `modules` as one matrix with their rows one after the other."""
        weights = [self._checkpoint.array(f"{name}.weight") for name in modules]
        biases = [self._checkpoint.array(f"{name}.bias") for name in modules] if bias else None
        packed = ops.pack_weights(weights, biases, dtype=self._packed_dtype)
        self._checkpoint.release()
        return packed

    def _embedding(self, name: str) -> NDArray[Any]:
        """Copies the embedding into memory, because a mapped array changes when its file is overwritten later."""
        mapped = self._checkpoint.array(name)
        embedding = np.array(mapped, ml_dtypes.bfloat16 if self._packed_dtype else mapped.dtype)
        self._checkpoint.release()
        return embedding

    def _norm_of(self, prefix: str, name: str | None) -> NDArray[np.float32] | None:
        return None if name is None else self._norm(f"{prefix}{name}.weight")

    def _norm(self, name: str) -> NDArray[np.float32]:
        return self._checkpoint.array(name).astype(np.float32)
