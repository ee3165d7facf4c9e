"""The kinds of attention in training: dense, with SparseD's patterns, and a cheap substitute for dense in long texts.

B batch, H heads, L tokens, D head_dim; q, k, v (B, H, L, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# A function of q, k and v that returns (B, H, L, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes attention of every query to every key."""
    return functional.scaled_dot_product_attention(q, k, v)


def masked(mask: Tensor) -> Attend:
    """Returns attention with a mask (B, H, L, L) bool that is True where a query sees a key."""
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def mostly_local(essential: Tensor, chunk: int = 256, overlap: int = 32) -> Attend:
    """Returns attention in which most tokens see only their neighbourhood.

    The essential tokens (B, L) bool see everything. The others see their chunk and `overlap` tokens on each side of it.
    L must be a multiple of `chunk`. Only question, answer and evidence look things up, so the view of the other tokens
    of a long text hardly matters. The cost grows with L instead of L^2, so texts of 8192 tokens train as fast per token
    as short ones.
    """
    length = essential.shape[1]
    index = essential.float().topk(int(essential.sum(1).max()), dim=1).indices  # (B, R); some may not be essential
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
    """Returns attention with SparseD's patterns, per layer. A dense pass over an earlier, noisier state selects them.

    Args:
        heads_of: A function that runs the model on that state with the given attention in every layer.
        answers: (B,), the positions at which the generations begin.
        layers: The number of layers.
        block: The number of tokens per block, which divides L.
        rho: The fraction of the blocks that is kept, separately for prompt and generation.
    """
    masks: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        mass = weights.unflatten(2, (-1, block)).mean(3).unflatten(3, (-1, block)).mean(4)  # (B, H, blocks, blocks)
        blocks = mass.shape[-1]
        keep = torch.zeros_like(mass, dtype=torch.bool)
        for index, begin in enumerate(answers.tolist()):
            first = min(-(-begin // block), blocks - 1)
            for part in (slice(0, first), slice(first, blocks)):
                candidates = mass[index, :, :, part]
                if candidates.shape[-1]:
                    count = min(candidates.shape[-1], int(candidates.shape[-1] * rho) + 1)
                    keep[index, :, :, part] = torch.zeros_like(candidates, dtype=torch.bool).scatter(
                        -1, candidates.topk(count, dim=-1).indices, True
                    )
        masks.append(keep.repeat_interleave(block, 2).repeat_interleave(block, 3))
        return (weights @ v.float()).to(v.dtype)

    with torch.no_grad():
        heads_of(attend)
    return [masked(mask) for mask in masks[:layers]]
