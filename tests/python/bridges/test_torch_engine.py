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
from sparsed.apps.demo import demo_model_folder  # noqa: E402
from sparsed.torch import engine  # noqa: E402
from tiny_checkpoint import (  # noqa: E402
    BFLOAT16,
    PUBLISHED,
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
    logits = sparsed.load_model(folder, engine="torch").forward(random_ids())
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
    with pytest.raises(ValueError, match=r"^load_model: dtype is .*, expected one of \['float32', 'bfloat16'\]"):
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
    expected = [model.forward(random_ids(), key_mask=key_mask) for key_mask in (None, mask)]
    monkeypatch.setattr(engine, "dense", lambda layer, q, k, v, key_mask: engine.sdpa(q, k, v, key_mask))
    for key_mask, logits in zip((None, mask), expected, strict=True):
        other = model.forward(random_ids(), key_mask=key_mask)
        np.testing.assert_allclose(other[mask], logits[mask], atol=ENGINES)


def test_loading_reads_no_tensor_twice_and_ties(tmp_path) -> None:
    values = tiny_config("illada_8b")
    tensors = random_tensors(values)
    model = sparsed.load_model(write_checkpoint(tmp_path, values, tensors), engine="torch")
    assert model.network.head.weight is model.network.embedding.weight
    assert model.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert "illada" not in repr(model) and "cpu" in repr(model)


# --- goldens ---------------------------------------------------------------------------------------------------------


def test_golden_logits(golden: Golden) -> None:
    model = sparsed.load_model(golden.folder, engine="torch")
    for ids, expected in golden.steps("dense")[::3]:
        check_golden_logits(model.forward(ids, positions=golden.positions)[0], expected)


def test_golden_generations(golden: Golden) -> None:
    golden.check_generations(sparsed.load_model(golden.folder, engine="torch"))


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
        native = sparsed.load_model(demo_model_folder())
        np.testing.assert_array_equal(both.tokens, sparsed.generate(native, ids, prompt_mask=mask, **options).tokens)


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
    model = sparsed.load_model(DATA / "dream_tail", engine="torch")
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
    assert sparsed.load_model(DATA / "dream_tail").dtype == "float32"
    with pytest.raises(ImportError, match="torch is not installed, expected: pip install torch"):
        sparsed.load_model(DATA / "dream_tail", engine="torch")
