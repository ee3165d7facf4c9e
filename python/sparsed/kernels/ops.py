"""Model operations beside attention: linear layers, norms, rotary embedding, gates, and the choice of tokens.

M rows (tokens), N outputs, K inputs, D head_dim, V vocabulary. Arrays are float32 or ml_dtypes.bfloat16 with a
contiguous last axis; rows may lie apart, as in a slice of columns. All arithmetic is float32, except in linear layers
with int8 weights. A row's result has the same bits whatever the other rows and the number of threads are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..checks import Checker, dtype_name
from . import _core
from ._core import PackedWeight

__all__ = [
    "ConfidenceKind",
    "PackedWeight",
    "linear",
    "linears",
    "pack_weight",
    "pack_weights",
    "quantize_rows",
    "require_memory",
    "rms_norm",
    "rotary_",
    "silu_gate_",
    "token_confidence",
]

Array = NDArray[Any]
ConfidenceKind = Literal["probability", "margin", "entropy"]


def pack_weight(
    weight: Array,
    bias: Array | None = None,
    *,
    dtype: DTypeLike | None = None,
    scales: NDArray[np.float32] | None = None,
) -> PackedWeight:
    """A copy of `weight` in the order that the kernels read.

    Args:
        weight: (N, K) float32, float16 or bfloat16; may be a read-only memory map. Or int8, every value from -128 to
            127, with `scales`: the weight is scales[:, None] * weight, and is kept as it is.
        bias: (N,) float32, float16 or bfloat16, kept in float32.
        dtype: what to keep, float32, bfloat16 or int8 (`quantize_rows` has the rule); None: bfloat16 and int8 stay, the
            others become float32.
        scales: (N,) float32, 0 or above, of an int8 weight.

    Raises:
        ValueError: a wrong shape, a last axis that is not contiguous, an unknown dtype, more than 131072 inputs or a
            value that is not finite for int8, an int8 weight without scales or another one with scales.
        TypeError: not an array, or an array of another dtype.
        MemoryError: the packed weight does not fit.
    """
    return _core.pack_weight(weight, bias, dtype_name(dtype), scales)


def pack_weights(
    weights: Sequence[Array],
    biases: Sequence[Array | None] | None = None,
    *,
    dtype: DTypeLike | None = None,
    scales: Sequence[NDArray[np.float32] | None] | None = None,
) -> PackedWeight:
    """`pack_weight` of the rows of all `weights`, one after the other, without joining them first.

    Args:
        weights: each (N_i, K); as for `pack_weight`.
        biases: one for each weight, (N_i,) or None, which stands for zeros beside others.
        dtype: what to keep, float32, bfloat16 or int8; None: bfloat16 or int8 where all weights have it, else float32.
        scales: one for each weight, (N_i,) float32 of an int8 weight and None of others.

    Raises:
        ValueError: no weights, or what `pack_weight` names.
        TypeError, MemoryError: as `pack_weight`.
    """
    return _core.pack_weights(weights, biases, dtype_name(dtype), scales)


def quantize_rows(weight: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The integers and scales that packing keeps of `weight` as int8, one scale for each row.

    A row's scale is its largest magnitude divided by 127, or 2^-126 where that is more (a row of zeros has it). An
    integer is the value divided by the scale, rounded half to even, so from -127 to 127. Both divisions are float32's.

    Args:
        weight: (N, K) float32, float16 or bfloat16; may be a read-only memory map.

    Returns:
        The integers (N, K) and the scales (N,).

    Raises:
        ValueError: a wrong shape, a last axis that is not contiguous, a value that is not finite.
        TypeError: not an array, or an array of another dtype.
        MemoryError: the integers do not fit.
    """
    return _core.quantize_rows(weight)


def linear(x: Array, w: PackedWeight, *, residual: Array | None = None, out_dtype: DTypeLike | None = None) -> Array:
    """x W^T + bias + residual, summed in float32 and rounded once.

    With an int8 weight each row of x becomes int8 too, by the rule of `quantize_rows`. The sum of products is an exact
    integer, times x's scale times the weight's, so that every instruction set gives the same bits. A row of x with a
    value that is not finite gives NaN.

    Args:
        x: (M, K).
        w: (N, K) packed, with or without a bias.
        residual: (M, N), float32 or bfloat16.
        out_dtype: of the result, float32 or bfloat16; None: x's.

    Returns:
        (M, N).

    Raises:
        ValueError: a wrong shape, an unknown dtype.
        TypeError: a wrong type or dtype.
        MemoryError: the result does not fit.
    """
    return _core.linear(x, w, residual, dtype_name(out_dtype))


def linears(x: Array, ws: Sequence[PackedWeight], *, out_dtype: DTypeLike | None = None) -> list[Array]:
    """`linear` of one x with several weights, which gives the same bits and lays x out for the kernels only once.

    Args:
        x: (M, K).
        ws: each (N_i, K) packed, with or without a bias, all of one dtype.
        out_dtype: of the results, float32 or bfloat16; None: x's.

    Returns:
        For each weight (M, N_i).

    Raises:
        ValueError: no weights, or what `linear` names.
        TypeError, MemoryError: as `linear`; weights of different dtypes.
    """
    return _core.linears(x, ws, dtype_name(out_dtype))


def rms_norm(x: Array, weight: NDArray[np.float32], eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight for each row.

    Args:
        x: (M, N).
        weight: (N,) float32.
        eps: 0 or above.

    Returns:
        (M, N) in x's dtype.

    Raises:
        ValueError: a wrong shape, eps negative or not finite.
        TypeError: a wrong type or dtype.
    """
    return _core.rms_norm(x, weight, eps)


def rotary_(x: Array, head_dim: int, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None:
    """Rotates the heads of each row in place: pairs (j, j + D/2) by the row's angle j.

    Args:
        x: (M, heads * D), writable.
        head_dim: D, even.
        cos: (M, D/2) float32, cosines of the angles.
        sin: (M, D/2) float32.

    Raises:
        ValueError: a wrong shape, x read-only.
        TypeError: a wrong type or dtype.

    Source: half rotation, as apply_rotary_pos_emb in modeling_llada.py and modeling_dream.py.
    """
    _core.rotary_(x, head_dim, cos, sin)


def silu_gate_(gate: Array, up: Array) -> None:
    """gate = silu(gate) * up in place, silu(x) = x / (1 + exp(-x)).

    Args:
        gate: (M, N), writable.
        up: (M, N) in gate's dtype.

    Raises:
        ValueError: a wrong shape, gate read-only, up in gate's memory.
        TypeError: a wrong type or dtype.
    """
    _core.silu_gate_(gate, up)


def token_confidence(
    logits: NDArray[np.float32], kind: ConfidenceKind
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The most probable token of each row and how sure the row is of it.

    Args:
        logits: (M, V) float32. NaN counts as -inf.
        kind: "probability": the token's softmax probability; "margin": the difference of the two largest
            probabilities; "entropy": sum p log(p + 1e-10), the negative entropy.

    Returns:
        Token ids (M,), the lowest one where several are largest, and confidences (M,). A row without a logit above
        -inf gives id 0 and NaN.

    Raises:
        ValueError: a wrong shape, an unknown kind.
        TypeError: a wrong type or dtype.

    Source: sample_tokens in Dream's generation_utils.py, which has the 1e-10; LLaDA's low_confidence remasking.
    """
    return _core.token_confidence(logits, kind)


def require_memory(num_bytes: int, what: str) -> None:
    """Refuses early what cannot fit.

    Args:
        num_bytes: what is going to be allocated.
        what: opens the message.

    Raises:
        MemoryError: more than the memory that is available, or than the control group's limit.
        ValueError: num_bytes below 0.
        TypeError: num_bytes is no integer.
    """
    Checker("require_memory").integer("num_bytes", num_bytes, low=0)
    _core.require_memory(min(int(num_bytes), 2**64 - 1), what)
