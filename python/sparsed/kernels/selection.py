"""The selection of block patterns, alone or fused into the dense pass, and what a pattern holds of the attention."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..checks import Checker
from . import _core
from .arrays import Call, to_host
from .attention import attention
from .config import default_generation
from .own_selection import BlockGeometry, OwnSelection, chosen_pattern
from .pattern import BlockPattern

__all__ = ["attention_and_select", "recall", "select"]

Array = TypeVar("Array")  # numpy, torch, jax, cupy ...: what goes in is what comes out


@overload
def attention_and_select(
    q: Array,
    k: Array,
    v: Array,
    *,
    prompt_length: int,
    block_size: int = ...,
    rho: float = ...,
    selection: Literal["paper", "reference"] | OwnSelection = ...,
    scale: float | None = ...,
    selection_scale: float | None = ...,
    isolate: bool = ...,
    generation: Literal["dense", "sparse"] | None = ...,
    key_mask: Any = ...,
    out: Array | None = ...,
    return_scores: Literal[False] = ...,
) -> tuple[Array, BlockPattern]: ...
@overload
def attention_and_select(
    q: Array,
    k: Array,
    v: Array,
    *,
    prompt_length: int,
    block_size: int = ...,
    rho: float = ...,
    selection: Literal["paper", "reference"] | OwnSelection = ...,
    scale: float | None = ...,
    selection_scale: float | None = ...,
    isolate: bool = ...,
    generation: Literal["dense", "sparse"] | None = ...,
    key_mask: Any = ...,
    out: Array | None = ...,
    return_scores: Literal[True],
) -> tuple[Array, BlockPattern, Array]: ...
def attention_and_select(
    q: Array,
    k: Array,
    v: Array,
    *,
    prompt_length: int,
    block_size: int = 128,
    rho: float = 0.3,
    selection: Literal["paper", "reference"] | OwnSelection = "paper",
    scale: float | None = None,
    selection_scale: float | None = None,
    isolate: bool = True,
    generation: Literal["dense", "sparse"] | None = None,
    key_mask: Any = None,
    out: Array | None = None,
    return_scores: bool = False,
) -> tuple[Array, BlockPattern] | tuple[Array, BlockPattern, Array]:
    """Computes dense attention and, in the same pass, the blocks to keep for later steps.

    Dimensions and dtypes as in ``attention``, with L == S.

    Args:
        q: Queries (B, H, L, D).
        k: Keys (B, H_kv, L, D).
        v: Values (B, H_kv, L, D).
        prompt_length: Tokens before the generation, 0 ... L.
        block_size: 16, 32, 64, 128 or 256.
        rho: Share of the candidate blocks, 0 ... 1, that each row keeps. Own rules do not see it.
        selection: ``"paper"``: one softmax over all keys, the top-k of prompt and generation blocks apart;
            ``"reference"``: what the authors' code does. A function: an own rule, as in ``SparseConfig``, which is
            called once for each row of the batch.
        scale: Of the attention; None: 1 / sqrt(D).
        selection_scale: Of the scores in the selection; None: ``scale``.
        isolate: Select among prompt and generation blocks apart; False: one top-k over all blocks. Own rules do not
            see it.
        generation: ``"dense"``: the query blocks with generation tokens keep every key block, masked ones too;
            ``"sparse"``: they keep what the rule selects, as published. None: ``"dense"`` with ``selection="paper"``
            and own rules, ``"sparse"`` with ``"reference"``. ``SparseConfig`` says why.
        key_mask: (B, L), True for a real key. Masked keys carry no mass.
        out: An array to write the output into, as in ``attention``.
        return_scores: Also return the block scores of the pass.

    Returns:
        (out, pattern), or (out, pattern, scores). out (B, H, L, D) in q's dtype. scores: float32 (B, H, query blocks,
        key blocks), of q's library and where q lies: the probability mass of each key block under the softmax over all
        keys, summed over the queries of the block, so that a row's sum is its number of queries.

    Raises:
        TypeError: An argument of another type or dtype.
        ValueError: Shapes or values that do not fit; the message names them.
        MemoryError: The outputs or the workspace cannot fit into memory.

    Example:
        >>> q = k = v = np.ones((1, 4, 1000, 64), np.float32)
        >>> out, pattern = attention_and_select(q, k, v, prompt_length=900, block_size=64)
        >>> attention(q, k, v, pattern).shape, pattern.density
        ((1, 4, 1000, 64), 0.453125)

    Source: arXiv 2509.24014, section 4, which is ``generation="sparse"``.
    """
    function = "attention_and_select"
    Checker(function).flag("return_scores", return_scores)
    rows = default_generation(selection) if generation is None else generation
    call = Call(function, key_mask, q=q, k=k, v=v, out=out)
    with call.current():
        result = call.output()
        scores = call.scores(block_size) if return_scores or callable(selection) else None
        compiled = _core.attention_and_select(
            call["q"],
            call["k"],
            call["v"],
            result.target,
            prompt_length,
            block_size,
            rho,
            selection,
            scale,
            selection_scale,
            isolate,
            rows,
            call.key_mask,
            None if scores is None else scores.target,
            call.stream(),
        )
        pattern = _pattern(function, compiled, selection, scores, rows)
    array: Array = call.finish(result)
    return (array, pattern, scores.array()) if return_scores and scores is not None else (array, pattern)


def select(
    q: Array,
    k: Array,
    *,
    prompt_length: int,
    block_size: int = 128,
    rho: float = 0.3,
    selection: Literal["paper", "reference"] | OwnSelection = "paper",
    scale: float | None = None,
    selection_scale: float | None = None,
    isolate: bool = True,
    generation: Literal["dense", "sparse"] | None = None,
    key_mask: Any = None,
) -> BlockPattern:
    """Selects the blocks to keep, without the attention output: the pattern of ``attention_and_select``.

    Arguments and errors as there.
    """
    rows = default_generation(selection) if generation is None else generation
    call = Call("select", key_mask, q=q, k=k)
    with call.current():
        scores = call.scores(block_size) if callable(selection) else None
        compiled = _core.select(
            call["q"],
            call["k"],
            prompt_length,
            block_size,
            rho,
            selection,
            scale,
            selection_scale,
            isolate,
            rows,
            call.key_mask,
            None if scores is None else scores.target,
            call.stream(),
        )
        return _pattern("select", compiled, selection, scores, rows)


def _pattern(function: str, compiled: _core.BlockPattern, selection: Any, scores: Any, rows: Any) -> BlockPattern:
    """What the kernels have selected, or what an own rule makes of their scores."""
    pattern = BlockPattern._of(compiled)
    if not callable(selection):
        return pattern
    geometry = BlockGeometry(pattern.block_size, pattern.kv_len, pattern.prompt_length)
    # A copy, because the rule may write into it.
    return chosen_pattern(function, selection, to_host(scores.target).copy(), geometry, rows)


def recall(
    q: Array, k: Array, pattern: BlockPattern, *, scale: float | None = None, key_mask: Any = None
) -> NDArray[np.float64]:
    """Computes the share of each query's attention that a pattern holds.

    It is the sum of the probabilities, under the softmax over all keys, of the keys in the pattern's blocks. Two passes
    of ``attention`` give it (exp(lse of the pattern - lse of all keys)), so that no array of L x S exists, and its
    precision is that of the kernels: five digits with float32 and float16, two with bfloat16.

    Args:
        q: Queries (B, H, L, D), of any library and device, as in ``attention``.
        k: Keys (B, H_kv, S, D).
        pattern: The blocks that are kept.
        scale: Finite and above 0; None: 1 / sqrt(D).
        key_mask: (B, S), True for a real key. Masked keys have no probability.

    Returns:
        numpy float64 (B, H, L), each 0 ... 1. ``.mean(axis=-1)`` is the recall of each head. A query without a real key
        has nothing to lose: 1.

    Raises:
        TypeError, ValueError, MemoryError: As in ``attention``; also a pattern that is not a BlockPattern.

    Example:
        >>> q = k = np.ones((1, 2, 256, 16), np.float32)
        >>> window = BlockPattern.sliding_window(heads=2, window=1, block_size=64, q_len=256, kv_len=256)
        >>> recall(q, k, window).mean(axis=-1).round(3)
        array([[0.25, 0.25]])
    """
    if not isinstance(pattern, BlockPattern):
        raise TypeError(f"recall: pattern is a {type(pattern).__name__}, expected a BlockPattern")
    try:
        held, whole = (
            to_host(attention(q, k, k, blocks, scale=scale, key_mask=key_mask, return_lse=True)[1]).astype(np.float64)
            for blocks in (pattern, None)
        )
    except (TypeError, ValueError, MemoryError) as error:
        if not str(error).startswith("attention: "):
            raise
        raise type(error)(f"recall: {str(error).removeprefix('attention: ')}") from None
    empty = np.isneginf(whole)
    shares: NDArray[np.float64] = np.exp(held - np.where(empty, 0, whole))
    return np.where(empty, 1.0, np.minimum(shares, 1.0))
