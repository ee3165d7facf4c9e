"""The implementations that sparsed is compared with: torch's attention and linear layers, and numpy."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Peer, SkipError
from .numpy_plain import Numpy
from .torch_flex import TorchFlex
from .torch_int8 import TorchInt8
from .torch_linear import TorchLinear
from .torch_sdpa import TorchSdpa

__all__ = ["PEERS", "Peer", "SkipError", "available_peers"]

PEERS: dict[str, Peer] = {
    "sdpa": TorchSdpa(),
    "flex": TorchFlex(),
    "linear": TorchLinear(),
    "int8": TorchInt8(),
    "numpy": Numpy(),
}


def available_peers(names: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Returns those of `names` that can run here, and the reasons why the others cannot."""
    found: list[Peer] = []
    missing: dict[str, str] = {}
    for name in names:
        peer = PEERS[name]
        reason = peer.why_not()
        if reason is None:
            found.append(peer)
        else:
            missing[peer.name] = reason
    return found, missing
