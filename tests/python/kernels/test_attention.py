"""sparsed.attention against float64, on every backend and dtype."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import sparsed
from conftest import random_qkv
from tolerances import check_lse, check_out

Array = NDArray[Any]

# batch, heads, kv_heads, q_len, kv_len, head_dim
SHAPES = [
    pytest.param((1, 1, 1, 1, 1, 16), id="one-token"),
    pytest.param((2, 4, 4, 64, 64, 64), id="even"),
    pytest.param((1, 6, 2, 77, 131, 128), id="gqa-odd"),
    pytest.param((2, 3, 1, 33, 257, 40), id="mqa-head-dim-40"),
    pytest.param((1, 2, 2, 300, 17, 256), id="head-dim-256"),
    pytest.param((1, 5, 5, 19, 450, 72), id="head-dim-72"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_matches_float64(place: str, dtype: Any, shape: tuple[int, ...]) -> None:
    q, k, v = random_qkv(1, *shape, dtype=dtype)
    out, lse = sparsed.attention(q, k, v, return_lse=True)
    expected, expected_lse = reference.attention(q, k, v)
    check_out(out, expected, q, k, v)
    check_lse(lse, expected_lse, dtype)
    np.testing.assert_array_equal(sparsed.attention(q, k, v), out)


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_patterns_and_masks(place: str, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    kv_heads = int(rng.integers(1, 4))
    batch, heads = int(rng.integers(1, 3)), kv_heads * int(rng.integers(1, 4))
    q_len, kv_len = int(rng.integers(1, 200)), int(rng.integers(1, 400))
    block_size = int(rng.choice([16, 32, 64, 128, 256]))
    q, k, v = random_qkv(seed, batch, heads, kv_heads, q_len, kv_len, 8 * int(rng.integers(2, 17)), dtype)
    shape = (batch, heads, reference.num_blocks(q_len, block_size), reference.num_blocks(kv_len, block_size))
    blocks = rng.random(shape) < rng.random()
    key_mask = rng.random((batch, kv_len)) < 0.8
    pattern = sparsed.BlockPattern.from_mask(blocks, block_size=block_size, q_len=q_len, kv_len=kv_len)
    scale = float(rng.uniform(0.05, 0.3))
    out, lse = sparsed.attention(q, k, v, pattern, scale=scale, key_mask=key_mask, return_lse=True)
    expected, expected_lse = reference.attention(
        q, k, v, blocks=blocks, block_size=block_size, scale=scale, key_mask=key_mask
    )
    check_out(out, expected, q, k, v)
    check_lse(lse, expected_lse, dtype)
    empty = np.isneginf(expected_lse)
    assert not out[empty].astype(np.float32).any()
    np.testing.assert_array_equal(np.isneginf(lse), empty)


def test_no_key_gives_zero_and_minus_infinity(place: str, dtype: Any) -> None:
    q, k, v = random_qkv(3, 2, 2, 1, 40, 50, 32, dtype)
    v[:] = np.nan
    nothing = np.zeros((2, 2, 3, 4), bool)
    pattern = sparsed.BlockPattern.from_mask(nothing, block_size=16, q_len=40, kv_len=50)
    for arguments in ({"pattern": pattern}, {"key_mask": np.zeros((2, 50), bool)}):
        out, lse = sparsed.attention(q, k, v, **arguments, return_lse=True)
        assert not out.astype(np.float32).any()
        assert np.isneginf(lse).all()


def test_masked_keys_do_not_matter(place: str, dtype: Any) -> None:
    q, k, v = random_qkv(4, 2, 2, 2, 30, 100, 64, dtype)
    key_mask = np.ones((2, 100), bool)
    key_mask[0, :37] = False
    key_mask[1, 64:] = False
    out = sparsed.attention(q, k, v, key_mask=key_mask)
    k[0, :, :37], v[0, :, :37] = 1e4, -1e4
    k[1, :, 64:], v[1, :, 64:] = -1e4, 1e4
    np.testing.assert_array_equal(sparsed.attention(q, k, v, key_mask=key_mask), out)


def test_large_scores_do_not_overflow(place: str, dtype: Any) -> None:
    q, k, v = random_qkv(5, 1, 2, 2, 40, 90, 64, dtype)
    q = (q.astype(np.float32) * 100).astype(dtype)
    out, lse = sparsed.attention(q, k, v, return_lse=True)
    expected, expected_lse = reference.attention(q, k, v)
    assert np.isfinite(out.astype(np.float32)).all()
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-3)
    if dtype == np.float32:
        np.testing.assert_allclose(out, expected, atol=1e-3)


def test_views_give_the_bits_of_copies(place: str, dtype: Any) -> None:
    q, k, v = random_qkv(6, 2, 4, 2, 60, 60, 64, dtype)
    expected = sparsed.attention(q, k, v)

    def tokens_first(x: Array) -> Array:
        return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)

    views = [tokens_first(x) for x in (q, k, v)]
    assert not views[0].flags.c_contiguous
    np.testing.assert_array_equal(sparsed.attention(*views), expected)

    wide = [np.concatenate([x, x], 3)[..., :64] for x in (q, k, v)]
    np.testing.assert_array_equal(sparsed.attention(*wide), expected)

    backwards = [np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1] for x in (q, k, v)]
    assert backwards[0].strides[2] < 0
    np.testing.assert_array_equal(sparsed.attention(*backwards), expected)

    for x in (q, k, v):
        x.flags.writeable = False
    np.testing.assert_array_equal(sparsed.attention(q, k, v), expected)

    key_mask = np.ones((2, 120), bool)
    key_mask[:, ::3] = False
    dense_mask = np.ascontiguousarray(key_mask[:, ::2])
    np.testing.assert_array_equal(
        sparsed.attention(q, k, v, key_mask=key_mask[:, ::2]), sparsed.attention(q, k, v, key_mask=dense_mask)
    )


def test_broadcast_heads_share_memory(place: str) -> None:
    q, k, v = random_qkv(7, 1, 4, 1, 20, 30, 32)
    shared = [np.broadcast_to(x, (1, 4, 30, 32)) for x in (k, v)]
    np.testing.assert_array_equal(sparsed.attention(q, *shared), sparsed.attention(q, k, v))


@pytest.mark.parametrize(
    "shape", [(0, 2, 2, 5, 5, 16), (1, 0, 1, 5, 5, 16), (1, 2, 2, 0, 5, 16), (1, 2, 1, 5, 0, 16), (0, 0, 0, 0, 0, 16)]
)
def test_empty_arrays(place: str, shape: tuple[int, ...], dtype: Any) -> None:
    q, k, v = random_qkv(10, *shape, dtype=dtype)
    out, lse = sparsed.attention(q, k, v, return_lse=True)
    assert out.shape == q.shape
    assert out.dtype == dtype
    assert not out.astype(np.float32).any()
    assert np.isneginf(lse).all()
    pattern = sparsed.BlockPattern.full(shape[0], shape[1], block_size=16, q_len=shape[3], kv_len=shape[4])
    np.testing.assert_array_equal(sparsed.attention(q, k, v, pattern), out)


def test_backends_can_be_forced_and_seen(
    monkeypatch: pytest.MonkeyPatch, set_backend: Callable[[str | None], None]
) -> None:
    backends = sparsed.backends()
    assert [b.name for b in backends][-2:] == ["scalar", "cuda"]
    for name, available, reasons in backends:
        assert available == (reasons == [])
        monkeypatch.setenv("SPARSED_ISA", name)
        set_backend(None)
        if available and name != "cuda":
            assert sparsed.active_backend() == name
        else:
            with pytest.raises(ValueError, match=f'SPARSED_ISA is "{name}", expected'):
                sparsed.active_backend()
    monkeypatch.setenv("SPARSED_ISA", "sse9")
    set_backend(None)
    q = np.zeros((1, 1, 4, 16), np.float32)
    for _ in range(2):
        with pytest.raises(ValueError, match='SPARSED_ISA is "sse9", expected one that can run here of: .*scalar'):
            sparsed.attention(q, q, q)
    monkeypatch.setenv("SPARSED_ISA", "")
    assert sparsed.active_backend() == next(b.name for b in backends if b.available)
    monkeypatch.setenv("SPARSED_ISA", "sse9")
    assert sparsed.active_backend() == next(b.name for b in backends if b.available)  # the choice stays
    set_backend("scalar")
    assert sparsed.active_backend() == "scalar"
    with pytest.raises(ValueError, match='set_backend: name is "cuda", expected one that can run here of: .*scalar$'):
        set_backend("cuda")
    assert sparsed.active_backend() == "scalar"


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "set_num_threads: n is 0, expected 1 ..."),
        (-3, ValueError, "n is -3"),
        (10**9, ValueError, "n is 1000000000"),
        (10**30, ValueError, "n is 1000000"),
        (1.5, TypeError, "set_num_threads: n is a float, expected an int"),
        (True, TypeError, "n is a bool"),
    ],
)
def test_wrong_number_of_threads(n: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sparsed.set_num_threads(n)


class NotAnArray:
    """An array of another library."""


Q = np.zeros((2, 4, 10, 32), np.float32)
K = np.zeros((2, 2, 12, 32), np.float32)
UNALIGNED = np.zeros(Q.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(Q.shape)
PATTERN = sparsed.BlockPattern.full(2, 4, block_size=16, q_len=10, kv_len=12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": Q.tolist()}, TypeError, "attention: q is a list, expected a numpy array"),
        ({"k": None}, TypeError, "attention: k is a NoneType, expected a numpy array"),
        ({"v": NotAnArray()}, TypeError, "attention: v is a test_attention.NotAnArray, expected a numpy array"),
        ({"q": np.ma.masked_array(Q)}, TypeError, "attention: q is a numpy.ma.MaskedArray, expected a numpy array"),
        ({"q": Q.astype(np.float64)}, TypeError, "attention: q has dtype float64, expected float32, float16 or bfloat"),
        ({"k": K.astype(np.int32)}, TypeError, "attention: k has dtype int32, expected float32"),
        ({"k": K.astype(">f4")}, TypeError, "attention: k has dtype >f4, expected float32"),
        ({"k": K.astype(np.float16)}, TypeError, "attention: k has dtype float16, expected float32 (from q)"),
        ({"v": K.astype(ml_dtypes.bfloat16)}, TypeError, "attention: v has dtype bfloat16, expected float32 (from q)"),
        ({"v": K.astype(ml_dtypes.float8_e5m2)}, TypeError, "attention: v has dtype float8_e5m2, expected float32"),
        ({"q": Q[0]}, ValueError, "attention: q has shape [4, 10, 32], expected 4 axes [batch, heads, tokens, head_di"),
        ({"k": K[:1]}, ValueError, "attention: k has batch 1, expected 2 (from q [2, 4, 10, 32])"),
        ({"v": K[:, :1]}, ValueError, "attention: v has heads 1, expected 2 (from k [2, 2, 12, 32])"),
        ({"v": K[:, :, :5]}, ValueError, "attention: v has length 5, expected 12 (from k [2, 2, 12, 32])"),
        ({"v": K[..., :16]}, ValueError, "attention: v has head_dim 16, expected 32 (from q [2, 4, 10, 32])"),
        ({"q": Q[:, :3]}, ValueError, "attention: k has heads 2, expected a divisor of 3 (from q [2, 3, 10, 32])"),
        ({"k": K[:, :0], "v": K[:, :0]}, ValueError, "attention: k has heads 0, expected a divisor of 4"),
        ({"q": Q[..., :20], "k": K[..., :20], "v": K[..., :20]}, ValueError, "attention: q has head_dim 20, expected"),
        ({"q": Q[..., :8]}, ValueError, "q has head_dim 8, expected a multiple of 8 from 16 to 256"),
        ({"q": Q.repeat(9, 3)}, ValueError, "q has head_dim 288, expected a multiple of 8 from 16 to 256"),
        ({"q": Q.swapaxes(2, 3)}, ValueError, "attention: q has a last axis with a stride of 128 bytes, expected 4"),
        ({"k": K[..., ::2]}, ValueError, "attention: k has a last axis with a stride of 8 bytes, expected 4"),
        ({"q": UNALIGNED}, ValueError, "attention: q is not aligned, expected addresses that are multiples of 4"),
        ({"scale": float("nan")}, ValueError, "attention: scale is nan, expected a finite number above 0"),
        ({"scale": float("inf")}, ValueError, "attention: scale is inf, expected a finite number above 0"),
        ({"scale": 1e300}, ValueError, "attention: scale is 1e+300, expected a finite number above 0"),
        ({"scale": 0}, ValueError, "attention: scale is 0, expected a finite number above 0"),
        ({"scale": -1.0}, ValueError, "attention: scale is -1, expected a finite number above 0"),
        ({"scale": 10**400}, ValueError, "attention: scale is beyond float64"),
        ({"scale": "1"}, TypeError, "attention: scale is a str, expected a number"),
        ({"scale": True}, TypeError, "attention: scale is a bool, expected a number"),
        ({"scale": np.ones(2)}, TypeError, "attention: scale is a numpy.ndarray, expected a number"),
        ({"key_mask": [[True] * 12] * 2}, TypeError, "attention: key_mask is a list, expected a numpy array"),
        ({"key_mask": np.ones((2, 12))}, TypeError, "attention: key_mask has dtype float64, expected bool"),
        ({"key_mask": np.ones(12, bool)}, ValueError, "attention: key_mask has shape [12], expected 2 axes [batch, k"),
        ({"key_mask": np.ones((2, 10), bool)}, ValueError, "attention: key_mask has shape [2, 10], expected [2, 12]"),
        (
            {"pattern": np.ones((2, 4, 1, 1), bool)},
            TypeError,
            "attention: pattern is a numpy.ndarray, expected a Bloc",
        ),
        (
            {"pattern": sparsed.BlockPattern.full(1, 4, block_size=16, q_len=10, kv_len=12)},
            ValueError,
            "attention: pattern has batch 1, expected 2 (from q [2, 4, 10, 32])",
        ),
        (
            {"pattern": sparsed.BlockPattern.full(2, 2, block_size=16, q_len=10, kv_len=12)},
            ValueError,
            "attention: pattern has heads 2, expected 4 (from q [2, 4, 10, 32])",
        ),
        (
            {"pattern": sparsed.BlockPattern.full(2, 4, block_size=16, q_len=11, kv_len=12)},
            ValueError,
            "attention: pattern has q_len 11, expected 10 (from q [2, 4, 10, 32])",
        ),
        (
            {"pattern": sparsed.BlockPattern.full(2, 4, block_size=16, q_len=10, kv_len=13)},
            ValueError,
            "attention: pattern has kv_len 13, expected 12 (from k [2, 2, 12, 32])",
        ),
        ({"softmax_scale": 1.0}, TypeError, "attention() got an unexpected keyword argument 'softmax_scale'"),
    ],
)
def test_errors_name_argument_found_and_expected(changes: Any, error: type[Exception], message: str) -> None:
    arguments = {"q": Q, "k": K, "v": K, "pattern": PATTERN} | changes
    with pytest.raises(error, match=re.escape(message)):
        sparsed.attention(**arguments)


def test_numpy_scalars_are_numbers() -> None:
    q, k, v = random_qkv(11, 1, 1, 1, 8, 8, 16)
    expected = sparsed.attention(q, k, v, scale=0.5)
    for scale in (np.float32(0.5), np.float64(0.5), np.float16(0.5)):
        np.testing.assert_array_equal(sparsed.attention(q, k, v, scale=scale), expected)
    np.testing.assert_array_equal(sparsed.attention(q, k, v, scale=np.int8(1)), sparsed.attention(q, k, v, scale=1))


def test_an_output_that_cannot_fit_is_refused_before() -> None:
    q = np.broadcast_to(np.zeros(64, np.float32), (1, 1, 1 << 34, 64))
    k = np.zeros((1, 1, 4, 64), np.float32)
    with pytest.raises(MemoryError, match=r"attention: out needs 4096.0 GiB, available are"):
        sparsed.attention(q, k, k)
