"""A block-sparse peer: torch's compiled flex_attention."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from ..arrays import Array, Blocks
from ..harness import Contender
from .base import SkipError
from .torch_common import TorchPeer, load_torch, to_numpy, to_torch


class TorchFlex(TorchPeer):
    """Treats every selected block as full, so that no mask function runs. Building the mask is not timed."""

    name = "torch flex"

    def why_not(self) -> str | None:
        if shutil.which("g++") is None and shutil.which("c++") is None:
            return "torch.compile needs a C++ compiler"
        return super().why_not()

    def sparse(self, q: Array, k: Array, v: Array, blocks: Blocks) -> Contender:
        if blocks.length % blocks.block_size:
            raise SkipError(f"{blocks.length} tokens are not a multiple of its blocks of {blocks.block_size}")
        torch = load_torch()
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            return self._compiled(torch, q, k, v, blocks)
        except (TorchDynamoException, InductorError, RuntimeError, NotImplementedError) as error:
            raise SkipError(f"does not compile: {str(error).strip().splitlines()[0]}") from error

    def _compiled(self, torch: Any, q: Array, k: Array, v: Array, blocks: Blocks) -> Contender:
        from torch.nn.attention.flex_attention import flex_attention

        tensors = [to_torch(array) for array in (q, k, v)]
        mask = block_mask(blocks)
        grouped = q.shape[1] != k.shape[1]
        # After too many shapes, dynamo would silently run flex_attention uncompiled.
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

        def run() -> Any:
            with torch.inference_mode():
                return compiled(*tensors, block_mask=mask, enable_gqa=grouped)

        run()
        return Contender(self.name, run, to_numpy)


def block_mask(blocks: Blocks) -> Any:
    """Returns a BlockMask with the same blocks, all of them full."""
    from torch.nn.attention.flex_attention import BlockMask

    counts = blocks.mask.sum(axis=3).astype(np.int32)
    indices = np.argsort(~blocks.mask, axis=3, kind="stable").astype(np.int32)  # the selected ones first, ascending
    nothing = np.zeros_like(counts), np.zeros_like(indices)
    partial_counts, partial_indices, full_counts, full_indices = map(to_torch, (*nothing, counts, indices))
    return BlockMask.from_kv_blocks(
        partial_counts,
        partial_indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=blocks.block_size,
        seq_lengths=(blocks.length, blocks.length),
        compute_q_blocks=False,
    )
