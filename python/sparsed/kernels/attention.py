"""Dense and block-sparse attention, and the backends and threads that compute it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar, overload

from . import _core
from .arrays import Call
from .pattern import BlockPattern, compiled

__all__ = [
    "Backend",
    "active_backend",
    "attention",
    "backends",
    "get_num_threads",
    "set_num_threads",
]

Array = TypeVar("Array")  # numpy, torch, jax, cupy ...: what goes in is what comes out


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
    key_mask: Any = ...,
    return_lse: Literal[False] = ...,
    out: Array | None = ...,
) -> Array: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = ...,
    *,
    scale: float | None = ...,
    key_mask: Any = ...,
    return_lse: Literal[True],
    out: Array | None = ...,
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = ...,
    *,
    scale: float | None = ...,
    key_mask: Any = ...,
    return_lse: bool,
    out: Array | None = ...,
) -> Array | tuple[Array, Array]: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    pattern: BlockPattern | None = None,
    *,
    scale: float | None = None,
    key_mask: Any = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Computes softmax(scale * q k^T) v over all keys or over the blocks of a pattern.

    B batch, H query heads, H_kv key/value heads (H a multiple of it), L queries, S keys, D head_dim (a multiple of 8
    from 16 to 256). Arrays are float32, float16 or bfloat16 (``ml_dtypes`` in numpy), all three alike, and may be
    strided views: nothing is copied as long as the last axis is contiguous. Accumulation is in float32.

    Arrays are numpy's or of any library that has ``__dlpack__`` (torch, JAX, CuPy ...), all three of one; the results
    are arrays of that library. Arrays of torch and CuPy may lie on a CUDA device, all on one, ``key_mask`` too: the
    backend ``cuda`` then computes there, on the library's current stream, and nothing waits for it; a pattern is moved
    there once. Inference only: no gradient is computed.

    Args:
        q: Queries (B, H, L, D).
        k: Keys (B, H_kv, S, D).
        v: Values (B, H_kv, S, D).
        pattern: The key blocks that each query block attends to; None: dense.
        scale: Finite and above 0; None: 1 / sqrt(D).
        key_mask: (B, S) bool of any library, True for a real key; None: all are.
        return_lse: Also return the log-sum-exp of each row.
        out: An array to write the result into, of q's library, device, shape and dtype, with a contiguous last axis.
            It may not lie in the memory of q, k or v. Libraries whose arrays cannot change (JAX) have none.

    Returns:
        out (B, H, L, D), or (out, lse) with lse (B, H, L) float32. Without the argument ``out`` it is a new array in
        q's dtype, heads or tokens outermost in memory as in q. A row without a key to attend to has out 0 and lse -inf.

    Raises:
        TypeError: An argument of another type, dtype or library.
        ValueError: Shapes, devices or values that do not fit, a tensor that requires grad; the message names them.
        MemoryError: The outputs or the workspace cannot fit into memory.

    Example:
        >>> q = k = v = np.ones((1, 4, 1000, 64), np.float32)
        >>> attention(q, k, v).shape
        (1, 4, 1000, 64)
    """
    call = Call("attention", key_mask, q=q, k=k, v=v, out=out)
    with call.current():
        result = call.output()
        lse = call.lse(return_lse)
        target = None if lse is None else lse.target
        _core.attention(
            call["q"],
            call["k"],
            call["v"],
            result.target,
            target,
            compiled(pattern),
            scale,
            call.key_mask,
            call.stream(),
        )
    array: Array = call.finish(result)
    return array if lse is None else (array, lse.array())


def backends() -> list[Backend]:
    """Returns every backend of this build, best first; the first available one is used unless SPARSED_ISA names one.

    `cuda` stands last: it serves arrays on a GPU, and only those.
    """
    return [Backend(*row) for row in _core.backends()]


def active_backend() -> str:
    """Returns the name of the backend that the next call uses for arrays in host memory.

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
