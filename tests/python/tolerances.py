"""How far results may be from float64, and the checks that apply it: the only table of tolerances of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
import sparsed

Array = NDArray[Any]

# An output's largest error: twice that of the naive computation in the same dtype, and this floor.
OUT_FLOOR = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}
# The log-sum-exp, which float32 accumulates for every dtype; bfloat16 kernels may round probabilities.
LSE = {"float32": 1e-5, "float16": 1e-5, "bfloat16": 4e-3}
# A row whose k-th and next block differ by less relative mass may be decided by rounding.
CLOSE_BLOCKS = {"float32": 1e-4, "float16": 1e-4, "bfloat16": 5e-3}
# Two float32 results of attention that sum in another order.
ORDER = 2e-5
# float32 results of a whole model by two engines.
ENGINES = 1e-4
# float32 logits of a tiny model against its float64 reference.
TINY_LOGITS = 2e-4
# float32 logits of the golden cases: the published code computed them in float32 too, in another order.
GOLDEN_LOGITS = 1e-3


def check_out(out: Array, expected: Array, q: Array, k: Array, v: Array) -> None:
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    naive_error = np.abs(reference.naive(q, k, v) - reference.attention(q, k, v)[0]).max()
    error = np.abs(out.astype(np.float64) - expected).max()
    assert error <= 2 * naive_error + OUT_FLOOR[q.dtype.name]


def check_lse(lse: Array, expected: Array, dtype: Any) -> None:
    assert lse.dtype == np.float32
    np.testing.assert_allclose(lse, expected, rtol=LSE[dtype.name], atol=LSE[dtype.name])


def check_pattern(pattern: sparsed.BlockPattern, expected: reference.Selection, dtype: Any) -> None:
    """The pattern keeps the blocks of the rule, in all rows that rounding cannot decide."""
    clear = expected.margin > CLOSE_BLOCKS[dtype.name]
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(pattern.to_mask()[clear], expected.mask[clear])


def check_golden_logits(logits: Array, expected: Array, step: int | None = None) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=GOLDEN_LOGITS, err_msg=f"step {step}")
