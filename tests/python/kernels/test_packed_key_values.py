"""sparsed.PackedKeyValues: the bits of attention over all keys, on every backend and dtype; memory, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import sparsed
from conftest import BACKENDS, random_qkv
from sparsed import PackedKeyValues
from tolerances import check_lse, check_out

Array = NDArray[Any]

# batch, heads, kv_heads, q_len, kv_len, head_dim
SHAPES = [
    pytest.param((1, 1, 1, 1, 1, 16), id="one-token"),
    pytest.param((2, 6, 2, 33, 257, 128), id="gqa-odd"),
    pytest.param((2, 3, 1, 7, 70, 40), id="mqa-head-dim-40"),
    pytest.param((1, 28, 4, 1, 300, 128), id="dream-one-row"),
    pytest.param((1, 2, 2, 50, 47, 256), id="head-dim-256"),
]


def packed_of(k: Array, v: Array, key_mask: Array | None = None) -> PackedKeyValues:
    packed = PackedKeyValues(*k.shape, k.dtype, key_mask)
    packed.update(None, k, v)
    return packed


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_of_attention(backend: str, dtype: Any, shape: tuple[int, ...]) -> None:
    q, k, v = random_qkv(1, *shape, dtype=dtype)
    packed = packed_of(k, v)
    out, lse = packed.attention(q, return_lse=True)
    expected, expected_lse = sparsed.attention(q, k, v, return_lse=True)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)
    exact, exact_lse = reference.attention(q, k, v)
    check_out(out, exact, q, k, v)
    check_lse(lse, exact_lse, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_updates_with_masks_and_strides(backend: str, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, kv_heads, length, head_dim = 2, 2, int(rng.integers(20, 200)), 8 * int(rng.integers(2, 10))
    q, k, v = random_qkv(seed, batch, 2 * kv_heads, kv_heads, 9, length, head_dim, dtype)
    key_mask = rng.random((batch, length)) < 0.7
    packed = PackedKeyValues(batch, kv_heads, length, head_dim, dtype, key_mask)
    if seed % 2:
        packed.update(None, v, k)
    order = rng.permutation(length)
    for positions in map(np.sort, np.array_split(order, rng.integers(1, 9))):
        # (B, R, 2 H_kv, D) in memory, as a model computes them.
        joined = np.concatenate([k, v], axis=1)[:, :, positions].transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)
        packed.update(positions, joined[:, :kv_heads], joined[:, kv_heads:])
    scale = float(rng.uniform(0.05, 0.3))
    np.testing.assert_array_equal(
        packed.attention(q, scale=scale), sparsed.attention(q, k, v, scale=scale, key_mask=key_mask)
    )


def test_masked_values_may_be_anything(backend: str, dtype: Any) -> None:
    q, k, v = random_qkv(4, 2, 2, 2, 30, 100, 64, dtype)
    key_mask = np.ones((2, 100), bool)
    key_mask[0, :37] = False
    dirty_k, dirty_v = k.copy(), v.copy()
    dirty_k[0, :, :37] = np.inf
    dirty_v[0, :, :37] = np.nan
    packed = packed_of(dirty_k, dirty_v, key_mask)
    packed.update([36, 99], dirty_k[:, :, [36, 99]], dirty_v[:, :, [36, 99]])
    np.testing.assert_array_equal(packed.attention(q), sparsed.attention(q, k, v, key_mask=key_mask))


def test_a_batch_row_without_a_key_gives_zero(backend: str) -> None:
    q, k, v = random_qkv(4, 2, 2, 2, 3, 40, 32)
    key_mask = np.stack([np.zeros(40, bool), np.ones(40, bool)])
    out, lse = packed_of(k, v, key_mask).attention(q, return_lse=True)
    assert not out[0].any() and np.isneginf(lse[0]).all()
    np.testing.assert_array_equal(out[1:], sparsed.attention(q[1:], k[1:], v[1:]))


def test_values_that_are_not_finite_are_seen(backend: str) -> None:
    """As with attention, a NaN that is not masked reaches the output."""
    q, k, v = random_qkv(5, 1, 1, 1, 4, 40, 32)
    packed = packed_of(k, v)
    v[0, 0, 11, 3] = np.nan
    packed.update([11], k[:, :, 11:12], v[:, :, 11:12])
    assert (np.isnan(packed.attention(q)) == (np.arange(32) == 3)).all()


def test_it_stays_with_the_kernels_that_packed_it(dtype: Any, set_backend: Any) -> None:
    q, k, v = random_qkv(6, 1, 4, 2, 20, 100, 64, dtype)
    expected, packed = {}, {}
    for name in BACKENDS:
        set_backend(name)
        expected[name] = sparsed.attention(q, k, v)
        packed[name] = packed_of(v, k)
    for name in reversed(BACKENDS):  # another backend is active than the one that made it
        packed[name].update(np.arange(50), k[:, :, :50], v[:, :, :50])
        packed[name].update(np.arange(50, 100), k[:, :, 50:], v[:, :, 50:])
        np.testing.assert_array_equal(packed[name].attention(q), expected[name])


def test_thread_counts_do_not_matter(threads: None) -> None:
    q, k, v = random_qkv(7, 1, 2, 1, 100, 1000, 64)
    results = []
    for count in (1, 2, 5):
        sparsed.set_num_threads(count)
        results.append(packed_of(k, v).attention(q))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_results_are_of_the_library_of_q_and_go_into_out() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = random_qkv(8, 1, 2, 2, 5, 40, 32)
    packed = PackedKeyValues(1, 2, 40, 32, torch.float32, torch.ones((1, 40), dtype=torch.bool))
    packed.update(None, torch.from_numpy(k), torch.from_numpy(v))
    packed.update(range(3), k[:, :, :3], v[:, :, :3])
    expected, expected_lse = sparsed.attention(q, k, v, return_lse=True)
    out = torch.empty((1, 2, 5, 32))
    found, lse = packed.attention(torch.from_numpy(q), out=out, return_lse=True)
    assert found is out and isinstance(lse, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(lse.numpy(), expected_lse)
    # As attention does it, tokens lie outermost in memory where they do in q.
    by_token = np.ascontiguousarray(q.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    assert packed.attention(by_token).strides == sparsed.attention(by_token, k, v).strides


def test_what_it_says_of_itself(backend: str, dtype: Any) -> None:
    packed = PackedKeyValues(2, 3, 70, 48, dtype)
    assert packed.shape == (2, 3, 70, 48)
    assert packed.dtype == dtype.name
    assert packed.nbytes == PackedKeyValues.required_nbytes(2, 3, 70, 48, dtype.name)
    assert packed.nbytes >= 2 * 2 * 3 * 70 * 48 * dtype.itemsize
    assert repr(packed).startswith(f"PackedKeyValues(shape=(2, 3, 70, 48), dtype={dtype.name}, nbytes=")


def test_no_query_gives_no_row() -> None:
    _, k, v = random_qkv(9, 1, 2, 2, 5, 40, 32)
    assert packed_of(k, v).attention(np.empty((1, 2, 0, 32), np.float32)).shape == (1, 2, 0, 32)


def test_an_update_of_no_position_changes_nothing() -> None:
    q, k, v = random_qkv(9, 1, 2, 2, 5, 40, 32)
    packed = packed_of(k, v)
    packed.update(np.empty(0, np.int64), k[:, :, :0], v[:, :, :0])
    np.testing.assert_array_equal(packed.attention(q), sparsed.attention(q, k, v))


def test_positions_that_were_never_put_are_refused() -> None:
    q, k, v = random_qkv(10, 1, 2, 2, 5, 40, 32)
    packed = PackedKeyValues(1, 2, 40, 32, np.float32)
    with pytest.raises(ValueError, match="PackedKeyValues.attention: position 0 was never put, expected all 40"):
        packed.attention(q)
    packed.update(np.arange(39), k[:, :, :39], v[:, :, :39])
    with pytest.raises(ValueError, match="position 39 was never put"):
        packed.attention(q)
    packed.update([39], k[:, :, 39:], v[:, :, 39:])
    np.testing.assert_array_equal(packed.attention(q), sparsed.attention(q, k, v))


SIZES: dict[str, Any] = {"batch": 1, "kv_heads": 2, "length": 40, "head_dim": 32, "dtype": "float32"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch is 0, expected 1 ..."),
        ({"kv_heads": 1.5}, TypeError, "kv_heads is a float"),
        ({"length": -1}, ValueError, "length is -1, expected 1 ..."),
        ({"head_dim": 20}, ValueError, "head_dim is 20, expected a multiple of 8 from 16 to 256"),
        ({"dtype": "float64"}, ValueError, "dtype is"),
        ({"dtype": None}, TypeError, "dtype is a NoneType"),
        ({"key_mask": np.ones((1, 41), bool)}, ValueError, "key_mask has shape [1, 41], expected [1, 40]"),
        ({"key_mask": np.ones((1, 40))}, TypeError, "key_mask has dtype float64, expected bool"),
        ({"length": 2**34, "kv_heads": 2**20}, MemoryError, "packed keys and values needs"),
    ],
)
def test_the_constructor_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(f"PackedKeyValues: {message}")):
        PackedKeyValues(**{**SIZES, **changes})


K = np.zeros((1, 2, 3, 32), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 2, 2], K, K), ValueError, "positions[2] is 2 behind 2, expected ascending positions"),
        (([0, 2, 40], K, K), ValueError, "positions[2] is 40, expected 0 ... 39"),
        (([-1, 2, 3], K, K), ValueError, "positions[0] is -1, expected 0 ... 39"),
        (([[0, 1, 2]], K, K), ValueError, "positions has shape [1, 3], expected 1 axis"),
        (([0.5, 1.0, 2.0], K, K), TypeError, "positions has dtype float64, expected integers"),
        (([0, 1], K, K), ValueError, "k has shape [1, 2, 3, 32], expected [1, 2, 2, 32] (from positions [2])"),
        ((None, K, K), ValueError, "k has shape [1, 2, 3, 32], expected [1, 2, 40, 32] (all positions)"),
        (([0, 1, 2], K, K[:, :1]), ValueError, "v has shape [1, 1, 3, 32], expected [1, 2, 3, 32]"),
        (([0, 1, 2], K, K.astype(np.float16)), TypeError, "v has dtype float16, expected float32 (that of the packed"),
        (([0, 1, 2], K, None), TypeError, "v is a NoneType"),
        (([0, 1, 2], K[..., ::2], K), ValueError, "k has a last axis with a stride of 8 bytes"),
    ],
)
def test_update_refuses(arguments: tuple[Any, Any, Any], error: type[Exception], message: str) -> None:
    packed = PackedKeyValues(**SIZES)
    with pytest.raises(error, match=re.escape(f"PackedKeyValues.update: {message}")):
        packed.update(*arguments)


Q = np.zeros((1, 4, 3, 32), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": Q[0]}, ValueError, "q has shape [4, 3, 32], expected 4 axes"),
        ({"q": Q.astype(np.float16)}, TypeError, "q has dtype float16, expected float32 (that of the packed keys)"),
        ({"q": np.zeros((2, 4, 3, 32), np.float32)}, ValueError, "q has batch 2, expected 1 (from the packed keys ["),
        ({"q": np.zeros((1, 4, 3, 16), np.float32)}, ValueError, "q has head_dim 16, expected 32"),
        ({"q": Q[:, :3]}, ValueError, "q has heads 3, expected a multiple of 2"),
        ({"q": None}, TypeError, "q is a NoneType"),
        ({"q": Q, "scale": 0.0}, ValueError, "scale is 0"),
        ({"q": Q, "return_lse": 1}, TypeError, "return_lse is a int, expected True or False"),
        ({"q": Q, "out": Q}, ValueError, "out lies in the memory of q, expected another array"),
        ({"q": Q, "out": np.zeros((1, 4, 2, 32), np.float32)}, ValueError, "out has length 2, expected 3"),
    ],
)
def test_attention_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    packed = PackedKeyValues(**SIZES)
    packed.update(None, *2 * [np.zeros((1, 2, 40, 32), np.float32)])
    with pytest.raises(error, match=re.escape(f"PackedKeyValues.attention: {message}")):
        packed.attention(**arguments)
