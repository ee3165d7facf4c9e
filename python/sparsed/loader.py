"""`load_model`: a checkpoint folder (config.json and safetensors) into a model, without remote code."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from . import ops
from .files import find_folder, read_json
from .models import (
    DTYPES,
    ConfigReader,
    Layer,
    ModelConfig,
    TensorNames,
    Transformer,
    find_architecture,
    tensor_shapes,
)
from .safetensors import SafetensorsFile, TensorInfo

if TYPE_CHECKING:
    import torch

    from .torch.engine import TorchTransformer

Array = NDArray[Any]

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
# Tensors or rows that an error message or a comparison takes at a time.
_NAMED = 5
_COMPARED_ROWS = 4096


@overload
def load_model(folder: str | os.PathLike[str], dtype: str = ..., *, engine: Literal["native"] = ...) -> Transformer: ...
@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: str | torch.dtype = ...,
    *,
    engine: Literal["torch"],
    device: str | int | torch.device | None = ...,
    device_map: str | Mapping[str, Any] | None = ...,
    group: torch.distributed.ProcessGroup | None = ...,
) -> TorchTransformer: ...
@overload
def load_model(
    folder: str | os.PathLike[str],
    dtype: str | torch.dtype = ...,
    *,
    engine: str,
    device: str | int | torch.device | None = ...,
    device_map: str | Mapping[str, Any] | None = ...,
    group: torch.distributed.ProcessGroup | None = ...,
) -> Transformer | TorchTransformer: ...
def load_model(
    folder: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    *,
    engine: str = "native",
    device: str | int | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> Transformer | TorchTransformer:
    """A LLaDA or Dream model from its checkpoint folder.

    Args:
        folder: config.json and model.safetensors, or shards with model.safetensors.index.json.
        dtype: what activations and attention are computed in, "float32" or "bfloat16". bfloat16 weights stay bfloat16
            in memory either way with the native engine; "bfloat16" rounds others to it. The torch engine keeps
            weights in `dtype`.
        engine: "native": sparsed's own kernels; "torch": matrix products by torch, attention by sparsed.
        device: engine "torch": where the model lies; None: the CPU.
        device_map: engine "torch", instead of `device`: "auto", "balanced" ... or {module: device}; accelerate splits
            the layers over several devices.
        group: engine "torch": each process of this torch.distributed group holds its share of the heads, and selects,
            stores and reports the patterns of these.

    Raises:
        FileNotFoundError: the folder, its config.json or its weights do not exist.
        ValueError: a config value that changes the arithmetic and is not supported; a tensor that is missing, extra or
            misshapen; a damaged file; arguments that do not go together.
        MemoryError: the weights do not fit into the memory that is available.
        ImportError: engine "torch" without torch, `device_map` without accelerate.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"load_model: dtype is {dtype!r}, expected one of {list(DTYPES)}")
    if engine not in ("native", "torch"):
        raise ValueError(f"load_model: engine is {engine!r}, expected 'native' or 'torch'")
    placement = {"device": device, "device_map": device_map, "group": group}
    given = [key for key, value in placement.items() if value is not None]
    if given and engine == "native":
        raise ValueError(f"load_model: {given[0]} is given, expected engine 'torch' with it")
    if len(given) > 1 and "device_map" in given:
        raise ValueError(f"load_model: device_map and {given[0]} are given, expected device_map alone")
    path = find_folder(folder, "load_model")
    config_path = path / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"load_model: {config_path} does not exist")
    values = read_json(config_path)
    architecture = find_architecture(values, str(config_path))
    config = _add_end_tokens(architecture.read_config(ConfigReader(values, str(config_path))), path)
    checkpoint = Checkpoint(path)
    ends = _check_tensors(checkpoint, config, architecture.names)
    if engine == "torch":
        from .torch.loading import load_transformer

        return load_transformer(checkpoint, config, architecture.names, ends, name, device, device_map, group)
    return _Packer(checkpoint, name).transformer(config, architecture.names, ends)


def _add_end_tokens(config: ModelConfig, path: Path) -> ModelConfig:
    """With the end tokens that generation_config.json adds."""
    generation = path / "generation_config.json"
    if not generation.is_file():
        return config
    more = ConfigReader(read_json(generation), str(generation)).tokens("eos_token_id")
    return dataclasses.replace(config, end_token_ids=tuple(dict.fromkeys(config.end_token_ids + more)))


class Checkpoint:
    """The tensors of all files of a folder by name.

    Their arrays lie in mapped files, whose pages count as this process' memory once read: `release` them after use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, SafetensorsFile] = {}  # by tensor
        if (path / _SINGLE_FILE).is_file():
            self._add(SafetensorsFile(path / _SINGLE_FILE))
        elif (path / _INDEX_FILE).is_file():
            self._add_shards(path / _INDEX_FILE)
        else:
            raise FileNotFoundError(
                f"load_model: neither {_SINGLE_FILE} nor {_INDEX_FILE} exists in {path} (other formats are not read)"
            )

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Where each one lies."""
        return {name: file.tensors[name] for name, file in self._files.items()}

    def array(self, name: str) -> Array:
        """The tensor as a view of its mapped file."""
        return self._files[name].array(name)

    def release(self) -> None:
        """Gives back the memory of the pages read so far; arrays stay valid and read them again."""
        for file in set(self._files.values()):
            file.release()

    def stream(self) -> Iterator[tuple[str, Array]]:
        """Each tensor once, file by file in the order on disk; its array is valid until the next one."""
        for name, _ in sorted(self.tensors.items(), key=lambda item: (item[1].file, item[1].begin)):
            yield name, self.array(name)
            self._files[name].release()

    def _add(self, file: SafetensorsFile) -> None:
        self._files |= dict.fromkeys(file.tensors, file)

    def _add_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"load_model: {index} has no weight_map, expected names of tensors and their files")
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            # Read by name alone, so that an index cannot reach out of its folder. Links inside are the user's own.
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ValueError(
                    f"load_model: {index} puts {name} into {shard!r}, expected a .safetensors file beside it"
                )
            shards.setdefault(shard, set()).add(name)
        for shard, names in shards.items():
            if not (index.parent / shard).is_file():
                raise FileNotFoundError(f"load_model: {index.parent / shard} does not exist, but {index.name} lists it")
            file = SafetensorsFile(index.parent / shard)
            _refuse("not in", names - set(file.tensors), file.path)
            _refuse(f"not listed by {index.name} for", set(file.tensors) - names, file.path)
            self._add(file)


def _refuse(problem: str, names: Iterable[str], where: Path) -> None:
    """A ValueError that names the tensors, if there are any."""
    listed = sorted(names)
    if listed:
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        raise ValueError(f"load_model: tensors {problem} {where}: {', '.join(listed[:_NAMED])}{more}")


def _check_tensors(checkpoint: Checkpoint, config: ModelConfig, names: TensorNames) -> tuple[str, str]:
    """Refuses missing, extra and misshapen tensors; returns the names of the embedding and of the head."""
    tensors = checkpoint.tensors
    expected = tensor_shapes(config, names)
    embedding, head = f"{names.embedding}.weight", f"{names.head}.weight"
    if config.tie_weights:
        # Of two names for one tensor a checkpoint may hold either or both.
        for absent, present in ((head, embedding), (embedding, head)):
            if absent not in tensors and present in tensors:
                del expected[absent]
                embedding = head = present
                break
    _refuse("missing in", set(expected) - set(tensors), checkpoint.path)
    for name in sorted(set(tensors) - set(expected)):
        if not name.endswith("rotary_emb.inv_freq"):  # a buffer that follows from rope_theta
            _refuse("not expected in", [name], tensors[name].file)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"load_model: tensor {name} has shape {list(tensors[name].shape)}, expected {list(shape)} "
                f"(in {tensors[name].file})"
            )
    if config.tie_weights and head != embedding and not _same(checkpoint.array(embedding), checkpoint.array(head)):
        raise ValueError(f"load_model: {embedding} and {head} differ, expected the same (the config ties them)")
    return embedding, head


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and all(
        np.array_equal(a[i : i + _COMPARED_ROWS].view(np.uint8), b[i : i + _COMPARED_ROWS].view(np.uint8))
        for i in range(0, len(a), _COMPARED_ROWS)
    )


class _Packer:
    """Packs the weights one by one, straight from the mapped files: in memory there is one copy."""

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
            embedding=self._checkpoint.array(embedding),
            layers=layers,
            final_norm=self._norm(f"{names.final_norm}.weight"),
            head=self._pack([head.removesuffix(".weight")]),
            dtype=self._dtype,
        )

    def _needed(self, embedding: str, head: str) -> int:
        """Bytes of the packed weights."""
        sizes = {
            name: math.prod(info.shape) * (2 if self._packed_dtype or info.dtype == ml_dtypes.bfloat16 else 4)
            for name, info in self._checkpoint.tensors.items()
        }
        return sum(sizes.values()) - (sizes[embedding] if embedding != head else 0)

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
        )

    def _pack(self, modules: Sequence[str], *, bias: bool = False) -> ops.PackedWeight:
        """The weights of `modules`, their rows one after the other."""
        weights = [self._checkpoint.array(f"{name}.weight") for name in modules]
        biases = [self._checkpoint.array(f"{name}.bias") for name in modules] if bias else None
        packed = ops.pack_weights(weights, biases, dtype=self._packed_dtype)
        self._checkpoint.release()
        return packed

    def _norm(self, name: str) -> NDArray[np.float32]:
        return self._checkpoint.array(name).astype(np.float32)
