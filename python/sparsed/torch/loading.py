"""Loads the weights of a checkpoint into the torch engine, tensor by tensor, so that the host holds only one copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..kernels import ops
from ..models import ModelConfig, TensorNames
from .engine import DTYPES, Network, NetworkLayer, TorchTransformer
from .parallel import HeadShare, dispatch, place, resolve_device_map

if TYPE_CHECKING:
    from ..models.checkpoint import Checkpoint

# Mapped arrays are read-only, which torch does not support, so they are copied in chunks of this size.
_CHUNK_BYTES = 1 << 24


class _Target(NamedTuple):
    """The destination of a part of a checkpoint's tensor: `index` selects the part that goes into `weight`."""

    weight: torch.Tensor
    index: Any = ...


def load_transformer(
    checkpoint: Checkpoint,
    config: ModelConfig,
    names: TensorNames,
    ends: tuple[str, str],
    dtype: str,
    device: str | int | torch.device | None,
    device_map: str | Mapping[str, Any] | None,
    group: dist.ProcessGroup | None,
) -> TorchTransformer:
    """Loads a model from a checkpoint whose tensors were checked. `load_model` describes the last arguments.

    Args:
        checkpoint: The tensors of the model.
        config: The shape of the model.
        names: The names of the tensors.
        ends: The names of the embedding and of the head, which are the same if the two are tied.
        dtype: "float32" or "bfloat16".
        device: The device of the whole model.
        device_map: The devices of its modules.
        group: The processes that share its heads.
    """
    share = HeadShare(config, group)
    network = Network(config, DTYPES[dtype], share)
    if config.tie_weights:
        network.head.weight = network.embedding.weight
    if isinstance(device, int):  # torch.device(0) would raise without a GPU
        device = torch.device("cuda", device)
    devices: dict[str, Any] = {"": device or "cpu"}
    if device_map is not None:
        if not isinstance(device_map, (str, Mapping)):
            raise TypeError(f"load_model: device_map is {device_map!r}, expected a strategy such as 'auto' or a dict")
        devices = resolve_device_map(network, device_map, NetworkLayer.__name__)
    places = dict.fromkeys(map(_known_device, devices.values()))
    for where in places:
        if where.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"load_model: device is {where}, expected one that torch can use here")
    if all(str(where) == "cpu" for where in devices.values()):
        ops.require_memory(sum(weight.nbytes for weight in network.parameters()), "load_model: the weights")
    place(network, devices)
    # Placing gives every module new memory, which separates tied weights. They are tied again if they share a device.
    if config.tie_weights and network.head.weight.device == network.embedding.weight.device:
        network.head.weight = network.embedding.weight
    targets: dict[str, list[_Target]] = {}
    for name, target in _targets(network, config, names, ends, share):
        targets.setdefault(name, []).append(target)
    with torch.inference_mode():
        for name, array in checkpoint.stream():
            for target in targets.get(name, ()):
                _copy(target.weight, array[target.index])
    if device_map is not None:
        dispatch(network, devices)
    return TorchTransformer(config, network, dtype, share, tuple(places))


def backend_of(device: str | int | torch.device | None, device_map: str | Mapping[str, Any] | None) -> str | None:
    """Returns "cuda" if the model will compute on a GPU that multiplies bfloat16, else None, the active backend."""
    on_gpu = device_map is not None or isinstance(device, int) or str(device).startswith("cuda")
    return "cuda" if on_gpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else None


def _known_device(where: Any) -> torch.device:
    try:
        return torch.device(where)
    except RuntimeError as error:
        raise ValueError(f"load_model: device is {where!r}, expected one that torch knows: {error}") from None


def _targets(
    network: Network, config: ModelConfig, names: TensorNames, ends: tuple[str, str], share: HeadShare
) -> Iterator[tuple[str, _Target]]:
    """Yields the names of the checkpoint's tensors and their destinations."""
    yield ends[0], _Target(network.embedding.weight)
    if network.head.weight is not network.embedding.weight:
        yield ends[1], _Target(network.head.weight)
    yield f"{names.final_norm}.weight", _Target(network.final_norm.weight)
    queries, keys = (_slice(heads, config.head_dim) for heads in (share.heads, share.kv_heads))
    columns = _slice(share.mlp_columns)
    sizes = [part.stop - part.start for part in (queries, keys, keys)]
    for number in range(config.num_layers):
        layer: Any = network.layers[number]
        prefix = names.layer.format(number)
        yield f"{prefix}{names.attention_norm}.weight", _Target(layer.attention_norm.weight)
        weights = layer.qkv.weight.split(sizes)
        biases = layer.qkv.bias.split(sizes) if config.qkv_bias else itertools.repeat(None)
        modules = (names.query, names.key, names.value)
        for name, part, weight, bias in zip(modules, (queries, keys, keys), weights, biases, strict=False):
            yield f"{prefix}{name}.weight", _Target(weight, part)
            if bias is not None:
                yield f"{prefix}{name}.bias", _Target(bias, part)
        if config.qk_norm:
            yield f"{prefix}{names.query_norm}.weight", _Target(layer.query_norm.weight)
            yield f"{prefix}{names.key_norm}.weight", _Target(layer.key_norm.weight)
        yield f"{prefix}{names.attention_out}.weight", _Target(layer.attention_out.weight, (..., queries))
        yield f"{prefix}{names.mlp_norm}.weight", _Target(layer.mlp_norm.weight)
        yield f"{prefix}{names.gate}.weight", _Target(layer.gate.weight, columns)
        yield f"{prefix}{names.up}.weight", _Target(layer.up.weight, columns)
        yield f"{prefix}{names.down}.weight", _Target(layer.down.weight, (..., columns))


def _slice(indices: range, width: int = 1) -> slice:
    """Returns the slice of rows or columns that belong to `indices`, with `width` of them per index."""
    return slice(indices.start * width, indices.stop * width)


def _copy(weight: torch.Tensor, array: NDArray[Any]) -> None:
    rows = max(1, _CHUNK_BYTES * len(array) // max(1, array.nbytes))
    for begin in range(0, len(array), rows):
        weight[begin : begin + rows].copy_(_as_tensor(np.array(array[begin : begin + rows])))


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Returns a tensor that shares the memory of `array`. Torch does not accept bfloat16 arrays from numpy directly."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
