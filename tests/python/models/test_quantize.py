"""`quantize`: what it writes, what it copies, smoothing, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed
from sparsed.apps.cli import main
from sparsed.checks import SparsedWarning
from sparsed.models.files import demo_model_folder
from sparsed.models.safetensors import SafetensorsFile
from sparsed.models.safetensors_writer import write_safetensors
from sparsed.models.smoothing import calibrate, smoothing_factors
from tiny_checkpoint import BFLOAT16, random_tensors, tiny_config, write_checkpoint

TEXT = "the sun is yellow . the magic number for zileba is 107 . the grass is green . " * 40


def stored(folder: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(folder / "model.safetensors")
    return {name: np.array(file.array(name)) for name in file.tensors}


def dequantised(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    return tensors[name].astype(np.float64) * tensors[f"{name}_scale"]


def with_tokenizer(folder: Path, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A tiny model under the tokenizer of the demo model, whose ids are taken modulo the vocabulary by no one."""
    write_checkpoint(folder, values, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_folder() / name, folder)
    return folder


def outlier_model(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A model in whose first layer one channel of the input of `down`, and one of a norm, is a hundred times larger."""
    values = tiny_config("llada_8b", vocab_size=1579, embedding_size=1579, mask_token_id=3, eos_token_id=2)
    tensors = random_tensors(values)
    tensors["model.transformer.blocks.0.up_proj.weight"][7] *= 100
    tensors["model.transformer.blocks.0.attn_norm.weight"][5] *= 100
    return with_tokenizer(folder, values, tensors), tensors


# Weights ------------------------------------------------------------------------------------------------------------


def test_weights_are_rounded_to_the_nearest_step_of_their_row(tmp_path) -> None:
    values = tiny_config("llada_8b")
    source = random_tensors(values, BFLOAT16)
    source["model.transformer.blocks.0.ff_out.weight"][3] = 0
    sparsed.quantize(write_checkpoint(tmp_path / "model", values, source), tmp_path / "int8")
    tensors = stored(tmp_path / "int8")
    int8 = {name for name, tensor in tensors.items() if tensor.dtype == np.int8}
    layers = {name for name, tensor in source.items() if tensor.ndim == 2 and ".blocks." in name}
    assert int8 == layers and len(int8) == 14
    for name, tensor in source.items():
        if name in int8:
            weight = tensor.astype(np.float64)
            scale = np.abs(weight).max(axis=1, keepdims=True) / 127
            assert tensors[f"{name}_scale"].shape == (len(weight), 1)
            assert tensors[f"{name}_scale"].dtype == np.float32
            assert np.all(np.abs(dequantised(tensors, name) - weight) <= 0.5001 * scale)
            assert np.abs(tensors[name].astype(int)).max() == 127
        else:
            assert tensors[name].dtype == tensor.dtype
            np.testing.assert_array_equal(tensors[name], tensor)
    sparsed.load_model(tmp_path / "int8").forward([[1, 2, 3]])


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (("head", "down"), ("ff_out",)),
        (("qkv", "attention_out"), ("q_proj", "k_proj", "v_proj", "attn_out")),
        (("gate_up",), ("ff_proj", "up_proj")),
    ],
)
def test_kept_layers_are_in_the_ignore_list(tmp_path, keep, kept) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    sparsed.quantize(folder, tmp_path / "int8", keep=keep)
    tensors = stored(tmp_path / "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    ignored = {f"model.transformer.blocks.{layer}.{name}" for layer in range(2) for name in kept}
    if "head" in keep:
        ignored.add("model.transformer.ff_out")
    assert set(config["ignore"]) == ignored
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and not name.endswith("_scale") and "wte" not in name:
            assert (tensor.dtype == np.int8) == (name.removesuffix(".weight") not in ignored)
    assert sparsed.load_model(tmp_path / "int8").weights == "int8"


@pytest.mark.parametrize("name", ["illada_8b", "illada_llada_keys"])
def test_a_tied_head_stays(tmp_path, name) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config(name))
    sparsed.quantize(folder, tmp_path / "int8", keep=())
    config = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert len(config["ignore"]) == 1
    assert sparsed.load_model(tmp_path / "int8").forward([[1, 2]]).shape == (1, 2, 96)


def test_everything_but_weights_is_copied(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"), shards=2)
    texts = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "README.md")
    for name in texts:
        (folder / name).write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    for name in ("pytorch_model.bin", "consolidated.pth", "model.gguf", ".hidden"):
        (folder / name).write_text("x")
    sparsed.quantize(folder, tmp_path / "int8")
    found = {str(path.relative_to(tmp_path / "int8")) for path in (tmp_path / "int8").rglob("*") if path.is_file()}
    assert found == {*texts, "config.json", "model.safetensors", "additional_chat_templates/tools.jinja"}


def test_the_input_is_not_changed(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sparsed.quantize(folder, tmp_path / "int8")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Smoothing ----------------------------------------------------------------------------------------------------------


def test_smoothing_changes_nothing_but_the_ranges(tmp_path) -> None:
    folder, _source = outlier_model(tmp_path / "model")
    sparsed.quantize(folder, tmp_path / "int8", calibration=TEXT)
    tensors = stored(tmp_path / "int8")
    floats = {
        name: (dequantised(tensors, name) if tensor.dtype == np.int8 else tensor).astype(np.float32)
        for name, tensor in tensors.items()
        if not name.endswith("_scale")
    }
    config = json.loads((folder / "config.json").read_text())
    smooth = sparsed.load_model(write_checkpoint(tmp_path / "smooth", config, floats), "float32")
    ids = np.random.default_rng(0).integers(0, 1500, (1, 40))
    expected = sparsed.load_model(folder, "float32").forward(ids)
    error = smooth.forward(ids) - expected  # that of rounding the weights alone
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(expected**2))


def test_smoothing_helps_outliers(tmp_path) -> None:
    folder, _source = outlier_model(tmp_path / "model")
    sparsed.quantize(folder, tmp_path / "plain")
    sparsed.quantize(folder, tmp_path / "smooth", calibration=TEXT)
    ids = sparsed.load_tokenizer(folder).encode(TEXT)[:100]
    expected = sparsed.load_model(folder, "float32").forward([ids])
    plain, smooth = (
        np.sqrt(np.mean((sparsed.load_model(tmp_path / name, "float32").forward([ids]) - expected) ** 2))
        for name in ("plain", "smooth")
    )
    assert smooth < 0.7 * plain


def test_smoothing_keeps_the_dtype_of_layers_that_stay(tmp_path) -> None:
    values = tiny_config("llada_8b", vocab_size=1579, embedding_size=1579, mask_token_id=3, eos_token_id=2)
    folder = with_tokenizer(tmp_path / "model", values, random_tensors(values, BFLOAT16))
    sparsed.quantize(folder, tmp_path / "int8", calibration=TEXT, keep=["head", "gate_up"])
    tensors = stored(tmp_path / "int8")
    assert tensors["model.transformer.blocks.0.up_proj.weight"].dtype == BFLOAT16
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim == 2} == {
        BFLOAT16,
        np.dtype(np.int8),
        np.dtype("f4"),
    }
    assert sparsed.load_model(tmp_path / "int8").dtype == sparsed.load_model(folder).dtype


def test_factors_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    activations = rng.random(8, np.float32) * 9
    weights = [rng.normal(size=(5, 8)).astype(BFLOAT16), rng.normal(size=(3, 8)).astype(BFLOAT16)]
    activations[2] = 0
    for weight in weights:
        weight[:, 4] = 0
    columns = np.abs(np.concatenate(weights).astype(np.float64)).max(axis=0)
    expected = np.sqrt(activations.astype(np.float64)) / np.sqrt(np.where(columns > 0, columns, 1))
    expected[[2, 4]] = 1  # channels without values stay as they are
    np.testing.assert_allclose(smoothing_factors(activations, weights), expected, rtol=1e-6)


def test_calibration_sees_every_input(tmp_path) -> None:
    """The largest inputs are those of a forward pass written out, for a text of one pass without masks."""
    values = tiny_config("llada_8b")
    model = sparsed.load_model(write_checkpoint(tmp_path, values, random_tensors(values)), "float32")
    ids = list(np.random.default_rng(0).integers(0, 80, 1200))
    found = calibrate(model, ids)
    assert model.observe is None
    assert [set(layer) for layer in found] == [{"qkv", "gate_up", "down"}] * 2
    assert [len(layer["down"]) for layer in found] == [112, 112]
    weight = random_tensors(values)
    rows = [*ids, values["mask_token_id"]]
    hidden = weight["model.transformer.wte.weight"][rows].astype(np.float64)
    normed = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + values["rms_norm_eps"])
    normed *= weight["model.transformer.blocks.0.attn_norm.weight"]
    assert np.all(found[0]["qkv"] <= np.abs(normed).max(axis=0) + 1e-5)
    mask = np.abs(normed[-1])  # the mask is in the text, whatever else is masked
    assert np.all(found[0]["qkv"] >= mask - 1e-5)
    assert np.isclose(found[0]["qkv"], np.abs(normed).max(axis=0), rtol=1e-5).mean() > 0.5


# Texts --------------------------------------------------------------------------------------------------------------


def known_words(count: int) -> str:
    """A text of `count` tokens of the demo model."""
    text = " ".join(TEXT.split()[:count])
    assert len(sparsed.load_tokenizer("demo").encode(text, add_special_tokens=False)) == count
    return text


def test_a_short_text_is_warned_of(tmp_path, recwarn) -> None:
    folder, _source = outlier_model(tmp_path / "model")
    sparsed.quantize(folder, tmp_path / "enough", calibration=known_words(256))
    assert not recwarn.list
    with pytest.warns(SparsedWarning, match="^the calibration text has 255 tokens, fewer than 256, so the") as found:
        sparsed.quantize(folder, tmp_path / "short", calibration=known_words(255))
    assert len(found) == 1 and found[0].filename == __file__


def test_a_text_in_another_language_is_warned_of(tmp_path, recwarn) -> None:
    folder, _source = outlier_model(tmp_path / "model")
    half = known_words(150)
    sparsed.quantize(folder, tmp_path / "half", calibration=half + " xyzzy" * 150)
    assert not recwarn.list
    message = "^the calibration text has 151 tokens of 301 that stand for text that the tokenizer does not know"
    with pytest.warns(SparsedWarning, match=message) as found:
        sparsed.quantize(folder, tmp_path / "more", calibration=half + " xyzzy" * 151)
    assert len(found) == 1


def test_the_command_says_the_warning_in_one_line(tmp_path, capsys) -> None:
    (tmp_path / "text.txt").write_text(known_words(9))
    assert main(["quantize", "demo", str(tmp_path / "int8"), "--calibrate", str(tmp_path / "text.txt")]) == 0
    assert capsys.readouterr().err == (
        "sparsed: warning: the calibration text has 9 tokens, fewer than 256, "
        "so the model can become worse than without calibration\n"
    )


# Refusals -----------------------------------------------------------------------------------------------------------


def test_a_folder_with_files_is_not_overwritten(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    with pytest.raises(FileExistsError, match=r"^quantize: out is '.*model', expected a folder that is empty"):
        sparsed.quantize(folder, folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="^quantize: out is"):
        sparsed.quantize(folder, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    sparsed.quantize(folder, tmp_path / "empty")


def test_int8_is_not_quantised_again(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    sparsed.quantize(folder, tmp_path / "int8")
    with pytest.raises(ValueError, match=r"^quantize: the weights of .*int8 are int8 already"):
        sparsed.quantize(tmp_path / "int8", tmp_path / "again")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": ["mlp"]}, ValueError, "^quantize: keep is 'mlp', expected one of 'qkv', 'attention_out'"),
        ({"keep": "head"}, TypeError, "^quantize: keep is 'head', expected a list of names"),
        ({"keep": None}, TypeError, "^quantize: keep is None, expected a list of names"),
        ({"keep": [["down"]]}, ValueError, r"^quantize: keep is \['down'\], expected one of 'qkv'"),
        ({"keep": [None]}, ValueError, "^quantize: keep is None, expected one of 'qkv'"),
        (
            {"keep": ["qkv", "attention_out", "gate_up", "down"]},
            ValueError,
            r"^quantize: keep is \[.*\], expected at least one layer that is not kept",
        ),
        ({"calibration": " "}, ValueError, "^quantize: calibration holds nothing that the tokenizer knows"),
        ({"calibration": "xyzzy " * 500}, ValueError, "^quantize: calibration holds nothing that the tokenizer knows"),
        ({"calibration": 3}, TypeError, "^quantize: calibration is 3, expected a text"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, error, message) -> None:
    folder, _source = outlier_model(tmp_path / "model")
    with pytest.raises(error, match=message):
        sparsed.quantize(folder, tmp_path / "int8", **options)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("empty", [False, True])
def test_a_failed_run_leaves_no_checkpoint(tmp_path, monkeypatch, empty) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra").mkdir()
    if empty:
        (tmp_path / "int8").mkdir()

    def fail(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sparsed.kernels.ops, "quantize_rows", fail)
    with pytest.raises(KeyboardInterrupt):
        sparsed.quantize(folder, tmp_path / "int8")
    assert (tmp_path / "int8").exists() == empty
    monkeypatch.undo()
    sparsed.quantize(folder, tmp_path / "int8")
    assert sparsed.load_model(tmp_path / "int8").weights == "int8"


@pytest.mark.parametrize("calibration", [None, TEXT])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value, calibration) -> None:
    values = tiny_config("llada_8b", vocab_size=1579, embedding_size=1579, mask_token_id=3, eos_token_id=2)
    tensors = random_tensors(values)
    name = "model.transformer.blocks.1.k_proj.weight"
    tensors[name][3, 5] = value
    folder = with_tokenizer(tmp_path / "model", values, tensors)
    message = rf"{name} has a value that is not finite in row 3, .* \(in .*model\.safetensors\)$"
    with pytest.raises(ValueError, match=f"^quantize: {message}"):
        sparsed.quantize(folder, tmp_path / "int8", calibration=calibration)
    assert not (tmp_path / "int8").exists()
    with pytest.raises(ValueError, match=f"^load_model: {message}"):
        sparsed.load_model(folder, weights="int8")


def test_a_file_that_cannot_be_copied_is_named(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    (folder / "README.md").symlink_to(tmp_path / "absent")
    with pytest.raises(OSError, match=r"^quantize: .*model/README\.md cannot be copied: .*No such file"):
        sparsed.quantize(folder, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_a_folder_inside_of_the_model_is_not_copied_into_itself(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    sparsed.quantize(folder, folder / "int8")
    assert {path.name for path in (folder / "int8").iterdir()} == {"config.json", "model.safetensors"}


def test_the_writer_checks_what_it_writes(tmp_path) -> None:
    one = np.ones((2, 3), np.float32)
    layout = {"a": (one.dtype, (2, 3)), "b": (one.dtype, (2, 3))}
    for arrays in ([("a", one)], [("b", one), ("a", one)], [("a", one.T), ("b", one)]):
        with pytest.raises(ValueError, match="^write_safetensors: "):
            write_safetensors(tmp_path / "x.safetensors", layout, arrays)
        assert not (tmp_path / "x.safetensors").exists()
    write_safetensors(tmp_path / "x.safetensors", layout, [("a", one), ("b", 2 * one)])
    file = SafetensorsFile(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(file.array("b"), 2 * one)


# Commands -----------------------------------------------------------------------------------------------------------

QUESTION = "the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"


def test_the_command_takes_paths_below_the_home_folder(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "model", tiny_config("llada_8b"))
    assert main(["quantize", "~/model", "~/int8"]) == 0
    sizes = re.fullmatch(r"~/int8: ([\d.]+) MiB of weights, ([\d.]+) MiB before\n", capsys.readouterr().out)
    assert sizes and 0 < float(sizes[1]) < float(sizes[2])


def test_commands_end_to_end(tmp_path, capsys) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = str(tmp_path / "int8")
    assert main(["quantize", "demo", out, "--calibrate", str(tmp_path / "text.txt")]) == 0
    sizes = [sum(tensor.nbytes for tensor in stored(Path(folder)).values()) for folder in (out, demo_model_folder())]
    after, before = (f"{size / 2**20:.1f} MiB" for size in sizes)
    assert capsys.readouterr().out == f"{out}: {after} of weights, {before} before\n"
    options = ["--gen-length", "8", "--steps", "8", "--dense", "--stats"]
    for model in ([out], ["demo", "--weights", "int8"]):
        assert main(["generate", *model[:1], QUESTION, *model[1:], *options]) == 0
        captured = capsys.readouterr()
        assert captured.out == "zileba is 107 ;\n"
        assert "int8 weights" in captured.err
    assert main(["info", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    size = (Path(out) / "model.safetensors").stat().st_size / 2**20
    assert re.fullmatch(rf"int8 and .*, {size:.1f} MiB", facts["weights"])
    nbytes = sparsed.load_model(out).nbytes / 2**20
    assert math.isclose(float(facts["memory"].removesuffix(" MiB of weights after loading")), nbytes, rel_tol=0.1)
    assert main(["quantize", out, str(tmp_path / "again")]) == 2
    assert "int8 already" in capsys.readouterr().err
    assert main(["quantize", "demo", out]) == 2
    assert "error: OUT_DIR is '" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "absent"), out]) == 2
    assert "error: MODEL_DIR is '" in capsys.readouterr().err
    assert main(["generate", "demo", QUESTION, "--weights", "int8", "--engine", "torch"]) == 2
    assert "--weights is 'int8' and engine is 'torch', expected engine 'native'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_keeps_apart_what_other_weights_answered(tmp_path, capsys) -> None:
    options = "eval demo --tasks niah_single_1 --lengths 256 --samples 1 --methods dense --out".split()
    out = str(tmp_path / "results")
    assert main([*options, out, "--weights", "int8"]) == 0
    plan = json.loads((tmp_path / "results" / "plan.json").read_text())
    assert plan["weights"] == "int8" and plan["dtype"] == sparsed.load_model("demo").dtype
    assert main([*options, out]) == 2
    assert "plan.json" in capsys.readouterr().err
