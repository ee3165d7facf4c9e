"""A peer with straightforward numpy code in float32."""

from __future__ import annotations

import numpy as np

from ..arrays import Array, Blocks
from ..harness import Contender
from .base import Peer, SkipError

# For longer sequences, the scores of one head take more than 64 MB and a call takes minutes.
_LONGEST = 4096


class Numpy(Peer):
    """Computes in float32 only, because numpy has no fast matrix product of other dtypes."""

    name = "numpy"

    def why_not(self) -> str | None:
        return None

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def dense(self, q: Array, k: Array, v: Array) -> Contender:
        return self._attention(q, k, v, None)

    def sparse(self, q: Array, k: Array, v: Array, blocks: Blocks) -> Contender:
        return self._attention(q, k, v, blocks)

    def linear(self, x: Array, weight: Array) -> Contender:
        _require_float32(x)
        return Contender(self.name, lambda: x @ weight.T)

    def _attention(self, q: Array, k: Array, v: Array, blocks: Blocks | None) -> Contender:
        _require_float32(q)
        length = q.shape[2]
        if length > _LONGEST:
            raise SkipError(f"{length} tokens are more than {_LONGEST}, and it stores the score matrix of a head")
        gqa_ratio = q.shape[1] // k.shape[1]
        scale = np.float32(q.shape[3] ** -0.5)

        def run() -> Array:
            out = np.empty_like(q)
            for head in range(q.shape[1]):
                scores = q[0, head] @ k[0, head // gqa_ratio].T
                scores *= scale
                if blocks is not None:
                    block = blocks.block_size
                    live = np.repeat(np.repeat(blocks.mask[0, head], block, axis=0), block, axis=1)
                    scores = np.where(live[:length, :length], scores, -np.inf)
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                out[0, head] = scores @ v[0, head // gqa_ratio] / scores.sum(axis=1, keepdims=True)
            return out

        return Contender(self.name, run)


def _require_float32(array: Array) -> None:
    if array.dtype != np.float32:
        raise SkipError(f"{array.dtype} has no fast product in numpy")
