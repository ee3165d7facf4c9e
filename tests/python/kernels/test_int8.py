"""int8 weights against their definition in numpy, bit for bit, on every backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed
from op_arrays import BF16, F16, F32, Array, bits, normal
from sparsed import ops


def quantized(a: Array) -> tuple[Array, Array]:
    """The definition: integers, as float32, and scales of the rows."""
    wide = a.astype(F32)
    scales = np.maximum(np.abs(wide).max(1) / F32.type(127), F32.type(2**-126))
    return np.rint(wide / scales[:, None]), scales


def expected(x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None) -> Array:
    """x W^T + bias + residual in float32: the sums are exact in float64."""
    (x_integers, x_scales), (w_integers, w_scales) = quantized(x), quantized(weight)
    sums = (x_integers.astype(np.float64) @ w_integers.astype(np.float64).T).astype(F32)
    out: Array = sums * (x_scales[:, None] * w_scales)
    if bias is not None:
        out = out + bias
    return out if residual is None else out + residual.astype(F32)


@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("inputs", [1, 31, 63, 65, 1000])
def test_linear_has_the_bits_of_the_definition(backend: str, inputs: int, x_dtype: Any) -> None:
    for rows, outputs in ((1, 700), (2, 1), (13, 15), (33, 17), (400, 17)):
        x, weight = normal(0, rows, inputs, dtype=x_dtype), normal(1, outputs, inputs, dtype=x_dtype)
        bias, residual = normal(2, outputs), normal(3, rows, outputs, dtype=x_dtype)
        plain = ops.linear(x, ops.pack_weight(weight, dtype="int8"))
        assert plain.dtype == x_dtype
        np.testing.assert_array_equal(bits(plain), bits(expected(x, weight).astype(x_dtype)))
        packed = ops.pack_weight(weight, bias, dtype="int8")
        for out_dtype in (F32, BF16):
            out = ops.linear(x, packed, residual=residual, out_dtype=out_dtype)
            np.testing.assert_array_equal(bits(out), bits(expected(x, weight, bias, residual).astype(out_dtype)))


def test_linear_is_close_to_float64(backend: str) -> None:
    x, weight = normal(0, 50, 900), normal(1, 70, 900)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    error = ops.linear(x, ops.pack_weight(weight, dtype="int8")) - exact
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 0.015


def test_linear_of_strided_rows(backend: str) -> None:
    wide = normal(0, 40, 100)
    packed = ops.pack_weight(normal(1, 20, 30), dtype="int8")
    view, residual = wide[::-2, 10:40], wide[:20, 50:70]
    np.testing.assert_array_equal(
        ops.linear(view, packed, residual=residual), ops.linear(view.copy(), packed, residual=residual.copy())
    )


def test_outliers_of_a_token_stay_in_its_row(backend: str) -> None:
    x, weight = normal(0, 20, 200), normal(1, 30, 200)
    with_outlier = x.copy()
    with_outlier[7, 3] = 1e4
    packed = ops.pack_weight(weight, dtype="int8")
    before, after = ops.linear(x, packed), ops.linear(with_outlier, packed)
    others = np.arange(20) != 7
    np.testing.assert_array_equal(bits(after[others]), bits(before[others]))
    np.testing.assert_array_equal(after, expected(with_outlier, weight))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
def test_values_that_are_not_finite_give_nan_in_their_row(backend: str, x_dtype: Any, value: float) -> None:
    for inputs in (1, 5, 64, 200):
        x, weight = normal(0, 20, inputs, dtype=x_dtype), normal(1, 30, inputs)
        weight[11] = 0
        packed = ops.pack_weight(weight, dtype="int8")
        before = ops.linear(x, packed)
        x[4, -1] = value
        after = ops.linear(x, packed)
        assert np.isnan(after[4]).all()
        others = np.arange(20) != 4
        np.testing.assert_array_equal(bits(after[others]), bits(before[others]))


def test_rows_of_zeros(backend: str) -> None:
    x, weight = normal(0, 3, 40), normal(1, 5, 40)
    x[1], weight[2] = 0, 0
    out = ops.linear(x, ops.pack_weight(weight, normal(2, 5), dtype="int8"))
    np.testing.assert_array_equal(out[1], normal(2, 5))
    np.testing.assert_array_equal(out[:, 2], np.full(3, normal(2, 5)[2]))


def test_all_backends_give_the_same_bits(set_backend: Callable[[str | None], None]) -> None:
    x, residual = normal(0, 100, 777, dtype=BF16), normal(1, 100, 90, dtype=BF16)
    weight, bias = normal(2, 90, 777, dtype=BF16), normal(3, 90)
    found = set()
    for backend in sparsed.backends():
        if backend.available and backend.name != "cuda":
            set_backend(backend.name)
            out = ops.linear(x, ops.pack_weight(weight, bias, dtype="int8"), residual=residual, out_dtype="float32")
            found.add(out.tobytes())
    assert len(found) == 1


@pytest.mark.usefixtures("threads")
def test_threads_and_other_rows_do_not_change_bits(backend: str) -> None:
    x, packed = normal(0, 130, 512, dtype=BF16), ops.pack_weight(normal(1, 300, 512), dtype="int8")
    together = ops.linear(x, packed)
    for threads in (1, 2, 3):
        sparsed.set_num_threads(threads)
        np.testing.assert_array_equal(bits(ops.linear(x, packed)), bits(together))
        np.testing.assert_array_equal(bits(ops.linear(x[33:90], packed)), bits(together[33:90]))


# --- several weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_linears_has_the_bits_of_linear(backend: str, rows: int, w_dtype: str) -> None:
    x = normal(0, rows, 150, dtype=BF16)
    ws = [ops.pack_weight(normal(i, n, 150), normal(9, n), dtype=w_dtype) for i, n in enumerate((40, 1, 300))]
    for out_dtype in (None, "float32"):
        outs = ops.linears(x, ws, out_dtype=out_dtype)
        assert len(outs) == 3
        for out, w in zip(outs, ws, strict=True):
            alone = ops.linear(x, w, out_dtype=out_dtype)
            assert out.dtype == alone.dtype
            assert out.shape == (rows, w.shape[0])
            np.testing.assert_array_equal(bits(out), bits(alone))


def test_many_rows_take_turns(backend: str) -> None:
    """The memory of laid-out rows is bounded: these are more than it holds."""
    x = np.tile(normal(0, 10, 8200, dtype=BF16), (900 if backend != "scalar" else 1, 1))
    for w_dtype in ("bfloat16", "int8"):
        packed = ops.pack_weight(normal(1, 3, 8200, dtype=BF16), dtype=w_dtype)
        out = ops.linear(x, packed)
        np.testing.assert_array_equal(bits(out), bits(np.tile(ops.linear(x[:10], packed), (len(x) // 10, 1))))


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_quantize_rows(dtype: Any) -> None:
    weight = normal(0, 37, 301, dtype=dtype)
    weight[5], weight[6] = 0, 0
    weight[6, 3] = 1e-4 if dtype == F16 else 1e-38
    values, scales = ops.quantize_rows(weight)
    integers, expected_scales = quantized(weight)
    assert values.dtype == np.int8
    np.testing.assert_array_equal(values, integers)
    np.testing.assert_array_equal(bits(scales), bits(expected_scales))
    assert np.abs(values).max() == 127
    assert scales[5] == F32.type(2**-126)
    kept = ops.pack_weight(weight, dtype="int8")
    assert kept.dtype == "int8"
    assert kept.shape == (37, 301)
    assert kept.nbytes == 48 * 320 + 2 * 48 * 4
    assert kept.scales is not None
    np.testing.assert_array_equal(bits(kept.scales), bits(scales))


def test_halves_round_to_even() -> None:
    values, _ = ops.quantize_rows(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]], F32))
    np.testing.assert_array_equal(values, [[127, 0, 2, 2, 0, -2, -126]])


def test_packing_integers_keeps_them(tmp_path: Path) -> None:
    weight = normal(0, 37, 100, dtype=BF16)
    values, scales = ops.quantize_rows(weight)
    values[3, 7] = -128
    path = tmp_path / "values"
    path.write_bytes(values.tobytes())
    mapped = np.memmap(path, np.int8, "r").reshape(37, 100)
    packed = ops.pack_weight(mapped, scales=scales)
    assert packed.dtype == "int8"
    assert packed.scales is not None
    np.testing.assert_array_equal(packed.scales, scales)
    # Rows of the unit matrix give the columns of W: 127 times them, times the scale 1 / 127.
    columns = ops.linear(np.eye(100, dtype=F32), packed).T
    unit = F32.type(1) / F32.type(127)
    np.testing.assert_array_equal(columns, values.astype(F32) * F32.type(127) * (unit * scales[:, None]))


def test_pack_weights_joins_rows() -> None:
    weights = [normal(i, rows, 70, dtype=BF16) for i, rows in enumerate((5, 17, 30))]
    bias, x = normal(9, 17), normal(4, 6, 70)
    whole = ops.pack_weight(
        np.concatenate(weights), np.concatenate([np.zeros(5, F32), bias, np.zeros(30, F32)]), dtype="int8"
    )
    pairs = [ops.quantize_rows(weight) for weight in weights]
    values, scales = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for joined in (
        ops.pack_weights(weights, [None, bias, None], dtype="int8"),
        ops.pack_weights(values, [None, bias, None], scales=scales),
        ops.pack_weights([weights[0], *values[1:]], [None, bias, None], dtype="int8", scales=[None, *scales[1:]]),
    ):
        assert joined.dtype == "int8"
        np.testing.assert_array_equal(bits(ops.linear(x, joined)), bits(ops.linear(x, whole)))


def test_only_int8_has_scales() -> None:
    assert ops.pack_weight(normal(0, 3, 4)).scales is None


# --- errors -----------------------------------------------------------------------------------------------------------

X = normal(0, 4, 6)
I8 = np.ones((4, 6), np.int8)
ONES = np.ones(4, F32)
WITH_NAN = X.copy()
WITH_NAN[2, 5] = np.nan
W, W8 = ops.pack_weight(X), ops.pack_weight(X, dtype="int8")
op: Any = ops  # calls that a type checker refuses


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: op.pack_weight(I8), ValueError, "pack_weight: scales is None, expected the scales [4] of weight"),
        (lambda: op.pack_weight(X, scales=ONES), ValueError, "pack_weight: scales is given, expected None with weight"),
        (lambda: op.pack_weight(I8, scales=ONES[1:]), ValueError, "pack_weight: scales has shape [3], expected [4]"),
        (lambda: op.pack_weight(I8, scales=-ONES), ValueError, "pack_weight: scales[0] is -1, expected a finite"),
        (lambda: op.pack_weight(I8, scales=ONES / 0), ValueError, "pack_weight: scales[0] is inf, expected a finite"),
        (lambda: op.pack_weight(I8, scales=1.0), TypeError, "pack_weight: scales is a float, expected a numpy array"),
        (lambda: op.pack_weight(I8, scales=ONES.astype(np.float64)), TypeError, "scales has dtype float64, expected"),
        (lambda: op.pack_weight(I8, dtype="float32", scales=ONES), ValueError, 'dtype is float32, expected "int8"'),
        (lambda: op.pack_weight(I8.astype(np.uint8)), TypeError, "pack_weight: weight has dtype uint8, expected"),
        (lambda: op.pack_weight(WITH_NAN, dtype="int8"), ValueError, "weight has a value that is not finite in row 2"),
        (lambda: op.pack_weights([X, WITH_NAN], dtype="int8"), ValueError, "pack_weights: weights[1] has a value that"),
        (lambda: op.pack_weights([I8, X], scales=[ONES, None]), ValueError, 'dtype is None, expected "int8" (from we'),
        (lambda: op.pack_weights([I8, I8], scales=[ONES]), ValueError, "pack_weights: scales has length 1, expected 2"),
        (lambda: op.pack_weights([I8, I8], scales=ONES), TypeError, "pack_weights: scales is a numpy.ndarray, exp"),
        (lambda: op.pack_weight(np.ones((1, 131073), F32), dtype="int8"), ValueError, "expected at most 131072 col"),
        (lambda: op.quantize_rows(WITH_NAN), ValueError, "quantize_rows: weight has a value that is not finite"),
        (lambda: op.quantize_rows(I8), TypeError, "quantize_rows: weight has dtype int8, expected float32"),
        (lambda: op.quantize_rows(X[0]), ValueError, "quantize_rows: weight has shape [6], expected 2 axes"),
        (lambda: op.linear(X.astype(F16), W8), TypeError, "linear: x has dtype float16, expected float32 or bfloat16"),
        (lambda: op.linear(X[:, 1:], W8), ValueError, "linear: x has shape [4, 5], expected 6 columns (from w [4, 6])"),
        (lambda: op.linear(X, W8, out_dtype="int8"), ValueError, 'linear: out_dtype is "int8", expected "float32"'),
        (lambda: op.linears(X, []), ValueError, "linears: ws has length 0, expected at least 1"),
        (lambda: op.linears(X, W), TypeError, "linears: ws is a "),
        (lambda: op.linears(X, [W, X]), TypeError, "linears: ws[1] is a numpy.ndarray, expected a PackedWeight"),
        (lambda: op.linears(X, [W, W8]), TypeError, "linears: ws[1] has dtype int8, expected float32 (from ws[0])"),
        (lambda: op.linears(X[:, 1:], [W, W]), ValueError, "linears: x has shape [4, 5], expected 6 columns (from"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_errors(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
