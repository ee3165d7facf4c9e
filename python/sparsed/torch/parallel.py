"""Splits a model: its layers over several devices of one process, or its heads over the processes of a group.

Patterns belong to heads, so each process of a group selects and reuses the patterns of its heads. The processes
exchange only the sums after the two row-split projections of each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..models import ModelConfig

_UNITS = ("embedding", "layers", "final_norm", "head")


class HeadShare:
    """The part of each layer that one process of a group computes. Without a group, it is the whole layer.

    Attributes:
        heads, kv_heads: The indices of the query heads, and of the key/value heads that they use.
        mlp_columns: The indices of the MLP's inner columns.

    Args:
        config: The config of the whole model.
        group: A torch.distributed process group that contains this process.

    Raises:
        ValueError: Heads or columns cannot be split evenly, or this process is not in the group.
    """

    def __init__(self, config: ModelConfig, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._size = 1 if group is None else dist.get_world_size(group)
        rank = 0 if group is None else dist.get_rank(group)
        if rank < 0:
            raise ValueError("load_model: group does not contain this process, expected a group that does")
        self.heads = self._part("num_heads", config.num_heads, rank)
        self.mlp_columns = self._part("intermediate_size", config.intermediate_size, rank)
        if self._size <= config.num_kv_heads or self._size % config.num_kv_heads:
            self.kv_heads = self._part("num_kv_heads", config.num_kv_heads, rank)
        else:  # there are more processes than key/value heads, so several use the same one
            only = rank * config.num_kv_heads // self._size
            self.kv_heads = range(only, only + 1)

    def _part(self, name: str, count: int, rank: int) -> range:
        if count % self._size:
            raise ValueError(
                f"load_model: {name} is {count}, expected a multiple of the {self._size} processes in group"
            )
        width = count // self._size
        return range(rank * width, (rank + 1) * width)

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Replaces `partial` by the sum of all processes' tensors, and returns it."""
        if self._size > 1:
            dist.all_reduce(partial, group=self._group)
        return partial

    def check_same(self, **arguments: Tensor) -> None:
        """Raises ValueError in all processes unless they hold the same integers in the arguments of `forward`."""
        if self._size == 1:
            return
        # All processes have the same hash h exactly if the maximum of h is the minimum of h. One reduction finds both,
        # since the maximum of -h is the negative minimum of h.
        digests = torch.stack([_digest(values) for values in arguments.values()])
        extremes = torch.stack([digests, -digests])
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        for name, differs in zip(arguments, (extremes[0] != -extremes[1]).tolist(), strict=True):
            if differs:
                raise ValueError(
                    f"forward: {name} differ between the processes of the group, expected the same "
                    "(give all the same prompts, and generate a seed)"
                )


def _digest(values: Tensor) -> Tensor:
    """Returns a hash of integers of any shape. The products may wrap around."""
    flat = values.flatten()
    weights = torch.arange(1, flat.numel() + 1, device=flat.device) * 0x9E3779B97F4A7C1 + 1
    return (flat + 1).mul(weights).sum() >> 2


def resolve_device_map(network: nn.Module, device_map: str | Mapping[str, Any], layer_class: str) -> dict[str, Any]:
    """Returns the devices of modules by name. The library accelerate chooses them if `device_map` is a strategy.

    Args:
        network: The network on the meta device.
        device_map: A strategy ("auto", "balanced", "balanced_low_0" or "sequential"), or the devices by module name.
        layer_class: The class name of the modules that must not be split.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: The strategy is unknown, or weights would lie on the disk.
    """
    accelerate = _accelerate()
    if isinstance(device_map, str):
        strategies = ("auto", "balanced", "balanced_low_0", "sequential")
        if device_map not in strategies:
            raise ValueError(f"load_model: device_map is {device_map!r}, expected one of {list(strategies)} or a dict")
        keep = [layer_class]
        memory = None
        if device_map != "sequential":
            memory = accelerate.utils.get_balanced_memory(
                network, no_split_module_classes=keep, low_zero=device_map == "balanced_low_0"
            )
        devices = dict(accelerate.infer_auto_device_map(network, max_memory=memory, no_split_module_classes=keep))
    else:
        devices = dict(device_map)
    if "disk" in devices.values():
        raise ValueError("load_model: device_map puts weights on the disk, expected devices that hold the whole model")
    return devices


def place(network: nn.Module, devices: Mapping[str, Any]) -> None:
    """Allocates the memory of every module on its device, without initialising it.

    Raises:
        ValueError: A module has no device.
    """
    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            holders = [key for key in devices if key == "" or name == key or name.startswith(f"{key}.")]
            if not holders:
                raise ValueError(
                    f"load_model: device_map has no device for {name}, expected one of {list(_UNITS)} or of layers.N"
                )
            module.to_empty(device=devices[max(holders, key=len)])


def dispatch(network: nn.Module, devices: Mapping[str, Any]) -> None:
    """Adds hooks that move activations to the device of each layer."""
    _accelerate().dispatch_model(network, device_map=dict(devices), force_hooks=True)


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise ImportError(
            "load_model: device_map needs accelerate, expected it to be installed: pip install accelerate"
        ) from error
    return accelerate
