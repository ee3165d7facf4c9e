"""The torch operators ``sparsed::attention``, ``sparsed::attention_and_select`` and ``sparsed::attend``.

``torch.compile`` includes them in its graph without a break. The arguments of an operator are tensors and numbers, so a
pattern is passed as a bool tensor and a ``PatternCache`` as a number.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, Protocol, cast
from weakref import WeakValueDictionary

import torch

import sparsed

from .masks import key_mask as to_key_mask

__all__ = ["attend", "attention", "attention_and_select", "cache_handle"]

_QKV = "Tensor q, Tensor k, Tensor v"
# A CUDA graph would replay the patterns of the call that it captured. Older releases of torch do not have this tag.
_TAGS: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_mask: torch.Tensor | None = None,
    *,
    block_size: int = 128,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes dense or block-sparse attention, as ``sparsed.attention`` does.

    B batch, H query heads, H_kv key/value heads, L queries, S keys, D head_dim, b block size.

    Args:
        q: Queries (B, H, L, D).
        k: Keys (B, H_kv, S, D).
        v: Values (B, H_kv, S, D).
        block_mask: (B, H, ceil(L / b), ceil(S / b)) bool, the key blocks of each query block. None is dense.
        block_size: The block size b of ``block_mask``.
        scale: The factor of the scores, finite and above 0. None is 1 / sqrt(D).
        key_mask: (B, S) bool, True for real keys; or a mask with 4 axes, as ``scaled_dot_product_attention`` takes it,
            that hides the same keys from every query.

    Returns:
        The output (B, H, L, D) in q's dtype and memory order.

    Raises:
        TypeError, ValueError: For the same reasons as in ``sparsed.attention``.
    """
    _refuse_gradients("attention", q, k, v)
    return cast(torch.Tensor, torch.ops.sparsed.attention(q, k, v, block_mask, block_size, scale, key_mask))


def attention_and_select(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    prompt_length: int,
    block_size: int = 128,
    rho: float = 0.3,
    selection: Literal["paper", "reference"] = "paper",
    scale: float | None = None,
    selection_scale: float | None = None,
    generation: Literal["dense", "sparse"] | None = None,
    key_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes dense attention and selects the blocks to keep, as ``sparsed.attention_and_select`` does.

    The arguments are described there, except that ``key_mask`` is that of ``attention``.

    Returns:
        The output and the block mask for ``attention``. On a CUDA device this call waits until the mask is there; a
        ``PatternCache`` does not need to wait.
    """
    _refuse_gradients("attention_and_select", q, k, v)
    return cast(
        "tuple[torch.Tensor, torch.Tensor]",
        torch.ops.sparsed.attention_and_select(
            q, k, v, prompt_length, block_size, rho, selection, scale, selection_scale, generation, key_mask
        ),
    )


def attend(
    handle: int,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Computes one layer's attention in the current step of a cache, as ``PatternCache.attend`` does.

    Args:
        handle: The number that ``cache_handle`` returned. Compiled code works for all steps and generations of that
            cache.
        layer: The number of the layer, from 0.
        q: Queries (B, H, L, D).
        k: Keys (B, H_kv, L, D).
        v: Values (B, H_kv, L, D).
        key_mask: The mask of real keys, see ``attention``.
        scale: The factor of the scores, finite and above 0. None is 1 / sqrt(D).

    Returns:
        The output (B, H, L, D) in q's dtype and memory order.

    Raises:
        TypeError, ValueError: For the same reasons as in ``PatternCache.attend``, or because the cache of the handle no
            longer exists.
    """
    _refuse_gradients("attend", q, k, v)
    return cast(torch.Tensor, torch.ops.sparsed.attend(q, k, v, key_mask, scale, handle, layer))


class Attends(Protocol):
    """A ``PatternCache``, or another object with its ``attend``."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_mask: torch.Tensor | None,
        *,
        scale: float | None,
    ) -> torch.Tensor:
        """Computes one layer's attention."""


_caches: WeakValueDictionary[int, Attends] = WeakValueDictionary()
_numbers = itertools.count()


def cache_handle(cache: Attends) -> int:
    """Returns the number by which ``attend`` finds a cache. It stays the same and does not keep the cache alive."""
    for number, known in _caches.items():
        if known is cache:
            return number
    number = next(_numbers)
    _caches[number] = cache
    return number


def _pattern(mask: torch.Tensor, block_size: int, q_len: int, kv_len: int) -> sparsed.BlockPattern:
    """Makes a pattern from a block mask. Every call does so again, because nothing shows whether the mask changed."""
    return sparsed.BlockPattern.from_mask(mask.cpu(), block_size=block_size, q_len=q_len, kv_len=kv_len)


def _refuse_gradients(function: str, *tensors: torch.Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{function}: an input requires grad, expected none that does (inference only: use torch.no_grad())"
        )


@torch.library.custom_op(
    "sparsed::attention",
    mutates_args=(),
    **_TAGS,
    schema=f"({_QKV}, Tensor? block_mask, int block_size, float? scale, Tensor? key_mask) -> Tensor",
)
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_mask: torch.Tensor | None,
    block_size: int,
    scale: float | None,
    key_mask: torch.Tensor | None,
) -> torch.Tensor:
    pattern = None if block_mask is None else _pattern(block_mask, block_size, q.shape[2], k.shape[2])
    keys = to_key_mask("attention", key_mask, q.shape[0])
    return sparsed.attention(q, k, v, pattern, scale=scale, key_mask=keys)


@torch.library.custom_op(
    "sparsed::attention_and_select",
    mutates_args=(),
    **_TAGS,
    schema=f"({_QKV}, int prompt_length, int block_size, float rho, str selection, float? scale, "
    "float? selection_scale, str? generation, Tensor? key_mask) -> (Tensor, Tensor)",
)
def _attention_and_select(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prompt_length: int,
    block_size: int,
    rho: float,
    selection: Literal["paper", "reference"],
    scale: float | None,
    selection_scale: float | None,
    generation: Literal["dense", "sparse"] | None,
    key_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, pattern = sparsed.attention_and_select(
        q,
        k,
        v,
        prompt_length=prompt_length,
        block_size=block_size,
        rho=rho,
        selection=selection,
        scale=scale,
        selection_scale=selection_scale,
        generation=generation,
        key_mask=to_key_mask("attention_and_select", key_mask, q.shape[0]),
    )
    return out, torch.from_numpy(pattern.to_mask()).to(q.device)


@torch.library.custom_op(
    "sparsed::attend",
    mutates_args=(),
    **_TAGS,
    schema=f"({_QKV}, Tensor? key_mask, float? scale, int handle, int layer) -> Tensor",
)
def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    scale: float | None,
    handle: int,
    layer: int,
) -> torch.Tensor:
    cache = _caches.get(handle)
    if cache is None:
        raise ValueError(f"attend: handle {handle} belongs to no cache (any more)")
    return cache.attend(layer, q, k, v, to_key_mask("attend", key_mask, q.shape[0]), scale=scale)


def _new_output(q: torch.Tensor) -> torch.Tensor:
    """Returns an empty output in q's memory order, as the kernels allocate it."""
    batch, heads, length, head_dim = q.shape
    head_stride = q.stride(1) if heads != 1 else length * head_dim
    token_stride = q.stride(2) if length != 1 else head_dim
    if head_stride < token_stride:
        return q.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    return q.new_empty(q.shape)


@_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_mask: torch.Tensor | None,
    block_size: int,
    scale: float | None,
    key_mask: torch.Tensor | None,
) -> torch.Tensor:
    return _new_output(q)


@_attention_and_select.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prompt_length: int,
    block_size: int,
    rho: float,
    selection: str,
    scale: float | None,
    selection_scale: float | None,
    generation: str | None,
    key_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = (q.shape[2] + block_size - 1) // block_size
    return _new_output(q), q.new_empty(q.shape[0], q.shape[1], blocks, blocks, dtype=torch.bool)


@_attend.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    scale: float | None,
    handle: int,
    layer: int,
) -> torch.Tensor:
    return _new_output(q)
