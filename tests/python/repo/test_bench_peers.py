"""`sparsed bench peers` on tiny shapes: its contenders, their checks, and the GGUF files that llama.cpp reads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("bench", reason="the benchmarks are not installed")

from bench import cases, full_pass, main, report, tables
from bench.arrays import CheckError
from bench.checkpoint import config_values, write_checkpoint
from bench.peers.base import Pass
from bench.peers.gguf_writer import interleave, write_gguf

from sparsed.models import ConfigReader, find_architecture
from sparsed.models.safetensors import SafetensorsFile

pytestmark = pytest.mark.slow

TINY = cases.LayerShape("tiny", "llada", 32, 64, 4, 2, 96, 500, 5e5, 1e-5)


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.LAYER_SHAPES, "tiny", TINY)


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of a run on two layers and 512 tokens."""
    path = tmp_path / "result.json"
    shape = ("--length", "512", "--layers", "2", "--repeat", "2", "--folder", str(tmp_path))
    assert main(["peers", *shape, *arguments, "--json", str(path)]) == 0
    return report.read(path)


def test_passes(tmp_path: Path) -> None:
    content = run(tmp_path, "--model", "tiny")
    rows = {(row["contender"], row["weights"], row["attention"]): row for row in content["rows"]}
    dense, sparse = rows["sparsed", "bfloat16", "dense"], rows["sparsed", "bfloat16", "sparse"]
    assert (dense["density"], sparse["density"]) == (1, 0.5)  # int(3 * 0.3) + 1 of 3 blocks, and the generation's one
    assert 0 < dense["error"] <= 0.05 and sparse["error"] is None
    assert len(dense["runs_s"]) == 2
    skipped = {row["contender"]: row["reason"] for row in content["skipped"]}
    assert skipped["llama.cpp"] == "no folder with llama_cpp was given (--llama-cpp)"
    assert rows["sparsed", "int8", "dense"]["weights_nbytes"] < dense["weights_nbytes"]
    assert ("torch bfloat16" in skipped) == ("torch int8" in skipped) == (dense["versus_torch"] is None)
    assert dense["versus_llama"] is None
    assert "| tiny | 2 | 512 | sparsed | bfloat16 | dense | 1.00 |" in tables.markdown(content)


def test_flops_of_a_pass() -> None:
    values = config_values(TINY, 2, 500)
    config = find_architecture(values, "config.json").read_config(ConfigReader(values, "config.json"))
    projections = 64 * (64 + 32 + 32 + 64 + 3 * 96)  # query, key, value, output; gate, up, down
    linear = 2 * 10 * (2 * projections + 64 * 500)
    assert full_pass.pass_flops(config, 10, 0.5) == linear + 2 * 4 * 64 * 100 * 0.5


def test_wrong_logits_are_refused() -> None:
    ids, expected = np.zeros((1, 3), np.int64), np.ones((3, 5), np.float32)
    right = Pass("torch", "bfloat16", "SDPA", lambda tokens: expected * np.float32(1.01), 0)
    assert full_pass.logits_error(right, ids, expected) == pytest.approx(0.01, rel=1e-4)
    wrong = Pass("torch", "bfloat16", "SDPA", lambda tokens: expected * np.float32(np.nan), 0)
    with pytest.raises(CheckError, match="peers: the logits of torch with bfloat16 weights differ by nan"):
        full_pass.logits_error(wrong, ids, expected)
    sparse = Pass("sparsed", "bfloat16", "sparse", lambda tokens: expected, 0, tolerance=None)
    assert full_pass.logits_error(sparse, ids, expected) is None


def test_rows_of_a_head_interleaved() -> None:
    weight = np.arange(2 * 6)[:, None] * np.ones((1, 3))  # two heads of head_dim 6
    assert interleave(weight, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("weights", ["BF16", "Q8_0"])
def test_gguf_file(tmp_path: Path, weights: Any) -> None:
    gguf: Any = pytest.importorskip("gguf")
    checkpoint = write_checkpoint(tmp_path, TINY, 2)
    values = config_values(TINY, 2)
    architecture = find_architecture(values, "config.json")
    config = architecture.read_config(ConfigReader(values, "config.json"))
    write_gguf(tmp_path / "tiny.gguf", checkpoint, config, architecture.names, weights)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    assert reader.get_field("llada.attention.head_count_kv").contents() == 2
    assert reader.get_field("llada.attention.causal").contents() is False
    found = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in reader.tensors
    }
    assert len(found) == 3 + 2 * 9
    file = SafetensorsFile(checkpoint / "model.safetensors")
    layer = "model.transformer.blocks.1."
    down = file.array(f"{layer}ff_out.weight").astype(np.float32)
    key = file.array(f"{layer}k_proj.weight").astype(np.float32)
    bound = 0 if weights == "BF16" else np.abs(down).max() / 127
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], down, rtol=0, atol=bound)
    np.testing.assert_allclose(found["blk.1.attn_k.weight"], interleave(key, 2), rtol=0, atol=bound)
    assert (found["output_norm.weight"] == 1).all()


# A package with the functions of llama_cpp that the peer calls. Its model is ours, and its weights are those beside the
# GGUF file.
FAKE = """
import ctypes, sys
from pathlib import Path
import numpy as np, sparsed
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
LLAMA_FTYPE_MOSTLY_Q4_K_M, LLAMA_FLASH_ATTN_TYPE_ENABLED, LLAMA_FLASH_ATTN_TYPE_DISABLED = 15, 1, 0
class Params(ctypes.Structure):
    _fields_ = [("unused", ctypes.c_int)]
def llama_log_set(callback, data): pass
def llama_backend_init(): pass
def llama_model_quantize_default_params(): return Params()
def llama_model_quantize(source, target, params):
    Path(target.decode()).write_bytes(Path(source.decode()).read_bytes())
    return 0
def llama_model_default_params(): return None
def llama_model_load_from_file(file, params): return sparsed.load_model(Path(file.decode()).parent, "bfloat16")
def llama_model_get_vocab(model): return model.config.vocab_size
def llama_vocab_n_tokens(vocab): return vocab
def llama_context_default_params(): return Params()
def llama_init_from_model(model, params): return {"model": model, "params": params}
def llama_batch_get_one(tokens, count): return np.ctypeslib.as_array(tokens, (count,))
def llama_decode(context, batch):
    context["logits"] = context["model"].forward(batch[None])[0] * SCALE
    return STATUS
def llama_get_logits(context): return context["logits"].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
def llama_free(context): FREED.append("context")
def llama_model_free(model): FREED.append("model")
FREED = []
"""


@pytest.fixture
def fake_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fake package and of an empty one in place of gguf, whose files exist before."""
    package = tmp_path / "packages" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import llama_cpp\n__version__ = '0.0'\n")
    (package / "llama_cpp.py").write_text(f"{FAKE}SCALE, STATUS = np.float32(1), 0\n")
    (package.parent / "gguf.py").touch()
    checkpoint = write_checkpoint(tmp_path, TINY, 2)
    for weights in ("BF16", "Q8_0"):
        (checkpoint / f"model-{weights}.gguf").write_bytes(b"GGUF")
    for module in ("llama_cpp", "llama_cpp.llama_cpp", "gguf"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(sys.modules, module, None)  # noted, so that what the test imports is forgotten again
        monkeypatch.delitem(sys.modules, module)
    return package.parent


def test_llama_cpp_by_a_fake_library(tmp_path: Path, fake_llama_cpp: Path) -> None:
    content = run(tmp_path, "--model", "tiny", "--llama-cpp", str(fake_llama_cpp))
    rows = {row["weights"]: row for row in content["rows"] if row["contender"] == "llama.cpp"}
    assert set(rows) == {"BF16", "Q8_0", "Q4_K_M"}
    assert {row["attention"] for row in rows.values()} <= {"flash", "plain"}
    dense = content["rows"][0]
    for row in rows.values():
        assert row["error"] == dense["error"] and row["weights_nbytes"] == 4
    best = min(rows.values(), key=lambda row: row["median_s"])
    assert best["versus_llama"] == 1
    assert content["machine"]["versions"]["llama-cpp-python"] == "0.0"
    freed = sys.modules["llama_cpp.llama_cpp"].FREED
    assert freed == ["context", "model"] * 5  # two to choose the attention, three to time


@pytest.mark.parametrize(
    ("values", "message"),
    [("2, 0", "logits of llama.cpp with BF16 weights differ by 1 of"), ("1, -3", "llama_decode gave status -3")],
)
def test_wrong_results_of_a_fake_library(tmp_path: Path, fake_llama_cpp: Path, values: str, message: str) -> None:
    (fake_llama_cpp / "llama_cpp" / "llama_cpp.py").write_text(f"{FAKE}SCALE, STATUS = {values}\n")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "--model", "tiny", "--llama-cpp", str(fake_llama_cpp))


def test_folder_without_llama_cpp(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no llama_cpp, expected the folder of that package in --llama-cpp"):
        run(tmp_path, "--model", "tiny", "--llama-cpp", str(tmp_path))


def test_llama_cpp(tmp_path: Path) -> None:
    folder = os.environ.get("LLAMA_CPP")
    if folder is None:
        pytest.skip("LLAMA_CPP does not name a folder with llama_cpp")
    content = run(tmp_path, "--model", "demo", "--llama-cpp", folder)
    rows = {row["weights"]: row for row in content["rows"] if row["contender"] == "llama.cpp"}
    assert set(rows) == {"BF16", "Q8_0", "Q4_K_M"}
    assert rows["BF16"]["error"] < rows["Q8_0"]["error"] < rows["Q4_K_M"]["error"]
    assert min(row["versus_llama"] for row in rows.values()) <= 1 <= max(row["versus_llama"] for row in rows.values())
    assert "llama-cpp-python" in content["machine"]["versions"]
