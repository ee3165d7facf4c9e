"""Weights of a checkpoint into the torch engine: tensor by tensor, so that the host holds one copy and one tensor."""

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

# A read-only mapped array is copied on its way into a tensor, this much at a time.
_CHUNK_BYTES = 1 << 24


class _Target(NamedTuple):
    """Where a part of a checkpoint's tensor goes."""

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
    """The model of a checked checkpoint; `load_model` describes the arguments.

    Args:
        checkpoint: its tensors.
        config: its shape.
        names: the names of its tensors.
        ends: those of the embedding and of the head, one name where they are tied.
        dtype: "float32" or "bfloat16".
        device: of the whole model.
        device_map: of its modules.
        group: of the processes that share its heads.
    """
    share = HeadShare(config, group)
    network = Network(config, DTYPES[dtype], share)
    if config.tie_weights:
        network.head.weight = network.embedding.weight
    if isinstance(device, int):  # torch.device(0) itself needs a GPU
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


def _known_device(where: Any) -> torch.device:
    try:
        return torch.device(where)
    except RuntimeError as error:
        raise ValueError(f"load_model: device is {where!r}, expected one that torch knows: {error}") from None


def _targets(
    network: Network, config: ModelConfig, names: TensorNames, ends: tuple[str, str], share: HeadShare
) -> Iterator[tuple[str, _Target]]:
    """The checkpoint's tensors and where they go."""
    yield ends[0], _Target(network.embedding.weight)
    if network.head.weight is not network.embedding.weight:
        yield ends[1], _Target(network.head.weight)
    yield f"{names.final_norm}.weight", _Target(network.final_norm.weight)
    queries, keys = (_slice(heads, config.head_dim) for heads in (share.heads, share.kv_heads))
    columns = _slice(share.mlp_columns)
    sizes = [rows.stop - rows.start for rows in (queries, keys, keys)]
    for number in range(config.num_layers):
        layer: Any = network.layers[number]
        prefix = names.layer.format(number)
        yield f"{prefix}{names.attention_norm}.weight", _Target(layer.attention_norm.weight)
        weights = layer.qkv.weight.split(sizes)
        biases = layer.qkv.bias.split(sizes) if config.qkv_bias else itertools.repeat(None)
        modules = (names.query, names.key, names.value)
        for name, rows, weight, bias in zip(modules, (queries, keys, keys), weights, biases, strict=False):
            yield f"{prefix}{name}.weight", _Target(weight, rows)
            if bias is not None:
                yield f"{prefix}{name}.bias", _Target(bias, rows)
        yield f"{prefix}{names.attention_out}.weight", _Target(layer.attention_out.weight, (..., queries))
        yield f"{prefix}{names.mlp_norm}.weight", _Target(layer.mlp_norm.weight)
        yield f"{prefix}{names.gate}.weight", _Target(layer.gate.weight, columns)
        yield f"{prefix}{names.up}.weight", _Target(layer.up.weight, columns)
        yield f"{prefix}{names.down}.weight", _Target(layer.down.weight, (..., columns))


def _slice(indices: range, width: int = 1) -> slice:
    """Of the rows or columns, `width` for each index."""
    return slice(indices.start * width, indices.stop * width)


def _copy(weight: torch.Tensor, array: NDArray[Any]) -> None:
    rows = max(1, _CHUNK_BYTES * len(array) // max(1, array.nbytes))
    for begin in range(0, len(array), rows):
        weight[begin : begin + rows].copy_(_as_tensor(np.array(array[begin : begin + rows])))


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """The same memory; torch knows no bfloat16 of numpy's."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
