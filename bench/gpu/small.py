"""Small calls of every kernel through the package, for compute-sanitizer. Results are checked against the CPU's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import sparsed


def on(backend: str, call: Callable[[], Any]) -> Any:
    os.environ["SPARSED_ISA"] = backend
    return call()


def compare(call: Callable[[], Any]) -> None:
    """Of a call that gives an output."""
    found, expected = on("cuda", call), on("scalar", call)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=2e-2)


def output_of(select: Callable[[], Any]) -> Any:
    return select()[0]


def main() -> None:
    rng = np.random.default_rng(0)
    dtypes = (ml_dtypes.bfloat16, np.float16, np.float32)
    for head_dim, dtype in itertools.product((32, 64, 96, 128, 256), dtypes):
        q, k, v = (rng.standard_normal((1, heads, 150, head_dim), np.float32).astype(dtype) for heads in (2, 1, 1))
        mask = rng.random((1, 150)) < 0.9
        for keys in (None, mask):
            compare(partial(sparsed.attention, q, k, v, key_mask=keys))
        for block_size, selection in itertools.product((32, 128), ("paper", "reference")):
            options: dict[str, Any] = {"prompt_length": 100, "block_size": block_size, "selection": selection}

            select = partial(sparsed.attention_and_select, q, k, v, key_mask=mask, **options)
            pattern = on("cuda", select)[1]
            alone = on("cuda", partial(sparsed.select, q, k, key_mask=mask, **options))
            assert alone == pattern, "the selection alone keeps other blocks than that with an output"
            compare(partial(output_of, select))
            for keys in (None, mask):
                compare(partial(sparsed.attention, q, k, v, pattern, key_mask=keys))


if __name__ == "__main__":
    main()
