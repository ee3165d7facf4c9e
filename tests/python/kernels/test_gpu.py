"""What arrays in the memory of a GPU add to the tests of attention, selection and cache, which run there as a `place`.

Marked `gpu`, and skipped where there is none.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import sparsed
from conftest import random_qkv
from device_arrays import require_gpu, to_device, to_numpy
from goldens import Golden
from sparsed import PatternCache, SparseConfig
from tolerances import GOLDEN_LOGITS, ORDER

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]  # torch warns of its own prototypes

SELECTION: dict[str, Any] = {"prompt_length": 120, "block_size": 32, "rho": 0.3}


@pytest.fixture(autouse=True)
def on_gpu() -> Any:
    """torch."""
    return require_gpu()


def device_qkv(seed: int, *shape: int, dtype: Any = np.float32) -> tuple[list[Any], list[Any]]:
    arrays = random_qkv(seed, *shape, dtype=dtype)
    return list(arrays), [to_device(array) for array in arrays]


@pytest.mark.parametrize("selection", ["paper", "reference"])
def test_patterns_are_the_cpus(selection: Any) -> None:
    arrays, tensors = device_qkv(1, 2, 4, 2, 200, 200, 64)
    mask = np.arange(200) >= np.array([[0], [37]])
    for keys in (None, mask):
        options = {**SELECTION, "selection": selection}
        expected = sparsed.select(*arrays[:2], key_mask=keys, **options)
        out, pattern = sparsed.attention_and_select(*tensors, key_mask=to_device(keys), **options)
        assert out.is_cuda
        assert pattern == expected
        assert sparsed.select(*tensors[:2], key_mask=to_device(keys), **options) == expected


def test_outputs_lie_where_the_inputs_do(on_gpu: Any) -> None:
    _, (q, k, v) = device_qkv(2, 2, 4, 2, 90, 90, 64)
    by_token = q.transpose(1, 2).contiguous().transpose(1, 2)
    for given in (q, by_token):
        out, lse = sparsed.attention(given, k, v, return_lse=True)
        assert (out.device, out.dtype, out.stride()) == (q.device, q.dtype, given.stride())
        assert (lse.device, lse.dtype, lse.shape) == (q.device, on_gpu.float32, q.shape[:3])
    wide = on_gpu.cat([q, q], 3)[..., :64]
    assert on_gpu.equal(sparsed.attention(wide, k, v), sparsed.attention(q, k, v))


def test_nothing_is_copied_to_the_host(on_gpu: Any) -> None:
    torch = on_gpu
    _, tensors = device_qkv(3, 1, 4, 2, 256, 256, 64)
    cache = PatternCache(SparseConfig(skip=0.5, block_size=32, min_length=0), steps=6, prompt_length=120)
    for step in range(6):
        cache.begin_step(step)
        for layer in range(2):
            if step == 0:
                cache.attend(layer, *tensors)
                continue
            # Raises where torch waits for the device; a copy of ours would show in the profile.
            torch.cuda.set_sync_debug_mode("error")
            try:
                cache.attend(layer, *tensors)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    cache.reset()
    with torch.profiler.profile(activities=activities) as profile:
        for step in range(6):
            cache.begin_step(step)
            cache.attend(0, *tensors)
        torch.cuda.synchronize()
    assert not [event.name for event in profile.events() if "Memcpy" in event.name]
    assert cache.density(0) == cache.pattern(0).density < 1


def test_streams(on_gpu: Any) -> None:
    """Work goes to the current stream, and a pattern crosses from one to another."""
    torch = on_gpu
    arrays, _ = device_qkv(4, 1, 4, 2, 300, 300, 64)
    expected, pattern = sparsed.attention_and_select(*arrays, **SELECTION)
    sparse = sparsed.attention(*arrays, pattern)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(first):
            torch.cuda._sleep(10_000_000)  # the arrays are not there yet
            tensors = [to_device(array) for array in arrays]
            out, pattern = sparsed.attention_and_select(*tensors, **SELECTION)
        second.wait_stream(first)
        with torch.cuda.stream(second):
            other = sparsed.attention(*tensors, pattern)
        torch.cuda.synchronize()
        np.testing.assert_allclose(to_numpy(out), expected, atol=ORDER)
        np.testing.assert_allclose(to_numpy(other), sparse, atol=ORDER)


def test_mixed_devices_are_refused(on_gpu: Any) -> None:
    arrays, (q, k, v) = device_qkv(5, 1, 2, 2, 40, 40, 32)
    attention = sparsed.attention
    device = f"CUDA device {q.device.index}"
    for given, message in (
        ((q, k.cpu(), v), f"attention: k is on the CPU, expected {device} (from q)"),
        ((q.cpu(), k.cpu(), v), f"attention: v is on {device}, expected the CPU (from q)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            attention(*given)
    mask = np.ones((1, 40), bool)
    for keys in (mask, on_gpu.from_numpy(mask)):
        with pytest.raises(ValueError, match=re.escape(f"key_mask is on the CPU, expected {device} (from q)")):
            attention(q, k, v, key_mask=keys)
    with pytest.raises(ValueError, match=re.escape(f"attention: key_mask is on {device}, expected the CPU (from q)")):
        attention(*arrays, key_mask=to_device(mask))


def test_other_devices(on_gpu: Any) -> None:
    torch = on_gpu
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    _, tensors = device_qkv(6, 1, 2, 2, 100, 100, 32)
    expected, pattern = sparsed.attention_and_select(*tensors, **SELECTION | {"prompt_length": 60})
    there = [tensor.to("cuda:1") for tensor in tensors]
    out, other = sparsed.attention_and_select(*there, **SELECTION | {"prompt_length": 60})
    assert out.device == there[0].device
    assert torch.equal(out.cpu(), expected.cpu())
    assert other == pattern
    assert torch.equal(sparsed.attention(*there, pattern).cpu(), sparsed.attention(*tensors, pattern).cpu())


def test_cupy(on_gpu: Any) -> None:
    cupy = pytest.importorskip("cupy")
    arrays = random_qkv(7, 1, 4, 2, 200, 200, 64)
    expected, pattern = sparsed.attention_and_select(*arrays, **SELECTION)
    with cupy.cuda.Stream(non_blocking=True):
        out, other = sparsed.attention_and_select(*(cupy.asarray(array) for array in arrays), **SELECTION)
    assert isinstance(out, cupy.ndarray)
    assert other == pattern
    np.testing.assert_allclose(cupy.asnumpy(out), expected, atol=ORDER)


def test_jax_is_refused(on_gpu: Any) -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU")
    q = jax.numpy.ones((1, 1, 16, 16))
    with pytest.raises(TypeError, match=r"attention: q is a jax.* on CUDA device 0, expected an array of torch or"):
        sparsed.attention(q, q, q)


# --- sparsed.torch --------------------------------------------------------------------------------------------------


def test_operators(on_gpu: Any) -> None:
    import sparsed.torch as st

    torch = on_gpu
    _, (q, k, v) = device_qkv(8, 2, 4, 2, 200, 200, 64)
    keys = to_device(np.arange(200) >= np.array([[0], [37]]))
    out, blocks = st.attention_and_select(q, k, v, key_mask=keys, **SELECTION)
    assert out.is_cuda and blocks.is_cuda
    sparse = st.attention(q, k, v, blocks, block_size=32, key_mask=keys)
    copied = st.attention(q, k, v, blocks.clone(), block_size=32, key_mask=keys)
    assert torch.equal(sparse, copied)
    for name, arguments in (
        ("attention", (q, k, v, blocks, 32, None, keys)),
        ("attention_and_select", (q, k, v, 120, 32, 0.3, "paper", None, None, keys)),
    ):
        torch.library.opcheck(getattr(torch.ops.sparsed, name).default, arguments)
    compiled = torch.compile(lambda q, k, v: st.attention(q, k, v) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), st.attention(q, k, v) + 1)


def test_accelerate(golden: Golden, on_gpu: Any) -> None:
    import torch_models
    from sparsed.torch import accelerate

    torch = on_gpu
    model = torch_models.load(golden.folder).to("cuda")
    settings = {"steps": golden.meta["steps"], "prompt_length": golden.prompt_length}
    with torch.no_grad(), accelerate(model, golden.sparse(), **settings) as acceleration:
        for ids, expected in golden.steps("sparse"):
            with torch.device("cuda"):  # the rotary tables of these models
                logits = model(torch.from_numpy(ids).to("cuda"))[0, golden.positions[0] :]
            assert logits.is_cuda
            np.testing.assert_allclose(logits.cpu().numpy(), expected, rtol=0, atol=2 * GOLDEN_LOGITS)
        golden.check_patterns(acceleration.cache)


def test_engine_goldens(golden: Golden) -> None:
    result = golden.check_generations(sparsed.load_model(golden.folder, "float32", engine="torch", device="cuda"))
    densities = [step.density for step in result.stats if step.phase == "sparse"]
    assert densities and all(0 < density <= 1 for density in densities)


def test_engine_with_a_cache(golden: Golden) -> None:
    options = {**golden.options(), "kv_cache": sparsed.DelayedCache(refresh=3)}
    model = sparsed.load_model(golden.folder, "float32", engine="torch", device="cuda")
    found = sparsed.generate(model, **options)
    np.testing.assert_array_equal(
        found.tokens, sparsed.generate(sparsed.load_model(golden.folder, "float32"), **options).tokens
    )
    assert any(step.phase == "cached" for step in found.stats)
