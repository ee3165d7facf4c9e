"""Model operations against float64, and what must not change a bit of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import sparsed
from op_arrays import BF16, F16, F32, Array, bits, normal
from sparsed import ops


def assert_close(found: Array, expected: Array, magnitude: Array, relative: float = 4e-7) -> None:
    """`magnitude`: what float32's rounding errors grow with. bfloat16 results may be off by half their last place."""
    allowed = relative * magnitude + (np.abs(expected) / 250 if found.dtype == BF16 else 0) + 1e-35
    error = np.abs(found.astype(np.float64) - expected)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), f"{worst}: found {found[worst]}, expected {expected[worst]}"


# --- packed weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_pack_weight_dtypes(dtype: Any, kept: Any) -> None:
    weight = normal(0, 37, 50, dtype=dtype)
    packed = ops.pack_weight(weight, dtype=kept)
    expected = kept or ("bfloat16" if dtype == BF16 else "float32")
    assert packed.shape == (37, 50)
    assert packed.dtype == expected
    assert packed.nbytes == 48 * 64 * (4 if expected == "float32" else 2)
    identity = np.eye(50, dtype=np.float32)
    np.testing.assert_array_equal(
        ops.linear(identity, packed), weight.astype(F32).astype(BF16 if expected == "bfloat16" else F32).T.astype(F32)
    )


def test_pack_weights_joins_rows() -> None:
    weights = [normal(i, rows, 70, dtype=BF16) for i, rows in enumerate((5, 17, 30))]
    bias = normal(9, 17)
    x = normal(4, 6, 70)
    joined = ops.pack_weights(weights, [None, bias, None])
    assert joined.shape == (52, 70)
    assert joined.dtype == "bfloat16"
    apart = ops.pack_weight(np.concatenate(weights), np.concatenate([np.zeros(5, F32), bias, np.zeros(30, F32)]))
    np.testing.assert_array_equal(bits(ops.linear(x, joined)), bits(ops.linear(x, apart)))
    assert ops.pack_weights([weights[0], weights[1].astype(F16)]).dtype == "float32"


def test_pack_weight_takes_views_and_maps(tmp_path: Path) -> None:
    stored = normal(1, 20, 64, dtype=BF16)
    path = tmp_path / "weights"
    path.write_bytes(b"x" + stored.tobytes())  # odd addresses, as a safetensors header may leave them
    mapped = np.memmap(path, np.uint8, "r")[1:].view(BF16).reshape(20, 64)
    x = normal(2, 3, 24)
    expected = ops.linear(x, ops.pack_weight(np.ascontiguousarray(stored[::2, 8:32])))
    np.testing.assert_array_equal(ops.linear(x, ops.pack_weight(mapped[::2, 8:32])), expected)
    np.testing.assert_array_equal(ops.linear(x, ops.pack_weight(stored[::-1][1::2, 8:32])), expected[:, ::-1])


# --- linear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 33), (14, 50, 270), (65, 96, 64), (200, 131, 515)], ids=str)
def test_linear(backend: str, shape: tuple[int, int, int], x_dtype: Any, w_dtype: Any) -> None:
    rows, outputs, inputs = shape
    x, weight = normal(0, rows, inputs, dtype=x_dtype), normal(1, outputs, inputs, dtype=w_dtype)
    bias, residual = normal(2, outputs), normal(3, rows, outputs, dtype=x_dtype)
    products = x.astype(np.float64) @ weight.astype(np.float64).T
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T + np.abs(bias) + 4

    plain = ops.linear(x, ops.pack_weight(weight))
    assert plain.dtype == x_dtype
    assert_close(plain, products, magnitude)
    for out_dtype in ("float32", "bfloat16"):
        out = ops.linear(x, ops.pack_weight(weight, bias), residual=residual, out_dtype=out_dtype)
        assert out.shape == (rows, outputs)
        assert out.dtype == (F32 if out_dtype == "float32" else BF16)
        assert_close(out, products + bias + residual.astype(np.float64), magnitude)


@pytest.mark.parametrize("w_dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
def test_linear_rows_do_not_depend_on_each_other(backend: str, x_dtype: Any, w_dtype: Any) -> None:
    x = normal(0, 100, 700, dtype=x_dtype)
    packed = ops.pack_weight(normal(1, 90, 700, dtype=w_dtype), normal(2, 90))
    residual = normal(3, 100, 90, dtype=x_dtype)
    together = ops.linear(x, packed, residual=residual)
    for row in (0, 5, 12, 33, 63, 99):
        one = slice(row, row + 1)
        np.testing.assert_array_equal(bits(ops.linear(x[one], packed, residual=residual[one])), bits(together[one]))
    np.testing.assert_array_equal(bits(ops.linear(x[7:50], packed, residual=residual[7:50])), bits(together[7:50]))


def test_linear_of_strided_rows(backend: str) -> None:
    wide = normal(0, 40, 100)
    packed = ops.pack_weight(normal(1, 20, 30))
    view = wide[::-2, 10:40]
    np.testing.assert_array_equal(ops.linear(view, packed), ops.linear(np.ascontiguousarray(view), packed))
    residual = wide[:20, 50:70]
    np.testing.assert_array_equal(
        ops.linear(view, packed, residual=residual), ops.linear(view, packed, residual=residual.copy())
    )


def test_linear_of_no_rows(backend: str) -> None:
    out = ops.linear(np.empty((0, 30), BF16), ops.pack_weight(normal(1, 20, 30)), out_dtype="float32")
    assert out.shape == (0, 20)
    assert out.dtype == F32


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_threads_do_not_change_bits(backend: str, dtype: Any) -> None:
    x, packed = normal(0, 130, 512, dtype=dtype), ops.pack_weight(normal(1, 300, 512, dtype=dtype))
    logits = normal(2, 3, 30000, scale=5)
    cos, sin = normal(4, 130, 64), normal(5, 130, 64)
    results: list[list[Array]] = []
    for threads in (1, 2, 3):
        sparsed.set_num_threads(threads)
        gate, rotated = x.copy(), x.copy()
        ops.silu_gate_(gate, x)
        ops.rotary_(rotated, 128, cos, sin)
        normed = ops.rms_norm(x, normal(3, 512), 1e-5)
        results.append([ops.linear(x, packed), normed, gate, rotated, *ops.token_confidence(logits, "entropy")])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(bits(found), bits(expected))


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 256), (4, 3001)], ids=str)
def test_rms_norm(backend: str, shape: tuple[int, int], dtype: Any) -> None:
    wide = normal(0, shape[0], shape[1] + 3, dtype=dtype, scale=7)
    x, weight = wide[:, 1:-2], normal(1, shape[1])
    out = ops.rms_norm(x, weight, 1e-6)
    exact = x.astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-6) * weight
    assert out.dtype == dtype
    assert_close(out, expected, np.abs(expected))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("head_dim", [2, 16, 40, 64, 128])
def test_rotary(backend: str, head_dim: int, dtype: Any) -> None:
    fused = normal(0, 9, 5 * head_dim + 7, dtype=dtype)
    before = fused.copy()
    angles = np.random.default_rng(1).uniform(0, 6, (9, head_dim // 2))
    cos, sin = np.cos(angles).astype(F32), np.sin(angles).astype(F32)
    ops.rotary_(fused[:, 7 : 7 + 4 * head_dim], head_dim, cos, sin)

    heads = before[:, 7 : 7 + 4 * head_dim].astype(np.float64).reshape(9, 4, 2, head_dim // 2)
    a, b = heads[:, :, 0], heads[:, :, 1]
    c, s = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    expected = np.stack([a * c - b * s, b * c + a * s], 2).reshape(9, 4 * head_dim)
    size = np.broadcast_to((np.abs(a) + np.abs(b))[:, :, None], heads.shape).reshape(expected.shape)
    assert_close(fused[:, 7 : 7 + 4 * head_dim], expected, size)
    np.testing.assert_array_equal(bits(fused[:, :7]), bits(before[:, :7]))
    np.testing.assert_array_equal(bits(fused[:, 7 + 4 * head_dim :]), bits(before[:, 7 + 4 * head_dim :]))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("scale", [0.1, 4.0, 50.0, 1e5])
def test_silu_gate(backend: str, scale: float, dtype: Any) -> None:
    fused = normal(0, 11, 206, dtype=dtype, scale=scale)
    before = fused.astype(np.float64)
    gate, up = fused[:, :103], fused[:, 103:]
    ops.silu_gate_(gate, up)
    with np.errstate(over="ignore"):
        expected = before[:, :103] / (1 + np.exp(-before[:, :103])) * before[:, 103:]
    assert_close(gate, expected, np.abs(expected), relative=8e-6)
    np.testing.assert_array_equal(up.astype(np.float64), before[:, 103:])


# --- token_confidence -------------------------------------------------------------------------------------------------


def confidences(logits: Array) -> dict[str, NDArray[np.float64]]:
    p = reference.softmax(logits)[0]
    top = np.sort(np.pad(p, ((0, 0), (1, 0))), 1)
    return {
        "probability": top[:, -1],
        "margin": top[:, -1] - top[:, -2],
        "entropy": (p * np.log(p + 1e-10)).sum(1),
    }


@pytest.mark.parametrize("kind", ["probability", "margin", "entropy"])
@pytest.mark.parametrize("vocabulary", [1, 2, 77, 4096, 10001])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
def test_token_confidence(backend: str, scale: float, vocabulary: int, kind: Any) -> None:
    logits = normal(0, 6, vocabulary + 5, scale=scale)[:, 2:-3]
    ids, confidence = ops.token_confidence(logits, kind)
    assert ids.dtype == np.int64
    assert confidence.dtype == F32
    np.testing.assert_array_equal(ids, logits.argmax(1))
    np.testing.assert_allclose(confidence, confidences(logits)[kind], rtol=2e-6, atol=1e-9)


def test_token_confidence_of_ties_and_nan(backend: str) -> None:
    logits = np.full((4, 9000), -np.inf, F32)
    logits[0, [4095, 4096, 8999]] = 2
    logits[1, :3] = [np.nan, 1, 1]
    logits[2] = 0
    logits[3, 5] = np.nan
    cases: dict[ops.ConfidenceKind, list[float]] = {"probability": [1 / 3, 1 / 2, 1 / 9000], "margin": [0, 0, 0]}
    for kind, expected in cases.items():
        ids, confidence = ops.token_confidence(logits, kind)
        np.testing.assert_array_equal(ids, [4095, 1, 0, 0])
        np.testing.assert_allclose(confidence[:3], expected, rtol=1e-6)
        assert np.isnan(confidence[3])


def test_token_confidence_of_no_rows(backend: str) -> None:
    ids, confidence = ops.token_confidence(np.empty((0, 7), F32), "margin")
    assert ids.shape == confidence.shape == (0,)


# --- errors -----------------------------------------------------------------------------------------------------------

X, W = normal(0, 4, 6), ops.pack_weight(normal(1, 5, 6))
Y = X.copy()
COS = normal(2, 4, 1)
op: Any = ops  # calls that a type checker refuses


def read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("kind", [np.float32, BF16], ids=["float32", "bfloat16"])
def test_dtypes_of_numpy_are_their_names(kind) -> None:
    name = np.dtype(kind).name
    for dtype in (name, kind, np.dtype(kind)):
        assert op.pack_weight(X, dtype=dtype).dtype == name
        assert op.pack_weights([X, X], dtype=dtype).dtype == name
        assert op.linear(X, W, out_dtype=dtype).dtype == kind


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: op.pack_weight(X[0]), ValueError, "pack_weight: weight has shape [6], expected 2 axes"),
        (lambda: op.pack_weight(X.astype(np.float64)), TypeError, "pack_weight: weight has dtype float64, expected"),
        (lambda: op.pack_weight([[1.0]]), TypeError, "pack_weight: weight is a list, expected a numpy array"),
        (lambda: op.pack_weight(X.T), ValueError, "pack_weight: weight has a last axis with a stride of 24 bytes"),
        (lambda: op.pack_weight(X[:0]), ValueError, "pack_weight: weight has shape [0, 6]"),
        (lambda: op.pack_weight(X, X[0]), ValueError, "pack_weight: bias has shape [6], expected [4]"),
        (lambda: op.pack_weight(X, dtype="int4"), ValueError, 'pack_weight: dtype is "int4", expected "float32"'),
        (lambda: op.pack_weight(X, dtype=np.int16), ValueError, 'pack_weight: dtype is "int16", expected "float32"'),
        (lambda: op.pack_weight(X, dtype=4), TypeError, "pack_weight: dtype is a int"),
        (lambda: op.pack_weights([]), ValueError, "pack_weights: weights has length 0"),
        (lambda: op.pack_weights([X, X[:, 1:]]), ValueError, "pack_weights: weights[1] has shape [4, 5], expected 6"),
        (lambda: op.pack_weights([X], [None, None]), ValueError, "pack_weights: biases has length 2, expected 1"),
        (lambda: op.pack_weights([X], [X]), ValueError, "pack_weights: biases[0] has shape [4, 6], expected [4]"),
        (lambda: op.linear(X[:, 1:], W), ValueError, "linear: x has shape [4, 5], expected 6 columns (from w [5, 6])"),
        (lambda: op.linear(X.astype(F16), W), TypeError, "linear: x has dtype float16, expected float32 or bfloat16"),
        (lambda: op.linear(X, X), TypeError, "linear: w is a numpy.ndarray, expected a PackedWeight"),
        (lambda: op.linear(X, W, residual=X), ValueError, "linear: residual has shape [4, 6], expected [4, 5]"),
        (lambda: op.linear(X, W, out_dtype="float16"), ValueError, 'linear: out_dtype is "float16", expected'),
        (lambda: op.linear(X[0], W), ValueError, "linear: x has shape [6], expected 2 axes"),
        (lambda: op.linear(X[:, ::2], W), ValueError, "linear: x has a last axis with a stride of 8 bytes"),
        (lambda: op.linear(np.ma.array(X), W), TypeError, "linear: x is a numpy.ma.MaskedArray"),
        (lambda: op.rms_norm(X, X[0, :5], 1e-5), ValueError, "rms_norm: weight has shape [5], expected [6]"),
        (lambda: op.rms_norm(X, X[0].astype(BF16), 1e-5), TypeError, "rms_norm: weight has dtype bfloat16"),
        (lambda: op.rms_norm(X, X[0], float("nan")), ValueError, "rms_norm: eps is nan"),
        (lambda: op.rms_norm(X, X[0], "small"), TypeError, "rms_norm: eps is a str, expected a number"),
        (lambda: op.rotary_(X.copy(), 2, COS[1:], COS), ValueError, "rotary_: cos has shape [3, 1], expected [4, 1]"),
        (lambda: op.rotary_(X.copy(), 4, normal(0, 4, 2), normal(0, 4, 2)), ValueError, "a multiple of head_dim 4"),
        (lambda: op.rotary_(X.copy(), 3, COS, COS), ValueError, "rotary_: head_dim is 3, expected an even number"),
        (lambda: op.rotary_(X.copy(), 2.0, COS, COS), TypeError, "rotary_: head_dim is a float, expected an int"),
        (lambda: op.rotary_(read_only(X), 2, COS, COS), ValueError, "rotary_: x is read-only"),
        (lambda: op.silu_gate_(read_only(X), X), ValueError, "silu_gate_: gate is read-only"),
        (lambda: op.silu_gate_(X.copy(), X[1:]), ValueError, "silu_gate_: up has shape [3, 6], expected [4, 6]"),
        (lambda: op.silu_gate_(Y[1:], Y[:-1]), ValueError, "silu_gate_: up shares memory with gate, expected another"),
        (lambda: op.rotary_(X.copy(), 0, COS, COS), ValueError, "rotary_: head_dim is 0, expected an even number"),
        (lambda: op.silu_gate_(X.copy(), X.astype(BF16)), TypeError, "silu_gate_: up has dtype bfloat16, expected"),
        (lambda: op.token_confidence(X.astype(BF16), "margin"), TypeError, "logits has dtype bfloat16, expected"),
        (lambda: op.token_confidence(X[:, :0], "margin"), ValueError, "logits has shape [4, 0], expected at least 1"),
        (lambda: op.token_confidence(X, "best"), ValueError, 'token_confidence: kind is "best", expected "prob'),
        (lambda: op.require_memory(1 << 60, "a large thing"), MemoryError, "a large thing needs"),
        (lambda: op.require_memory(1 << 80, "a large thing"), MemoryError, "a large thing needs"),
        (lambda: op.require_memory(-1, "nothing"), ValueError, "num_bytes is -1, expected an integer >= 0"),
        (lambda: op.require_memory(1.5, "half"), TypeError, "num_bytes is 1.5, expected an integer"),
    ],
)  # fmt: skip
def test_errors(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_writes_refuse_overlapping_rows() -> None:
    storage = normal(0, 64)
    rows = np.lib.stride_tricks.as_strided(storage, (4, 8), (4 * 4, 4))
    with pytest.raises(ValueError, match=re.escape("silu_gate_: gate has rows 4 elements apart, expected at least 8")):
        ops.silu_gate_(rows, normal(1, 4, 8))
