"""Arrays of other libraries: no copies, the same kind out, named errors.

The file is long because inputs and `out` follow the same rules, and their tests share the exporters defined here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsed
from conftest import random_qkv
from sparsed.kernels import _core

CPU_LIBRARIES = ("torch", "jax.numpy")


def convert(library: str, array: np.ndarray) -> Any:
    """The array in a library that runs on the CPU; bfloat16 through float32, which holds it exactly."""
    module = pytest.importorskip(library)
    if array.dtype == ml_dtypes.bfloat16:
        wide = convert(library, array.astype(np.float32))
        return wide.to(module.bfloat16) if library == "torch" else wide.astype(module.bfloat16)
    return module.from_numpy(array.copy()) if library == "torch" else module.asarray(array)


def to_numpy(array: Any) -> np.ndarray:
    """Of any library, widened to float32."""
    return np.asarray(array.float() if hasattr(array, "float") else array, dtype=np.float32)


@pytest.mark.parametrize("library", CPU_LIBRARIES)
@pytest.mark.parametrize("masked", [False, True])
def test_same_results_of_the_same_kind(library: str, dtype: Any, masked: bool) -> None:
    arrays = random_qkv(0, 2, 4, 2, 70, 70, 32, dtype)
    mask = np.arange(70) >= np.array([[0], [9]])
    q, k, v = (convert(library, array) for array in arrays)
    kwargs = {"key_mask": convert(library, mask)} if masked else {}
    expected_kwargs = {"key_mask": mask} if masked else {}
    selection = {"prompt_length": 40, "block_size": 16, "rho": 0.5}

    out, lse = sparsed.attention(q, k, v, return_lse=True, **kwargs)
    expected, expected_lse = sparsed.attention(*arrays, return_lse=True, **expected_kwargs)
    assert type(out) is type(q)
    assert out.dtype == q.dtype
    assert "float32" in str(lse.dtype)
    np.testing.assert_array_equal(to_numpy(out), expected.astype(np.float32))
    np.testing.assert_array_equal(to_numpy(lse), expected_lse)

    out, pattern = sparsed.attention_and_select(q, k, v, **selection, **kwargs)
    expected, expected_pattern = sparsed.attention_and_select(*arrays, **selection, **expected_kwargs)
    assert type(out) is type(q)
    np.testing.assert_array_equal(to_numpy(out), expected.astype(np.float32))
    assert pattern == expected_pattern == sparsed.select(q, k, **selection, **kwargs)

    sparse = sparsed.attention(q, k, v, pattern, **kwargs)
    expected = sparsed.attention(*arrays, pattern, **expected_kwargs)
    np.testing.assert_array_equal(to_numpy(sparse), expected.astype(np.float32))

    cache = sparsed.PatternCache(
        sparsed.SparseConfig(skip=0.0, rho=0.5, block_size=16, min_length=0), steps=2, prompt_length=40
    )
    for step in range(2):
        cache.begin_step(step)
        out = cache.attend(0, q, k, v, **kwargs)
        assert type(out) is type(q)
    np.testing.assert_array_equal(to_numpy(out), expected.astype(np.float32))


@pytest.mark.parametrize("library", CPU_LIBRARIES)
def test_a_mask_may_come_from_another_library(library: str) -> None:
    q, k, v = random_qkv(1, 2, 2, 2, 40, 40, 16)
    mask = np.arange(40) >= np.array([[0], [7]])
    expected = sparsed.attention(q, k, v, key_mask=mask)
    np.testing.assert_array_equal(sparsed.attention(q, k, v, key_mask=convert(library, mask)), expected)
    out = sparsed.attention(*(convert(library, array) for array in (q, k, v)), key_mask=mask)
    np.testing.assert_array_equal(to_numpy(out), expected)
    blocks = convert(library, np.ones((2, 2, 3, 3), bool))
    full = sparsed.BlockPattern.full(2, 2, block_size=16, q_len=40, kv_len=40)
    assert sparsed.BlockPattern.from_mask(blocks, block_size=16, q_len=40, kv_len=40) == full


def test_strided_tensors() -> None:
    torch = pytest.importorskip("torch")
    by_token = torch.randn(2, 50, 4, 32)
    q = by_token.transpose(1, 2)
    kv = torch.randn(2, 2, 2, 60, 32)[:, :, :, 5:55]
    mask = torch.ones(50, 2, dtype=torch.bool).T
    out = sparsed.attention(q, kv[0], kv[1], key_mask=mask)
    assert out.stride() == q.stride()
    expected = sparsed.attention(q.contiguous(), kv[0].contiguous(), kv[1].contiguous())
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="attention: q has a last axis with a stride of 8 bytes, expected 4"):
        sparsed.attention(torch.randn(2, 4, 50, 64)[..., ::2], kv[0], kv[1])


@pytest.mark.parametrize("tokens", [0, 3])
def test_no_keys_at_all(tokens: int) -> None:
    torch = pytest.importorskip("torch")
    q, k = torch.randn(1, 2, tokens, 16), torch.randn(1, 2, 0, 16)
    out, lse = sparsed.attention(q, k, k, return_lse=True)
    assert out.shape == q.shape
    assert not out.any()
    assert torch.isneginf(lse).all()


def test_read_only_arrays() -> None:
    q, k, v = random_qkv(2, 1, 2, 2, 40, 40, 16)
    expected = sparsed.attention(q, k, v)
    for array in (q, k, v):
        array.flags.writeable = False
    np.testing.assert_array_equal(sparsed.attention(q, k, v), expected)


class Exporter:
    """An array of a library without more than the protocol; counts what is alive."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **kwargs: Any) -> Any:
        if "max_version" in kwargs and not self.array.flags.writeable:
            return self.array.__dlpack__(**kwargs)
        if kwargs:
            raise TypeError("unexpected keyword")
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __array_namespace__(self) -> Any:
        return np


def test_both_versions_of_the_protocol() -> None:
    q, k, v = random_qkv(3, 1, 2, 2, 40, 40, 16)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        k.flags.writeable = False  # exported by version 1 alone
    out = sparsed.attention(Exporter(q), Exporter(k), Exporter(v))
    np.testing.assert_array_equal(out, sparsed.attention(q, k, v))


def test_nothing_stays_behind() -> None:
    q, k, v = random_qkv(4, 1, 2, 2, 40, 40, 16)
    base = np.empty(q.nbytes, np.uint8)
    alive = weakref.ref(base)
    view = base.view(np.float32).reshape(q.shape)
    view[:] = q
    out = sparsed.attention(Exporter(view), Exporter(k), Exporter(v))
    del base, view
    assert alive() is None
    np.testing.assert_array_equal(out, sparsed.attention(q, k, v))


@pytest.mark.parametrize("by_token", [False, True])
def test_the_output_is_the_only_allocation(by_token: bool) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.randn(1, 4, 512, 64) for _ in range(3))
    if by_token:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = sparsed.attention(q, k, v)
    allocated = [event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0]
    assert allocated == [out.nbytes]
    assert out.data_ptr() % 64 == 0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sparsed.attention(q, k, v)
        peak = tracemalloc.get_traced_memory()[1]
        arrays = [tensor.numpy() for tensor in (q, k, v)]
        middle = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        sparsed.attention(*arrays)
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 16 * 1024
    assert out.nbytes <= highest - middle < out.nbytes + 16 * 1024


def test_buffers_share_their_memory() -> None:
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 32, 16)
    buffer = _core.host_buffer("attention", "out", q)
    _core.attention(q, q, q, buffer, None, None, None, None, None)
    first, second = torch.from_dlpack(buffer), torch.from_dlpack(buffer)
    assert first.data_ptr() == second.data_ptr()
    assert first.data_ptr() % 64 == 0
    assert buffer.__dlpack_device__() == (1, 0)
    del buffer, second
    assert torch.equal(first, sparsed.attention(q, q, q))


def test_buffers_are_like_q() -> None:
    q = np.ones((2, 3, 5, 16), np.float32)
    by_token = np.ascontiguousarray(q.swapaxes(1, 2)).swapaxes(1, 2)
    for given in (q, by_token):
        assert np.from_dlpack(_core.host_buffer("f", "out", given)).strides == given.strides
    lse = np.from_dlpack(_core.host_buffer("f", "lse", q))
    assert (lse.shape, lse.dtype) == (q.shape[:3], np.float32)


def test_jax_shares_the_memory_too() -> None:
    jax = pytest.importorskip("jax")
    q = jax.numpy.ones((1, 2, 32, 16))
    buffer = _core.host_buffer("attention", "out", q)
    _core.attention(q, q, q, buffer, None, None, None, None, None)
    first, second = jax.numpy.from_dlpack(buffer), jax.numpy.from_dlpack(buffer)
    assert first.unsafe_buffer_pointer() == second.unsafe_buffer_pointer()


NO_COPY = """
import torch, sparsed

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

q = torch.ones(1, 1, 16, 64)
k, v = torch.ones(2, 1, 1, 1 << 18, 64)   # 64 MiB each
block = torch.zeros(1, 1, 1, 1 << 11, dtype=torch.bool)
block[..., 7] = True
pattern = sparsed.BlockPattern.from_mask(block, block_size=128, q_len=16, kv_len=1 << 18)
sparsed.attention(q.numpy(), k.numpy(), v.numpy(), pattern)  # the kernel's own workspace
before = peak()
sparsed.attention(q, k, v, pattern)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_inputs_are_not_copied() -> None:
    pytest.importorskip("torch")
    result = subprocess.run([sys.executable, "-c", NO_COPY], check=True, capture_output=True, text=True)
    assert int(result.stdout) < 16 << 10  # KiB; a copy of k alone takes 64 MiB


def test_gradients_are_refused() -> None:
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 32, 16)
    weight = torch.nn.Parameter(torch.randn(1, 2, 32, 16))
    message = "attention: k requires grad, expected a tensor without (inference only: use torch.no_grad())"
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsed.attention(q, weight, q)
    with pytest.raises(ValueError, match="select: q requires grad"):
        sparsed.select(weight * 2, q, prompt_length=0)
    with torch.no_grad():
        assert torch.equal(sparsed.attention(q, weight, q), sparsed.attention(q, weight.detach(), q))
    with torch.inference_mode():
        assert sparsed.attention(q * 2, weight, q).shape == q.shape


def torch_errors() -> list[Any]:
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 32, 16)
    numpy_q = q.numpy()
    return [
        ({"k": numpy_q}, TypeError, "attention: k is a numpy.ndarray, expected an array of torch (from q, a torch.Ten"),
        ({"q": numpy_q}, TypeError, "attention: k is a torch.Tensor, expected an array of numpy (from q, a numpy.ndar"),
        ({"v": [1.0]}, TypeError, "attention: v is a list, expected a numpy array or an array that has __dlpack__"),
        ({"q": q.to(torch.complex64)}, TypeError, "attention: q has dtype complex64, expected float32, float16 or bfl"),
        ({"q": q.double()}, TypeError, "attention: q has dtype float64, expected float32, float16 or bfloat16"),
        ({"v": q.half()}, TypeError, "attention: v has dtype float16, expected float32 (from q)"),
        ({"k": q.to_sparse()}, TypeError, "attention: k has layout torch.sparse_coo, expected torch.strided"),
        ({"k": q.to("meta")}, TypeError, "attention: k cannot be shared through DLPack: "),
        ({"k": q[0]}, ValueError, "attention: k has shape [2, 32, 16], expected 4 axes"),
        ({"key_mask": torch.ones(1, 32)}, TypeError, "attention: key_mask has dtype float32, expected bool"),
        ({"key_mask": torch.ones(1, 9) > 0}, ValueError, "attention: key_mask has shape [1, 9], expected [1, 32]"),
    ]


@pytest.mark.parametrize("number", range(11))
def test_torch_errors(number: int) -> None:
    torch = pytest.importorskip("torch")
    changes, error, message = torch_errors()[number]
    q = torch.randn(1, 2, 32, 16)
    with pytest.raises(error, match=re.escape(message)):
        sparsed.attention(**{"q": q, "k": q, "v": q, **changes})


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_quantised_tensors_are_refused() -> None:
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 32, 16)
    quantised = torch.quantize_per_tensor(q, 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match=re.escape("attention: q has dtype torch.qint8 (quantised), expected float32")):
        sparsed.attention(quantised, q, q)


def test_a_tensor_with_the_negative_bit() -> None:
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 32, 16)
    negative = torch._neg_view(q)
    assert torch.equal(sparsed.attention(negative, q, q), sparsed.attention(-q, q, q))


class OnADevice(Exporter):
    """What CuPy or a CUDA tensor exports, as far as a machine without a GPU can tell: the device in the capsule."""

    def __dlpack__(self, **kwargs: Any) -> Any:
        import ctypes

        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device = (ctypes.c_int32 * 2).from_address(pointer(capsule, b"dltensor") + 8)
        device[:] = self.device
        return capsule


def test_devices_without_kernels_are_refused() -> None:
    q, k, v = random_qkv(5, 1, 2, 2, 32, 32, 16)
    reasons = sparsed.backends()[-1].reasons
    why = ", ".join(reasons)
    if reasons:
        there = [OnADevice(array, (2, 1)) for array in (q, k, v)]
        cache = sparsed.PatternCache(sparsed.SparseConfig(), steps=2, prompt_length=16)
        cache.begin_step(0)
        for function, call in {
            "attention": lambda: sparsed.attention(*there),
            "attention_and_select": lambda: sparsed.attention_and_select(*there, prompt_length=16),
            "select": lambda: sparsed.select(*there[:2], prompt_length=16),
            "PatternCache.attend": lambda: cache.attend(0, *there),
        }.items():
            message = f"{function}: q is on CUDA device 1, expected the CPU ({why})"
            with pytest.raises(ValueError, match=re.escape(message)):
                call()
    with pytest.raises(ValueError, match="q is on device 0 of DLPack type 8, expected the CPU or a CUDA device"):
        sparsed.attention(OnADevice(q, (8, 0)), k, v)
    with pytest.raises(ValueError, match=re.escape("attention: k is on CUDA device 0, expected the CPU (from q)")):
        sparsed.attention(Exporter(q), OnADevice(k, (2, 0)), Exporter(v))
    with pytest.raises(ValueError, match=re.escape("attention: v is on device 0 of DLPack type 8, expected the CPU")):
        sparsed.attention(Exporter(q), Exporter(k), OnADevice(v, (8, 0)))
    mask = OnADevice(np.ones((1, 32), bool), (2, 0))
    with pytest.raises(ValueError, match=re.escape("attention: key_mask is on CUDA device 0, expected the CPU")):
        sparsed.attention(q, k, v, key_mask=mask)
    pinned = [OnADevice(array, (3, 0)) for array in (q, k, v)]
    np.testing.assert_array_equal(sparsed.attention(*pinned), sparsed.attention(q, k, v))


class NoNamespace:
    def __dlpack__(self) -> Any:
        raise BufferError("gone")


def test_a_library_that_takes_nothing_back() -> None:
    with pytest.raises(
        TypeError, match=r"attention: q is a test_arrays\.NoNamespace, whose library has no from_dlpack"
    ):
        sparsed.attention(NoNamespace(), NoNamespace(), NoNamespace())
    q = np.ones((1, 1, 16, 16), np.float32)
    with pytest.raises(TypeError, match="attention: key_mask cannot be shared through DLPack: gone"):
        sparsed.attention(q, q, q, key_mask=NoNamespace())


def test_importing_sparsed_imports_no_other_library() -> None:
    code = "import sys, sparsed; print([name for name in ('torch', 'transformers', 'jax') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


# --- out= -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["plain", "by token", "wide", "backwards"])
def test_results_are_written_where_asked(library: str, kind: str, dtype: Any) -> None:
    q, k, v = (
        array if library == "numpy" else convert(library, array) for array in random_qkv(6, 2, 4, 2, 70, 70, 32, dtype)
    )
    expected, lse = sparsed.attention(q, k, v, return_lse=True)
    if library == "numpy":
        make: Any = {
            "plain": lambda: np.empty_like(q),
            "by token": lambda: np.empty((2, 70, 4, 32), dtype).swapaxes(1, 2),
            "wide": lambda: np.zeros((2, 4, 70, 50), dtype)[..., 9:41],
            "backwards": lambda: np.empty_like(q)[:, ::-1, ::-1],
        }
    else:
        if kind == "backwards":
            pytest.skip("torch has no negative strides")
        make = {
            "plain": lambda: q.new_empty(q.shape),
            "by token": lambda: q.new_empty(2, 70, 4, 32).swapaxes(1, 2),
            "wide": lambda: q.new_zeros(2, 4, 70, 50)[..., 9:41],
        }
    out = make[kind]()
    assert sparsed.attention(q, k, v, out=out) is out
    np.testing.assert_array_equal(to_numpy(out), to_numpy(expected))
    again = make[kind]()
    result = sparsed.attention(q, k, v, return_lse=True, out=again)
    assert result[0] is again
    np.testing.assert_array_equal(to_numpy(result[1]), to_numpy(lse))
    options: Any = {"prompt_length": 40, "block_size": 16}
    selected, pattern = sparsed.attention_and_select(q, k, v, **options)
    there = make[kind]()
    found, other = sparsed.attention_and_select(q, k, v, out=there, **options)
    assert found is there and other == pattern
    np.testing.assert_array_equal(to_numpy(there), to_numpy(selected))
    sparse = make[kind]()
    sparsed.attention(q, k, v, pattern, out=sparse)
    np.testing.assert_array_equal(to_numpy(sparse), to_numpy(sparsed.attention(q, k, v, pattern)))


def test_nothing_is_written_beside_out() -> None:
    q, k, v = random_qkv(7, 2, 4, 2, 70, 70, 32)
    wide = np.full((2, 4, 70, 50), 7, np.float32)
    sparsed.attention(q, k, v, out=wide[..., 9:41])
    assert (wide[..., :9] == 7).all() and (wide[..., 41:] == 7).all()
    np.testing.assert_array_equal(wide[..., 9:41], sparsed.attention(q, k, v))


def test_rows_without_keys_are_written_too() -> None:
    q, k = np.ones((2, 3, 5, 16), np.float32), np.ones((2, 3, 0, 16), np.float32)
    wide = np.full((2, 3, 5, 20), 7, np.float32)
    sparsed.attention(q, k, k, out=wide[..., :16])
    assert not wide[..., :16].any() and (wide[..., 16:] == 7).all()


def out_errors() -> list[Any]:
    q = np.ones((1, 2, 32, 16), np.float32)
    read_only = np.empty_like(q)
    read_only.flags.writeable = False
    packed = np.ones((1, 4, 32, 16), np.float32)
    mask = packed.reshape(-1)[1030:1038].view(bool)[None]
    return [
        ({"out": [1.0]}, TypeError, "attention: out is a list, expected a numpy array or an array that has __dlpack__"),
        ({"out": np.empty((1, 2, 31, 16), np.float32)}, ValueError, "out has length 31, expected 32 (from q [1, 2, 32"),
        ({"out": np.empty((1, 3, 32, 16), np.float32)}, ValueError, "out has heads 3, expected 2 (from q [1, 2, 32, 1"),
        ({"out": np.empty((2, 2, 32, 16), np.float32)}, ValueError, "out has batch 2, expected 1 (from q [1, 2, 32, 1"),
        ({"out": np.empty((1, 2, 32, 24), np.float32)}, ValueError, "out has head_dim 24, expected 16 (from q [1, 2,"),
        ({"out": np.empty((2, 32, 16), np.float32)}, ValueError, "out has shape [2, 32, 16], expected 4 axes [batch"),
        (
            {"out": np.empty(q.shape, np.float16)},
            TypeError,
            "attention: out has dtype float16, expected float32 (from q",
        ),
        (
            {"out": np.empty(q.shape, np.float64)},
            TypeError,
            "attention: out has dtype float64, expected float32, float16",
        ),
        ({"out": np.empty((1, 2, 32, 32), np.float32)[..., ::2]}, ValueError, "out has a last axis with a stride of 8"),
        ({"out": read_only}, ValueError, "attention: out is read-only, expected a writable array"),
        (
            {"out": np.lib.stride_tricks.as_strided(np.empty(999, np.float32), q.shape, (0, 0, 64, 4))},
            ValueError,
            "attention: out has elements that share memory, expected none that do",
        ),
        (
            {"out": np.lib.stride_tricks.as_strided(np.empty(999, np.float32), q.shape, (0, 64, 64, 4))},
            ValueError,
            "attention: out has elements that share memory, expected none that do",
        ),
        ({"q": packed[:, :2], "out": packed[:, :2]}, ValueError, "out lies in the memory of q, expected another array"),
        ({"key_mask": mask, "out": packed[:, 1:3]}, ValueError, "out lies in the memory of key_mask, expected another"),
        ({"k": packed[:, :2], "out": packed[:, 1:3]}, ValueError, "out lies in the memory of k, expected another arr"),
        ({"v": packed[:, 2:], "out": packed[:, 1:3]}, ValueError, "out lies in the memory of v, expected another arr"),
    ]


@pytest.mark.parametrize("number", range(16))
def test_out_errors(number: int) -> None:
    changes, error, message = out_errors()[number]
    q, k, v = random_qkv(8, 1, 2, 2, 32, 32, 16)
    with pytest.raises(error, match=re.escape(message)):
        sparsed.attention(**{"q": q, "k": k, "v": v, **changes})
    with pytest.raises(error, match=re.escape(message.replace("attention: ", "attention_and_select: "))):
        sparsed.attention_and_select(**{"q": q, "k": k, "v": v, **changes}, prompt_length=8)


def test_out_beside_the_inputs_in_one_buffer() -> None:
    packed = np.ones((4, 1, 2, 32, 16), np.float32)
    packed[:3] = random_qkv(9, 1, 2, 2, 32, 32, 16)
    sparsed.attention(*packed[:3], out=packed[3])
    np.testing.assert_array_equal(packed[3], sparsed.attention(*packed[:3]))


def test_out_of_torch() -> None:
    torch = pytest.importorskip("torch")
    q = torch.randn(1, 2, 32, 16)
    out = torch.empty_like(q)
    version = out._version
    sparsed.attention(q, q, q, out=out)
    assert out._version > version
    with pytest.raises(ValueError, match="attention: out requires grad, expected a tensor without"):
        sparsed.attention(q, q, q, out=torch.empty_like(q, requires_grad=True))
    with pytest.raises(TypeError, match=r"attention: out is a numpy.ndarray, expected an array of torch \(from q"):
        sparsed.attention(q, q, q, out=out.numpy())
    with pytest.raises(ValueError, match="attention: out has the negative bit, expected a tensor without"):
        sparsed.attention(q, q, q, out=torch._neg_view(out))
    with torch.inference_mode():
        there = torch.empty_like(q)
        assert sparsed.attention(q, q, q, out=there) is there
        assert torch.equal(there, out)


def test_arrays_that_cannot_change_are_no_out() -> None:
    jax = pytest.importorskip("jax")
    q = jax.numpy.ones((1, 2, 32, 16))
    with pytest.raises(
        TypeError, match=r"attention: out is a jax.*, expected None \(arrays of jax cannot be written to"
    ):
        sparsed.attention(q, q, q, out=jax.numpy.zeros_like(q))


def test_an_exporter_that_is_read_only_is_no_out() -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("numpy does not export read-only arrays")
    read_only = np.zeros((1, 2, 32, 16), np.float32)
    read_only.flags.writeable = False
    q = np.ones_like(read_only)
    with pytest.raises(ValueError, match="attention: out is read-only, expected a writable array"):
        _core.attention(q, q, q, Exporter(read_only), None, None, None, None, None)
