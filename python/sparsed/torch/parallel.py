"""A model in parts: its layers over several devices of one process, or its heads over the processes of a group.

Patterns belong to heads, so processes that share the heads select and reuse each their own; nothing is exchanged but
the sums behind the two row-split projections of each layer.
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
    """What one process of a group computes of each layer; without a group, everything.

    Attributes:
        heads, kv_heads: indices of the query heads and of the key/value heads that they use.
        mlp_columns: indices of the MLP's inner columns.

    Args:
        config: of the whole model.
        group: a torch.distributed process group, the same in all its processes.

    Raises:
        ValueError: heads or columns that cannot be split evenly; this process is not in the group.
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
        else:  # several processes use the same key/value head
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
        """The sum of all processes' tensors, in place."""
        if self._size > 1:
            dist.all_reduce(partial, group=self._group)
        return partial

    def check_same(self, tokens: Tensor) -> None:
        """Raises ValueError in all processes unless they hold the same tokens (B, l)."""
        if self._size == 1:
            return
        # A polynomial hash that wraps around; the largest of h and of -h tell whether all are equal.
        flat = tokens.flatten()
        weights = torch.arange(1, flat.numel() + 1, device=flat.device) * 0x9E3779B97F4A7C1 + 1
        digest = (flat + 1).mul(weights).sum() >> 2
        extremes = torch.stack([digest, -digest])
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        if extremes[0] != -extremes[1]:
            raise ValueError(
                "forward: ids differ between the processes of the group, expected the same "
                "(give all the same prompts, and generate a seed)"
            )


def resolve_device_map(network: nn.Module, device_map: str | Mapping[str, Any], layer_class: str) -> dict[str, Any]:
    """Module names and their devices, by accelerate where `device_map` is one of its strategies.

    Args:
        network: on the meta device.
        device_map: "auto", "balanced", "balanced_low_0", "sequential", or names and devices.
        layer_class: name of the modules that stay on one device.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: an unknown strategy, a module without a device, weights on the disk.
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
    """Gives every module (uninitialised) memory on its device."""
    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            holders = [key for key in devices if key == "" or name == key or name.startswith(f"{key}.")]
            if not holders:
                raise ValueError(
                    f"load_model: device_map has no device for {name}, expected one of {list(_UNITS)} or of layers.N"
                )
            module.to_empty(device=devices[max(holders, key=len)])


def dispatch(network: nn.Module, devices: Mapping[str, Any]) -> None:
    """Makes activations follow the layers from device to device."""
    _accelerate().dispatch_model(network, device_map=dict(devices), force_hooks=True)


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise ImportError(
            "load_model: device_map needs accelerate, expected it to be installed: pip install accelerate"
        ) from error
    return accelerate
