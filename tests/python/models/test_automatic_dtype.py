"""dtype "auto": bfloat16 where the checkpoint is stored in it and the backend multiplies it."""

from __future__ import annotations

import numpy as np
import pytest

import sparsed
from sparsed.models.precision import automatic_dtype, multiplies_bfloat16
from tiny_checkpoint import BFLOAT16, random_tensors, tiny_config, write_checkpoint

NATIVE = {
    "amx": True,
    "avx512_bf16": True,
    "cuda": True,
    "avx512": False,
    "avx2": False,
    "neon": False,
    "scalar": False,
}


def test_every_backend_of_this_build_is_known() -> None:
    assert {backend.name for backend in sparsed.backends()} <= set(NATIVE)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("stored", [BFLOAT16, np.dtype(np.float32), np.dtype(np.float16)], ids=str)
def test_the_checkpoint_and_the_backend_decide(tmp_path, monkeypatch, backend, stored) -> None:
    values = tiny_config("llada_8b")
    folder = write_checkpoint(tmp_path, values, random_tensors(values, stored))
    monkeypatch.setattr("sparsed.models.precision.active_backend", lambda: backend)
    expected = "bfloat16" if NATIVE[backend] and stored == BFLOAT16 else "float32"
    model = sparsed.load_model(folder)
    assert model.dtype == expected
    assert model.weights == ("bfloat16" if stored == BFLOAT16 else "float32")
    assert sparsed.load_model(folder, "auto").dtype == expected
    for dtype in ("float32", "bfloat16"):
        assert sparsed.load_model(folder, dtype).dtype == dtype


@pytest.mark.parametrize(("wide", "expected"), [("norm", "bfloat16"), ("q_proj", "float32"), ("wte", "float32")])
def test_matrices_count_and_norms_do_not(tmp_path, monkeypatch, wide, expected) -> None:
    values = tiny_config("llada_8b")
    tensors = random_tensors(values, BFLOAT16)
    mixed = {name: tensor.astype(np.float32) if wide in name else tensor for name, tensor in tensors.items()}
    monkeypatch.setattr("sparsed.models.precision.active_backend", lambda: "amx")
    assert sparsed.load_model(write_checkpoint(tmp_path, values, mixed)).dtype == expected


@pytest.mark.parametrize(("stored", "expected"), [(BFLOAT16, "bfloat16"), (np.float32, "float32")])
def test_int8_folders_go_by_what_is_not_int8(tmp_path, monkeypatch, stored, expected) -> None:
    values = tiny_config("dream_7b")
    folder = write_checkpoint(tmp_path / "model", values, random_tensors(values, stored))
    sparsed.quantize(folder, tmp_path / "int8")
    monkeypatch.setattr("sparsed.models.precision.active_backend", lambda: "amx")
    assert sparsed.load_model(tmp_path / "int8").dtype == expected


def test_int8_folders_of_several_dtypes_need_the_dtype(tmp_path, monkeypatch) -> None:
    """ "auto" cannot see what the int8 weights were; with one dtype the folder is the model that loads as int8."""
    values = tiny_config("llada_8b")
    tensors = random_tensors(values, BFLOAT16)
    mixed = {name: tensor.astype(np.float32) if ".blocks." in name else tensor for name, tensor in tensors.items()}
    folder = write_checkpoint(tmp_path / "model", values, mixed)
    sparsed.quantize(folder, tmp_path / "int8")
    expected = sparsed.load_model(folder, "float32", weights="int8").forward([[1, 2, 3]])
    found = sparsed.load_model(tmp_path / "int8", "float32").forward([[1, 2, 3]])
    np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr("sparsed.models.precision.active_backend", lambda: "amx")
    assert sparsed.load_model(folder, weights="int8").dtype == "float32"
    assert sparsed.load_model(tmp_path / "int8").dtype == "bfloat16"


def test_a_gpu_multiplies_bfloat16_whatever_the_processor_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sparsed.models.precision.active_backend", lambda: "scalar")
    assert multiplies_bfloat16("cuda") and not multiplies_bfloat16()
    assert automatic_dtype({}, "cuda") == "float32"


def test_statistics_say_dtype_and_weights(tmp_path) -> None:
    values = tiny_config("llada_8b")
    folder = write_checkpoint(tmp_path, values, random_tensors(values, BFLOAT16))
    model = sparsed.load_model(folder, "float32")
    stats = sparsed.generate(model, [[1, 2, 3]], gen_length=4, steps=2).stats
    assert (stats.dtype, stats.weights) == ("float32", "bfloat16")
    assert stats.table().endswith("; float32, bfloat16 weights")
