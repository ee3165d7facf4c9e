"""The torch engine: the same logits, tokens and patterns as the native one."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sparsed  # noqa: E402
from goldens import Golden  # noqa: E402
from paths import DATA  # noqa: E402
from published_configs import PUBLISHED  # noqa: E402
from sparsed import DelayedCache, DualCache, PrefixCache  # noqa: E402
from sparsed.apps.demo import demo_model_folder  # noqa: E402
from sparsed.generation.sampling import SAMPLERS  # noqa: E402
from sparsed.kernels import ops  # noqa: E402
from sparsed.torch import engine  # noqa: E402
from tiny_checkpoint import (  # noqa: E402
    BFLOAT16,
    random_tensors,
    reference_logits,
    tiny_config,
    write_checkpoint,
)
from tolerances import ENGINES, ORDER, TINY_LOGITS, check_golden_logits  # noqa: E402


def random_ids(batch=2, length=21, seed=1):
    return np.random.default_rng(seed).integers(0, 90, (batch, length))


# --- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("stored", [np.float32, BFLOAT16, np.float16], ids=["f32", "bf16", "f16"])
def test_published_configs(tmp_path, name, stored) -> None:
    values = tiny_config(name)
    tensors = random_tensors(values, stored)
    folder = write_checkpoint(tmp_path, values, tensors, shards=3)
    expected = reference_logits(values, tensors, random_ids())
    logits = sparsed.load_model(folder, "float32", engine="torch").forward(random_ids())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=TINY_LOGITS)
    error = sparsed.load_model(folder, "bfloat16", engine="torch").forward(random_ids()) - expected
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, BFLOAT16, BFLOAT16.type, "torch.bfloat16"], ids=str)
def test_dtypes_of_torch_and_ml_dtypes(kind, dtype) -> None:
    assert sparsed.load_model(DATA / "llada_b32", dtype, engine=kind).dtype == "bfloat16"


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, np.float16], ids=str)
def test_other_dtypes_are_refused(kind, dtype) -> None:
    with pytest.raises(ValueError, match=r"^load_model: dtype is .*, expected one of \['auto', 'float32', "):
        sparsed.load_model(DATA / "llada_b32", dtype, engine=kind)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llada_8b", {"include_qkv_bias": True, "n_kv_heads": 2}),
        ("llada_8b", {"n_kv_heads": None, "multi_query_attention": True}),
        ("llada_8b", {"weight_tying": True, "rope_full_precision": False}),
        ("dream_7b", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_the_native_engine(tmp_path, name, changes, dtype) -> None:
    folder = write_checkpoint(tmp_path, tiny_config(name, **changes))
    models = [sparsed.load_model(folder, dtype, engine=name) for name in ("native", "torch")]
    mask = np.ones((2, 21), bool)
    mask[1, :6] = False
    for options in ({}, {"key_mask": mask}, {"positions": [3, 20, 0], "position_ids": np.arange(5, 26)}):
        native, other = (model.forward(random_ids(), **options) for model in models)
        assert other.shape == native.shape
        tolerance = ENGINES if dtype == "float32" else 0.25
        live = mask[:, options.get("positions", range(21))]
        np.testing.assert_allclose(other[live], native[live], atol=tolerance)


def test_the_mlp_takes_long_sequences_in_parts(tmp_path, monkeypatch) -> None:
    model = sparsed.load_model(write_checkpoint(tmp_path, tiny_config("dream_7b")), engine="torch")
    whole = model.forward(random_ids())
    monkeypatch.setattr(engine, "_MLP_TOKENS", 5)
    np.testing.assert_allclose(model.forward(random_ids()), whole, atol=ORDER)


def test_dense_attention_elsewhere_is_torchs(tmp_path, monkeypatch) -> None:
    """On other devices scaled_dot_product_attention is used; here it runs on the CPU."""
    model = sparsed.load_model(write_checkpoint(tmp_path, tiny_config("dream_7b")), engine="torch")
    mask = np.ones((2, 21), bool)
    mask[1, :6] = False

    def some_rows(key_mask):
        store = model.new_key_values()
        model.forward(random_ids(), key_values=store, key_mask=key_mask)
        return model.forward(random_ids(), positions=[9], key_values=store, computed=[9, 10], key_mask=key_mask)

    expected = [model.forward(random_ids(), key_mask=key_mask) for key_mask in (None, mask)]
    expected_rows = [some_rows(key_mask) for key_mask in (None, mask)]
    monkeypatch.setattr(engine, "dense", lambda layer, q, k, v, key_mask: engine.sdpa(q, k, v, key_mask))
    for key_mask, logits, rows in zip((None, mask), expected, expected_rows, strict=True):
        np.testing.assert_allclose(some_rows(key_mask), rows, atol=ENGINES)
        other = model.forward(random_ids(), key_mask=key_mask)
        np.testing.assert_allclose(other[mask], logits[mask], atol=ENGINES)


def test_kept_keys_and_values_belong_to_a_mask(tmp_path) -> None:
    model = sparsed.load_model(write_checkpoint(tmp_path, tiny_config("dream_7b")), engine="torch")
    mask = np.ones((2, 21), bool)
    mask[1, :6] = False
    for first, second in ((None, mask), (mask, None), (mask, ~mask)):
        store = model.new_key_values()
        model.forward(random_ids(), key_values=store, key_mask=first)
        model.forward(random_ids(), key_values=store, key_mask=first, computed=[9], positions=[9])
        with pytest.raises(ValueError, match="forward: key_mask differs from that of the first call"):
            model.forward(random_ids(), key_values=store, key_mask=second, computed=[9], positions=[9])


def test_loading_reads_no_tensor_twice_and_ties(tmp_path) -> None:
    values = tiny_config("illada_8b")
    tensors = random_tensors(values)
    model = sparsed.load_model(write_checkpoint(tmp_path, values, tensors), engine="torch")
    assert model.network.head.weight is model.network.embedding.weight
    assert model.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert "illada" not in repr(model) and "cpu" in repr(model)


# --- goldens ---------------------------------------------------------------------------------------------------------


def test_golden_logits(golden: Golden) -> None:
    model = sparsed.load_model(golden.folder, "float32", engine="torch")
    for ids, expected in golden.steps("dense")[::3]:
        check_golden_logits(model.forward(ids, positions=golden.positions)[0], expected)


def test_golden_generations(golden: Golden) -> None:
    golden.check_generations(sparsed.load_model(golden.folder, "float32", engine="torch"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_guided_batches_with_padding(dtype) -> None:
    model = sparsed.load_model(demo_model_folder(), dtype, engine="torch")
    ids = np.random.default_rng(3).integers(4, 400, (2, 70))
    mask = np.ones(ids.shape, bool)
    mask[1, :20] = False
    options = dict(gen_length=8, steps=4, sampler=sparsed.LLaDASampler(cfg_scale=1.0))
    options["sparse"] = sparsed.SparseConfig(min_length=0, block_size=16)
    both = sparsed.generate(model, ids, prompt_mask=mask, **options)
    alone = sparsed.generate(model, ids[1:, 20:], **options)
    np.testing.assert_array_equal(both.generated[1], alone.generated[0])
    if dtype == "float32":
        native = sparsed.load_model(demo_model_folder(), "float32")
        np.testing.assert_array_equal(both.tokens, sparsed.generate(native, ids, prompt_mask=mask, **options).tokens)


# --- keys and values between passes ---------------------------------------------------------------------------------

CACHES = [PrefixCache(), DualCache(), DualCache(refresh=2), DelayedCache(refresh=4)]


@pytest.fixture(params=["llada_b32", "dream_b32"])
def both(request: pytest.FixtureRequest):
    """The same checkpoint in the native engine and in torch."""
    return tuple(sparsed.load_model(DATA / request.param, "float32", engine=kind) for kind in ("native", "torch"))


def test_rows_of_a_pass_have_the_logits_of_the_whole(both) -> None:
    native, model = both
    ids = random_ids(2, 40)
    changed = ids.copy()
    changed[:, [5, 6, 39]] = 3
    mask = np.ones(ids.shape, bool)
    mask[1, :4] = False
    for options in ({}, {"key_mask": mask}):
        stores = [one.new_key_values() for one in both]
        whole = model.forward(ids, key_values=stores[1], **options)
        np.testing.assert_array_equal(whole, model.forward(ids, **options))
        native.forward(ids, key_values=stores[0], **options)
        assert stores[1].nbytes == model.key_values_nbytes(40, batch=2)
        for tokens, rows, wanted in ((ids, [7, 20, 39], [39, 7]), (changed, [5, 6, 39], [39]), (ids, [5], [5])):
            found, expected = (
                one.forward(tokens, key_values=store, computed=rows, positions=wanted, **options)
                for one, store in zip((model, native), (stores[1], stores[0]), strict=True)
            )
            np.testing.assert_allclose(found, expected, atol=ENGINES)
            if tokens is ids and 5 not in rows:
                np.testing.assert_allclose(found, whole[:, wanted], atol=ORDER)


def test_a_full_pass_stores_what_attend_gets(both) -> None:
    _, model = both
    seen = []

    def attend(layer, q, k, v, key_mask=None):
        seen.append((k.clone(), v.clone()))
        return engine.dense(layer, q, k, v, key_mask)

    ids, store = random_ids(1, 30), model.new_key_values()
    for positions in ([0, 1], [29]):  # the second pass replaces the first one's
        model.forward(ids, attend=attend, positions=positions, key_values=store, computed=range(30))
        nothing = torch.empty(1, model.config.num_kv_heads, 0, model.config.head_dim)
        for layer in range(model.config.num_layers):
            with torch.inference_mode():
                kept = store.update(layer, nothing, nothing, torch.empty(0, dtype=torch.int64), 30)
            for found, expected in zip(kept, seen[layer - model.config.num_layers], strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
        ids = ids + 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"computed": [0]}, ValueError, "computed is given without key_values"),
        ({"computed": [2, 1], "key_values": ...}, ValueError, "computed is empty or out of order"),
        ({"computed": [1], "positions": [2], "key_values": ...}, ValueError, "positions has 2, expected only"),
        ({"computed": [2], "positions": [2], "key_values": ...}, ValueError, "computed has 1 tokens, expected all 4"),
        ({"key_values": 3}, TypeError, "key_values is a builtins.int, expected what new_key_values of this model"),
        (
            {"computed": [2], "positions": [2], "key_values": ..., "attend": engine.dense},
            ValueError,
            "attend is given, and computed has 1 of 4 tokens, expected all of them",
        ),
    ],
)
def test_forward_refuses_rows_that_do_not_fit(options, error, message) -> None:
    model = sparsed.load_model(DATA / "llada_b32", engine="torch")
    if options.get("key_values") is ...:
        options = {**options, "key_values": model.new_key_values()}
    with pytest.raises(error, match=f"forward: {message}"):
        model.forward([[1, 2, 3, 4]], **options)


def test_forward_refuses_keys_and_values_of_others(both) -> None:
    native, model = both
    store = model.new_key_values()
    model.forward([[1, 2, 3]], key_values=store)
    with pytest.raises(ValueError, match=r"forward: ids has shape \[1, 4\], expected \[1, 3\] \(that of key_values"):
        model.forward([[1, 2, 3, 4]], key_values=store)
    with pytest.raises(ValueError, match=r"forward: ids has shape \[2, 3\], expected \[1, 3\]"):
        model.forward([[1, 2, 3]] * 2, key_values=store, computed=[1], positions=[1])
    with pytest.raises(TypeError, match=r"forward: key_values is a sparsed.models.key_values.KeyValues, expected"):
        model.forward([[1, 2, 3]], key_values=native.new_key_values())


def test_keys_and_values_need_memory(monkeypatch) -> None:
    model = sparsed.load_model(DATA / "llada_b32", engine="torch")
    monkeypatch.setattr(engine, "require_activations", lambda *sizes: None)

    def none_left(nbytes, what):
        raise MemoryError(f"{what} needs {nbytes} bytes")

    monkeypatch.setattr(ops, "require_memory", none_left)
    needed = model.key_values_nbytes(3) // model.config.num_layers
    with pytest.raises(MemoryError, match=f"forward: the keys and values needs {needed} bytes"):
        model.forward([[1, 2, 3]], key_values=model.new_key_values())


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("block_length", [None, 8])
def test_cached_decoding_is_the_native_engines(both, cache, block_length) -> None:
    sampler = SAMPLERS[both[0].config.family](block_length=block_length)
    options = dict(gen_length=16, steps=8, kv_cache=cache, sampler=sampler)
    prompt = random_ids(1, 45)
    native, found = (sparsed.generate(model, prompt, **options) for model in both)
    np.testing.assert_array_equal(found.tokens, native.tokens)
    assert [step.phase for step in found.stats] == [step.phase for step in native.stats]


def test_cached_decoding_with_guidance_and_padding(both) -> None:
    ids = random_ids(2, 40)
    mask = np.ones(ids.shape, bool)
    mask[1, :13] = False
    options = dict(gen_length=8, steps=4, kv_cache=DualCache())
    if both[0].config.family == "llada":
        options["sampler"] = sparsed.LLaDASampler(cfg_scale=0.5)
    native, found = (sparsed.generate(model, ids, prompt_mask=mask, **options) for model in both)
    np.testing.assert_array_equal(found.tokens, native.tokens)


def test_refreshing_always_is_dense(both) -> None:
    options = dict(gen_length=8, steps=8)
    dense = sparsed.generate(both[1], random_ids(1, 30), **options)
    for cache in (DelayedCache(refresh=1), DualCache(refresh=1)):
        cached = sparsed.generate(both[1], random_ids(1, 30), **options, kv_cache=cache)
        np.testing.assert_array_equal(dense.tokens, cached.tokens)
        assert cached.stats.density == 1


# --- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import sys, sparsed
folder, warm, options = sys.argv[1], sys.argv[2], dict(arg.split("=") for arg in sys.argv[3:])
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
sparsed.load_model(warm, **options).forward([[1]])
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
model = sparsed.load_model(folder, **options)
print(status("VmHWM") - before, model.nbytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [["engine=native"], ["engine=torch"], ["engine=torch", "dtype=bfloat16"]], ids=str)
def test_loading_holds_the_model_and_one_shard(tmp_path, options) -> None:
    sizes = dict(d_model=512, n_heads=8, n_layers=8, mlp_hidden_size=1536, n_kv_heads=8)
    values = tiny_config("llada_8b", **sizes)
    folder = write_checkpoint(tmp_path / "big", values, shards=6)
    warm = write_checkpoint(tmp_path / "warm", tiny_config("llada_8b"))
    shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    command = [sys.executable, "-c", PEAK, str(folder), str(warm), *options]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, model = map(int, run.stdout.split())
    assert peak <= model + shard


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "jax"}, "load_model: engine is 'jax', expected 'native' or 'torch'"),
        ({"engine": "torch", "dtype": torch.float16}, "load_model: dtype is torch.float16, expected one of"),
        ({"device": "cpu"}, "load_model: device is given, expected engine 'torch' with it"),
        ({"engine": "torch", "device": "cpu", "device_map": "auto"}, "device_map and device are given, expected"),
    ],
)
def test_refused_arguments(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        sparsed.load_model(DATA / "dream_tail", **options)


def test_torch_dtypes_are_names(tmp_path) -> None:
    model = sparsed.load_model(DATA / "dream_tail", torch.bfloat16, engine="torch", device=torch.device("cpu"))
    assert model.dtype == "bfloat16" and model.network.head.weight.dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_by_number_is_a_gpu() -> None:
    with pytest.raises(ValueError, match="load_model: device is cuda:0, expected one that torch can use here"):
        sparsed.load_model(DATA / "dream_tail", engine="torch", device=0)


def test_forward_refuses_what_the_native_engine_refuses() -> None:
    model = sparsed.load_model(DATA / "dream_tail", "float32", engine="torch")
    with pytest.raises(TypeError, match="forward: ids has dtype float64, expected integers"):
        model.forward(np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"attend returned shape \[1, 2, 4, 16\], expected \[1, 2, 4, 32\]"):
        model.forward([[1, 2, 3, 4]], attend=lambda layer, q, k, v, key_mask=None: q[..., :16])
    with pytest.raises(MemoryError, match="forward: a sequence this long"):
        model.forward(np.ones((64, 4), np.int64), positions=np.zeros(1 << 20, np.int64))


def test_torch_is_needed_only_when_asked_for(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sparsed.torch")]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__

    def without_torch(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "torch" and level == 0:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return original(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert sparsed.load_model(DATA / "dream_tail", "float32").dtype == "float32"
    with pytest.raises(ImportError, match="torch is not installed, expected: pip install torch"):
        sparsed.load_model(DATA / "dream_tail", "float32", engine="torch")
