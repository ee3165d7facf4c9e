"""Kinds of attention to train with: dense, SparseD's own patterns, and a cheap stand-in for dense in long rows.

B rows, H heads, L tokens, D head_dim; q, k, v (B, H, L, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# q, k, v -> (B, H, L, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Everything sees everything."""
    return functional.scaled_dot_product_attention(q, k, v)


def masked(mask: Tensor) -> Attend:
    """Mask (B, H, L, L) bool: True where a query sees a key."""
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def mostly_local(essential: Tensor, chunk: int = 256, overlap: int = 32) -> Attend:
    """The essential tokens (B, L) bool see everything, the others their chunk and `overlap` tokens around it.

    Question, answer and evidence look things up; what the other tokens of a long text look at hardly matters to them.
    The cost grows with L instead of L^2, so rows of 8192 tokens train as fast as short ones. L: a multiple of chunk.
    """
    length = essential.shape[1]
    index = essential.float().topk(int(essential.sum(1).max()), dim=1).indices  # (B, R); surplus ones are harmless
    places = torch.arange(length).view(-1, chunk)[:, :1] - overlap + torch.arange(chunk + 2 * overlap)  # (n, keys)
    inside = ((places >= 0) & (places < length))[None, :, None].expand(-1, -1, chunk, -1)  # (1, n, chunk, keys)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, _, head_dim = q.shape
        queries = q.view(batch * heads, -1, chunk, head_dim)
        keys, values = (
            functional.pad(x, (0, 0, overlap, overlap))
            .unfold(2, chunk + 2 * overlap, chunk)
            .transpose(-1, -2)
            .flatten(0, 1)
            for x in (k, v)
        )
        local = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=inside).view_as(q)
        where = index[:, None, :, None].expand(-1, heads, -1, head_dim)
        return local.scatter(2, where, dense(q.gather(2, where), k, v).to(local.dtype))

    return attend


def selected(
    heads_of: Callable[[Attend], object], answers: Tensor, *, layers: int, block: int, rho: float
) -> list[Attend]:
    """SparseD's patterns, one per layer, as a dense pass over a noisier state selects them.

    Args:
        heads_of: Runs the model on that state with the given attention in every layer.
        answers: (B,), where the generation begins.
        layers: How many there are.
        block: Tokens per block; L is a multiple of it.
        rho: Share of the blocks that is kept, of prompt and generation apart.
    """
    masks: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        mass = weights.unflatten(2, (-1, block)).mean(3).unflatten(3, (-1, block)).mean(4)  # (B, H, blocks, blocks)
        blocks = mass.shape[-1]
        keep = torch.zeros_like(mass, dtype=torch.bool)
        for row, begin in enumerate(answers.tolist()):
            first = min(-(-begin // block), blocks - 1)
            for part in (slice(0, first), slice(first, blocks)):
                candidates = mass[row, :, :, part]
                if candidates.shape[-1]:
                    count = min(candidates.shape[-1], int(candidates.shape[-1] * rho) + 1)
                    keep[row, :, :, part] = torch.zeros_like(candidates, dtype=torch.bool).scatter(
                        -1, candidates.topk(count, dim=-1).indices, True
                    )
        masks.append(keep.repeat_interleave(block, 2).repeat_interleave(block, 3))
        return (weights @ v.float()).to(v.dtype)

    with torch.no_grad():
        heads_of(attend)
    return [masked(mask) for mask in masks[:layers]]
