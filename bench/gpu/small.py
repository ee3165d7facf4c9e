"""Small calls of every kernel through the package, for compute-sanitizer. Results are checked against the CPU's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import sparsed


def on(backend: str, call: Callable[[], Any]) -> Any:
    os.environ["SPARSED_ISA"] = backend
    return call()


def main() -> None:
    rng = np.random.default_rng(0)
    for head_dim in (32, 64, 96, 128, 256):
        for dtype in (ml_dtypes.bfloat16, np.float16, np.float32):
            q, k, v = (rng.standard_normal((1, heads, 150, head_dim), np.float32).astype(dtype) for heads in (2, 1, 1))
            mask = rng.random((1, 150)) < 0.9
            for selection in ("paper", "reference"):
                arguments = {"prompt_length": 100, "block_size": 32, "selection": selection, "key_mask": mask}

                def select(q: Any = q, k: Any = k, v: Any = v, arguments: Any = arguments) -> Any:
                    return sparsed.attention_and_select(q, k, v, **arguments)

                out, pattern = on("cuda", select)
                expected, _ = on("scalar", select)
                np.testing.assert_allclose(out.astype(np.float32), expected.astype(np.float32), atol=2e-2)

                def sparse(q: Any = q, k: Any = k, v: Any = v, pattern: Any = pattern) -> Any:
                    return sparsed.attention(q, k, v, pattern)

                np.testing.assert_allclose(
                    on("cuda", sparse).astype(np.float32), on("scalar", sparse).astype(np.float32), atol=2e-2
                )


if __name__ == "__main__":
    main()
