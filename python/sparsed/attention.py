"""Dense and block-sparse attention, and the selection that comes out of the dense pass."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from . import _core
from .pattern import BlockPattern

__all__ = [
    "Backend",
    "active_backend",
    "attention",
    "attention_and_select",
    "backends",
    "get_num_threads",
    "select",
    "set_num_threads",
]

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Backend(NamedTuple):
    """One set of kernels: its name, whether it can run here, and why not."""

    name: str
    available: bool
    reasons: list[str]


@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = ...,
    *,
    scale: float | None = ...,
    key_mask: Mask | None = ...,
    return_lse: Literal[False] = ...,
) -> Array: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = ...,
    *,
    scale: float | None = ...,
    key_mask: Mask | None = ...,
    return_lse: Literal[True],
) -> tuple[Array, NDArray[np.float32]]: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = ...,
    *,
    scale: float | None = ...,
    key_mask: Mask | None = ...,
    return_lse: bool,
) -> Array | tuple[Array, NDArray[np.float32]]: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = None,
    *,
    scale: float | None = None,
    key_mask: Mask | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, NDArray[np.float32]]:
    """Computes softmax(scale * q k^T) v over all keys or over the blocks of a pattern.

    B batch, H query heads, H_kv key/value heads (H a multiple of it), L queries, S keys, D head_dim (a multiple of 8
    from 16 to 256). Arrays are float32, float16 or bfloat16 (``ml_dtypes``), all three alike, and may be strided
    views: nothing is copied as long as the last axis is contiguous. Accumulation is in float32.

    Args:
        q: Queries (B, H, L, D).
        k: Keys (B, H_kv, S, D).
        v: Values (B, H_kv, S, D).
        pattern: The key blocks that each query block attends to; None: dense.
        scale: Finite and above 0; None: 1 / sqrt(D).
        key_mask: (B, S), True for a real key; None: all are.
        return_lse: Also return the log-sum-exp of each row.

    Returns:
        out (B, H, L, D) in q's dtype and memory order, or (out, lse) with lse (B, H, L) float32. A row without a key
        to attend to has out 0 and lse -inf.

    Raises:
        TypeError: An argument of another type or dtype.
        ValueError: Shapes or values that do not fit; the message names them.
        MemoryError: The outputs or the workspace cannot fit into memory.

    Example:
        >>> q = k = v = np.ones((1, 4, 1000, 64), np.float32)
        >>> attention(q, k, v).shape
        (1, 4, 1000, 64)
    """
    result: Array | tuple[Array, NDArray[np.float32]] = _core.attention(q, k, v, pattern, scale, key_mask, return_lse)
    return result


def attention_and_select(
    q: Array,
    k: Array,
    v: Array,
    *,
    prompt_length: int,
    block_size: int = 128,
    rho: float = 0.3,
    selection: Literal["paper", "reference"] = "paper",
    scale: float | None = None,
    selection_scale: float | None = None,
    key_mask: Mask | None = None,
) -> tuple[Array, BlockPattern]:
    """Computes dense attention and, in the same pass, the blocks to keep for later steps.

    Dimensions and dtypes as in ``attention``, with L == S.

    Args:
        q: Queries (B, H, L, D).
        k: Keys (B, H_kv, L, D).
        v: Values (B, H_kv, L, D).
        prompt_length: Tokens before the generation, 0 ... L.
        block_size: 16, 32, 64, 128 or 256.
        rho: Share of the candidate blocks, 0 ... 1, that each row keeps.
        selection: ``"paper"``: one softmax over all keys, the top-k of prompt and generation blocks apart;
            ``"reference"``: what the authors' code does.
        scale: Of the attention; None: 1 / sqrt(D).
        selection_scale: Of the scores in the selection; None: ``scale``.
        key_mask: (B, L), True for a real key. Masked keys carry no mass.

    Returns:
        (out, pattern): out (B, H, L, D) in q's dtype.

    Raises:
        TypeError: An argument of another type or dtype.
        ValueError: Shapes or values that do not fit; the message names them.
        MemoryError: The outputs or the workspace cannot fit into memory.

    Source: arXiv 2509.24014, section 4.
    """
    return _core.attention_and_select(
        q, k, v, prompt_length, block_size, rho, selection, scale, selection_scale, key_mask
    )


def select(
    q: Array,
    k: Array,
    *,
    prompt_length: int,
    block_size: int = 128,
    rho: float = 0.3,
    selection: Literal["paper", "reference"] = "paper",
    scale: float | None = None,
    selection_scale: float | None = None,
    key_mask: Mask | None = None,
) -> BlockPattern:
    """Selects the blocks to keep, without the attention output: the pattern of ``attention_and_select``.

    Arguments and errors as there.
    """
    return _core.select(q, k, prompt_length, block_size, rho, selection, scale, selection_scale, key_mask)


def backends() -> list[Backend]:
    """Returns every backend of this build, best first; the first available one is used unless SPARSED_ISA names one.

    `cuda` stands last: it computes on a GPU, to which numpy arrays go only by that name.
    """
    return [Backend(*row) for row in _core.backends()]


def active_backend() -> str:
    """Returns the name of the backend that the next call uses.

    Raises:
        ValueError: The environment variable SPARSED_ISA names a backend that is unknown or cannot run here.
    """
    return _core.active_backend()


def set_num_threads(n: int) -> None:
    """Sets the number of threads of all kernels, 1 or more. Results do not depend on it."""
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """Returns the number of threads of all kernels."""
    return _core.num_threads()
