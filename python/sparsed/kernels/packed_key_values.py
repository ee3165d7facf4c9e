"""Keys and values that stay packed from call to call, for decoding that computes some tokens and reuses the others."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..checks import dtype_name, id_array
from . import _core
from .arrays import Call

__all__ = ["PackedKeyValues"]

Array = TypeVar("Array")


class PackedKeyValues:
    """Keys and values in the order that the kernels read, which ``attention`` would put them into at each call.

    B batch, H query heads, H_kv key/value heads (H a multiple of it), L queries, S keys, R rows of an update,
    D head_dim.

    They lie in host memory and belong to the backend that was active when the object was made: its kernels serve all
    calls. Several threads may attend at once; none may attend while another one updates.

    Args:
        batch: B.
        kv_heads: H_kv.
        length: S.
        head_dim: D, a multiple of 8 from 16 to 256.
        dtype: float32, float16 or bfloat16.
        key_mask: (B, S) bool of any library, True for a real key; None: all are. It holds for all updates and calls.

    Raises:
        TypeError: An argument of another type.
        ValueError: A size or dtype that is not supported, a mask of another shape; the message names it.
        MemoryError: The keys and values do not fit into memory.

    Example:
        >>> q = k = v = np.ones((1, 4, 1000, 64), np.float32)
        >>> packed = PackedKeyValues(1, 4, 1000, 64, np.float32)
        >>> packed.update(None, k, v)
        >>> packed.update([3, 999], k[:, :, [3, 999]], v[:, :, [3, 999]])
        >>> packed.attention(q[:, :, [3, 999]]).shape
        (1, 4, 2, 64)
    """

    def __init__(
        self, batch: int, kv_heads: int, length: int, head_dim: int, dtype: DTypeLike, key_mask: Any = None
    ) -> None:
        self._packed = _core.packed_key_values(batch, kv_heads, length, head_dim, dtype_name(dtype), key_mask)

    def __repr__(self) -> str:
        return f"PackedKeyValues(shape={self.shape}, dtype={self.dtype}, nbytes={self.nbytes})"

    @staticmethod
    def required_nbytes(batch: int, kv_heads: int, length: int, head_dim: int, dtype: DTypeLike) -> int:
        """Returns the memory in bytes that an object of these sizes takes on the active backend."""
        return _core.packed_nbytes(batch, kv_heads, length, head_dim, dtype_name(dtype))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H_kv, S, D)."""
        return self._packed.shape

    @property
    def dtype(self) -> str:
        """The dtype of queries, keys, values and results, such as "bfloat16"."""
        return self._packed.dtype

    @property
    def nbytes(self) -> int:
        """The memory of keys and values in bytes, padding included."""
        return self._packed.nbytes

    def update(self, positions: ArrayLike | None, k: Any, v: Any) -> None:
        """Puts new keys and values at some positions; the other positions keep theirs.

        Args:
            positions: (R,) int, ascending, 0 ... S - 1; None: all positions, R = S.
            k: Keys (B, H_kv, R, D) as ``attention`` takes them: of any library, in host memory, strided or not.
            v: Values (B, H_kv, R, D).

        Raises:
            TypeError: An argument of another type or dtype.
            ValueError: Shapes or positions that do not fit; the message names them.
        """
        if positions is not None:
            positions = id_array("PackedKeyValues.update", "positions", positions).astype(np.int64)
        call = Call("PackedKeyValues.update", None, k=k, v=v)
        self._packed.update(positions, call["k"], call["v"])

    @overload
    def attention(
        self, q: Array, *, scale: float | None = ..., return_lse: Literal[False] = ..., out: Array | None = ...
    ) -> Array: ...
    @overload
    def attention(
        self, q: Array, *, scale: float | None = ..., return_lse: Literal[True], out: Array | None = ...
    ) -> tuple[Array, Array]: ...
    def attention(
        self, q: Array, *, scale: float | None = None, return_lse: bool = False, out: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """Computes softmax(scale * q k^T) v over all keys that are not masked.

        The result has the bits of ``sparsed.attention(q, k, v, key_mask=...)`` with all keys and values.

        Args:
            q: Queries (B, H, L, D) in the dtype of the keys, in host memory.
            scale: Finite and above 0; None: 1 / sqrt(D).
            return_lse: Also return the log-sum-exp of each row.
            out: An array to write the result into, as in ``attention``.

        Returns:
            out (B, H, L, D), or (out, lse) with lse (B, H, L) float32, as ``attention`` returns them.

        Raises:
            TypeError: An argument of another type or dtype.
            ValueError: Shapes that do not fit, or a position whose key and value were never put.
            MemoryError: The outputs or the workspace cannot fit into memory.
        """
        call = Call("PackedKeyValues.attention", None, q=q, out=out)
        result = call.output()
        lse = call.lse(return_lse)
        self._packed.attention(call["q"], result.target, None if lse is None else lse.target, scale)
        array: Array = call.finish(result)
        return array if lse is None else (array, lse.array())
