"""Models with int8 weights: quantised while loading, from folders of `quantize`, and from folders of llmcompressor."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsed
from sparsed.apps.cli import main
from sparsed.models.safetensors import SafetensorsFile
from tiny_checkpoint import BFLOAT16, PUBLISHED, random_tensors, reference_logits, tiny_config, write_checkpoint
from tolerances import TINY_LOGITS

CLEAR = 2e-4  # float32 decides the rounding of an activation that is this far, in steps of int8, from the next tie
LENGTH = 3


def stored(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder."""
    file = SafetensorsFile(folder / "model.safetensors")
    return {name: np.array(file.array(name)) for name in file.tensors}


def clear_ids(values: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids for which no activation is close to a tie of its rounding, and their logits in float64."""
    for seed in range(100):
        ids = np.random.default_rng(seed).integers(0, 90, (1, LENGTH))
        margins: list[float] = []
        logits = reference_logits(values, tensors, ids, margins=margins)
        if margins and min(margins) > CLEAR:
            return ids, logits
    raise AssertionError("every input has an activation that is close to a tie")


def check(model: sparsed.models.Transformer, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    ids, expected = clear_ids(values, tensors)
    np.testing.assert_allclose(model.forward(ids), expected, atol=TINY_LOGITS)


def llmcompressor_scheme(**changes: Any) -> dict[str, Any]:
    """`quantization_config` as llmcompressor writes it for W8A8: a dump of QuantizationConfig with every field."""
    common = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None}
    common |= {"actorder": None, "scale_dtype": None, "zp_dtype": None, "observer_kwargs": {}}
    group = {
        "targets": ["Linear"],
        "weights": common | {"strategy": "channel", "dynamic": False, "observer": "memoryless_minmax"},
        "input_activations": common | {"strategy": "token", "dynamic": True, "observer": None},
        "output_activations": None,
        "format": "int-quantized",
    }
    return {
        "version": "0.17.1",
        "quant_method": "compressed-tensors",
        "sparsity_config": {},
        "transform_config": {},
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": HEADS,
    } | changes


HEADS = ["lm_head", "model.transformer.ff_out"]


def llmcompressor_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers as llmcompressor stores them: bfloat16 scales of the largest value / 127.5, integers from -128."""
    found = {}
    for name, tensor in tensors.items():
        layer = ".layers." in name or ".blocks." in name
        if tensor.ndim != 2 or not layer:
            found[name] = tensor
            continue
        weight = tensor.astype(np.float32)
        scale = (np.abs(weight).max(axis=1, keepdims=True) / 127.5).astype(ml_dtypes.bfloat16)
        found[name] = np.clip(np.rint(weight / scale.astype(np.float32)), -128, 127).astype(np.int8)
        found[f"{name}_scale"] = scale
    return found


# Loading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_folders_of_llmcompressor(tmp_path, name) -> None:
    values = tiny_config(name)
    tensors = llmcompressor_tensors(random_tensors(values, BFLOAT16))
    assert any((tensor == -128).any() for tensor in tensors.values() if tensor.dtype == np.int8)
    folder = write_checkpoint(tmp_path, values | {"quantization_config": llmcompressor_scheme()}, tensors)
    model = sparsed.load_model(folder, "float32")
    assert (model.dtype, model.weights) == ("float32", "int8")
    check(model, values, tensors)


@pytest.mark.parametrize("name", PUBLISHED)
def test_folders_of_quantize(tmp_path, name) -> None:
    values = tiny_config(name)
    folder = write_checkpoint(tmp_path / "model", values, random_tensors(values, BFLOAT16), shards=2)
    sparsed.quantize(folder, tmp_path / "int8")
    tensors = stored(tmp_path / "int8")
    model = sparsed.load_model(tmp_path / "int8", "float32")
    assert model.weights == "int8"
    check(model, values, tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llada_8b", "dream_7b", "illada_8b"])
def test_quantising_while_loading_gives_the_model_of_the_folder(tmp_path, name, dtype) -> None:
    values = tiny_config(name)
    folder = write_checkpoint(tmp_path / "model", values, random_tensors(values, BFLOAT16))
    sparsed.quantize(folder, tmp_path / "int8")
    ids = np.random.default_rng(0).integers(0, 90, (2, 9))
    model = sparsed.load_model(folder, dtype, weights="int8")
    assert model.weights == "int8"
    for weights in ("auto", "int8"):
        other = sparsed.load_model(tmp_path / "int8", dtype, weights=weights)
        np.testing.assert_array_equal(model.forward(ids), other.forward(ids))
        assert model.nbytes == other.nbytes


def test_int8_stays_near_the_model(tmp_path) -> None:
    values = tiny_config("llada_8b")
    folder = write_checkpoint(tmp_path, values)
    ids = np.random.default_rng(0).integers(0, 90, (2, 21))
    expected = sparsed.load_model(folder).forward(ids)
    error = sparsed.load_model(folder, weights="int8").forward(ids) - expected
    assert 0 < np.sqrt(np.mean(error**2)) < 0.06 * np.sqrt(np.mean(expected**2))


def test_int8_takes_half_of_the_memory_of_bfloat16(tmp_path) -> None:
    values = tiny_config("llada_8b", n_layers=8)
    folder = write_checkpoint(tmp_path, values, random_tensors(values, BFLOAT16))
    wide, narrow = (sparsed.load_model(folder, weights=weights).nbytes for weights in ("auto", "int8"))
    assert narrow < 0.65 * wide


@pytest.mark.parametrize("stored_int8", [False, True])
@pytest.mark.parametrize("name", ["llada_8b", "illada_8b"])
def test_the_memory_is_estimated(tmp_path, monkeypatch, name, stored_int8) -> None:
    values = tiny_config(name, **({"n_layers": 4} if name == "llada_8b" else {"num_hidden_layers": 4}))
    folder = write_checkpoint(tmp_path / "model", values, random_tensors(values, BFLOAT16))
    if stored_int8:
        sparsed.quantize(folder, tmp_path / "int8")
        folder = tmp_path / "int8"
    asked = []
    monkeypatch.setattr(sparsed.models.loader.ops, "require_memory", lambda num_bytes, _what: asked.append(num_bytes))
    model = sparsed.load_model(folder, "bfloat16", weights="int8")
    assert math.isclose(asked[0], model.nbytes, rel_tol=0.2)  # rows are padded, which counts in a tiny model


def test_the_torch_engine_refuses_int8(tmp_path) -> None:
    values = tiny_config("dream_7b")
    folder = write_checkpoint(tmp_path / "model", values)
    with pytest.raises(
        ValueError, match="^load_model: weights is 'int8' and engine is 'torch', expected engine 'native'"
    ):
        sparsed.load_model(folder, engine="torch", weights="int8")
    sparsed.quantize(folder, tmp_path / "int8")
    with pytest.raises(
        ValueError, match=r"^load_model: .*int8 holds int8 weights and engine is 'torch', expected engine"
    ):
        sparsed.load_model(tmp_path / "int8", engine="torch")


@pytest.mark.parametrize("weights", ["int4", "float32", None, 8])
def test_other_weights_are_refused(tmp_path, weights) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"))
    with pytest.raises(ValueError, match="^load_model: weights is .*, expected one of 'auto', 'int8'$"):
        sparsed.load_model(tmp_path, weights=weights)


# Schemes ------------------------------------------------------------------------------------------------------------


def changed(part: str, **fields: Any) -> dict[str, Any]:
    scheme = llmcompressor_scheme()
    group = scheme["config_groups"]["group_0"]
    return scheme | {"config_groups": {"group_0": group | {part: group[part] | fields}}}


NO_TARGETS = {"group_0": llmcompressor_scheme()["config_groups"]["group_0"] | {"targets": None}}
SCHEMES = {
    "fp8": (changed("weights", type="float"), 'weights.type is "float"'),
    "int4": (changed("weights", num_bits=4), "weights.num_bits is 4"),
    "groups": (changed("weights", strategy="group", group_size=128), "weights.group_size is 128"),
    "per tensor": (changed("weights", strategy="tensor"), 'weights.strategy is "tensor"'),
    "blocks": (changed("weights", strategy="block", block_structure=[128, 128]), "weights.block_structure is"),
    "asymmetric": (changed("weights", symmetric=False), "weights.symmetric is false"),
    "static": (changed("input_activations", dynamic=False), "input_activations.dynamic is false"),
    "per-tensor inputs": (changed("input_activations", strategy="tensor"), 'input_activations.strategy is "tensor"'),
    "asymmetric inputs": (changed("input_activations", symmetric=False), "input_activations.symmetric is false"),
    "4-bit inputs": (changed("input_activations", num_bits=4), "input_activations.num_bits is 4"),
    "a new field": (changed("weights", rotation="hadamard"), 'weights.rotation is "hadamard"'),
    "packed": (llmcompressor_scheme(format="pack-quantized"), 'format is "pack-quantized"'),
    "fp8 format": (llmcompressor_scheme(format="float-quantized"), 'format is "float-quantized"'),
    "mixed": (llmcompressor_scheme(format="mixed-precision"), 'format is "mixed-precision"'),
    "not compressed": (llmcompressor_scheme(quantization_status="frozen"), 'quantization_status is "frozen"'),
    "kv cache": (llmcompressor_scheme(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is"),
    "sparse": (llmcompressor_scheme(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config is"),
    "rotated": (llmcompressor_scheme(transform_config={"config_groups": {"u": {}}}), "transform_config is"),
    "no groups": (llmcompressor_scheme(config_groups={}), "config_groups is {}"),
    "a preset": (llmcompressor_scheme(config_groups={"W8A8": ["Linear"]}), r'config_groups.W8A8 is ["Linear"]'),
    "targets": (llmcompressor_scheme(config_groups=NO_TARGETS), "group_0.targets is null"),
    "ignore": (llmcompressor_scheme(ignore="lm_head"), 'ignore is "lm_head", expected a list of names'),
    "a wrong pattern": (llmcompressor_scheme(ignore=["re:("]), 'ignore is "re:(", expected a regular expression'),
    "a pattern without end": (llmcompressor_scheme(ignore=["re:a{99999999999}"]), "expected a regular expression"),
    "an unknown key": (llmcompressor_scheme(extra={"a": 1}), "extra is"),
}


@pytest.mark.parametrize("kind", SCHEMES)
def test_other_schemes_are_refused(tmp_path, kind) -> None:
    scheme, named = SCHEMES[kind]
    write_checkpoint(tmp_path, tiny_config("llada_8b", quantization_config=scheme))
    with pytest.raises(ValueError, match="^load_model: quantization_config.*of quantised weights only W8A8") as error:
        sparsed.load_model(tmp_path)
    assert named in str(error.value)


@pytest.mark.parametrize("part", ["weights", "input_activations"])
def test_weight_only_and_other_halves_are_refused(tmp_path, part) -> None:
    scheme = llmcompressor_scheme()
    scheme["config_groups"]["group_0"][part] = None
    write_checkpoint(tmp_path, tiny_config("llada_8b", quantization_config=scheme))
    with pytest.raises(ValueError, match=rf"group_0\.{part} is null, expected 8 bits"):
        sparsed.load_model(tmp_path)


def test_a_second_group_is_checked(tmp_path) -> None:
    scheme = llmcompressor_scheme()
    scheme["config_groups"]["group_1"] = changed("weights", num_bits=4)["config_groups"]["group_0"]
    write_checkpoint(tmp_path, tiny_config("llada_8b", quantization_config=scheme))
    with pytest.raises(ValueError, match=r"config_groups\.group_1\.weights\.num_bits is 4, expected 8"):
        sparsed.load_model(tmp_path)


# Tensors ------------------------------------------------------------------------------------------------------------


def folder_with(tmp_path: Path, change: Any, scheme: Any = ...) -> Path:
    """A folder of llmcompressor whose tensors `change` changed."""
    values = tiny_config("llada_8b", quantization_config=llmcompressor_scheme() if scheme is ... else scheme)
    tensors = llmcompressor_tensors(random_tensors(values, BFLOAT16))
    change(tensors)
    return write_checkpoint(tmp_path, values, tensors)


QUERY = "model.transformer.blocks.0.q_proj.weight"
NORM = "model.transformer.blocks.0.attn_norm.weight"
EMBEDDING = "model.transformer.wte.weight"
DOWN = "model.transformer.blocks.1.ff_out.weight"


def test_scales_are_needed(tmp_path) -> None:
    folder = folder_with(tmp_path, lambda tensors: tensors.pop(f"{DOWN}_scale"))
    with pytest.raises(ValueError, match=rf"^load_model: tensors missing in .*: {DOWN}_scale"):
        sparsed.load_model(folder)


def test_scales_have_one_column(tmp_path) -> None:
    folder = folder_with(tmp_path, lambda tensors: tensors.update({f"{DOWN}_scale": np.ones((64, 2), np.float32)}))
    with pytest.raises(ValueError, match=rf"^load_model: tensor {DOWN}_scale has shape \[64, 2\], expected \[64, 1\]"):
        sparsed.load_model(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_scales_are_finite(tmp_path, value) -> None:
    folder = folder_with(
        tmp_path, lambda tensors: tensors.update({f"{DOWN}_scale": np.full((64, 1), value, np.float32)})
    )
    with pytest.raises(ValueError, match=f"^load_model: {DOWN}_scale has a scale below 0 or not finite"):
        sparsed.load_model(folder)


@pytest.mark.parametrize("name", [NORM, EMBEDDING])
def test_only_linear_layers_are_int8(tmp_path, name) -> None:
    folder = folder_with(tmp_path, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
    with pytest.raises(ValueError, match=f"^load_model: tensor {name} is int8, expected floating .*only linear layers"):
        sparsed.load_model(folder)


def test_int8_needs_the_declaration(tmp_path) -> None:
    folder = folder_with(tmp_path, lambda tensors: None, scheme=None)
    with pytest.raises(ValueError, match=r"^load_model: tensor .* is int8.*config\.json has no quantization_config"):
        sparsed.load_model(folder)


def test_projections_of_one_input_are_int8_together(tmp_path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[QUERY] = tensors[QUERY].astype(np.float32)
        del tensors[f"{QUERY}_scale"]

    scheme = llmcompressor_scheme(ignore=[*HEADS, QUERY.removesuffix(".weight")])
    folder = folder_with(tmp_path, change, scheme=scheme)
    with pytest.raises(ValueError, match=f"^load_model: {QUERY} is float32, expected int8 like the other projections"):
        sparsed.load_model(folder)


def targets(*names: str) -> dict[str, Any]:
    """Changes of a scheme that give its group other targets."""
    group = llmcompressor_scheme()["config_groups"]["group_0"]
    return {"config_groups": {"group_0": group | {"targets": list(names)}}}


LEFT_OUT = {
    "by name": {"ignore": [*HEADS, DOWN.removesuffix(".weight")]},
    "by a pattern": {"ignore": [*HEADS, "re:.*blocks[.]1[.]ff_out$"]},
    "by the targets": targets("re:.*_proj$", "re:.*attn_out", "model.transformer.blocks.0.ff_out"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_layer_that_is_left_out_stays_float(tmp_path, kind) -> None:
    values = tiny_config("llada_8b")
    source = random_tensors(values, BFLOAT16)
    tensors = llmcompressor_tensors(source)
    tensors[DOWN] = source[DOWN]
    del tensors[f"{DOWN}_scale"]
    scheme = llmcompressor_scheme(**LEFT_OUT[kind])
    folder = write_checkpoint(tmp_path, values | {"quantization_config": scheme}, tensors)
    check(sparsed.load_model(folder, "float32"), values, tensors)


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("floats", ["one", "all"])
def test_layers_that_are_declared_are_int8(tmp_path, capsys, weights, floats) -> None:
    values = tiny_config("llada_8b", quantization_config=llmcompressor_scheme())
    source = random_tensors(values, BFLOAT16)
    tensors = source if floats == "all" else llmcompressor_tensors(source) | {DOWN: source[DOWN]}
    tensors.pop(f"{DOWN}_scale", None)
    folder = write_checkpoint(tmp_path, values, tensors)
    named = DOWN if floats == "one" else r"\S*"
    message = f"load_model: tensor {named} is bfloat16, expected int8: quantization_config in config.json declares it"
    with pytest.raises(ValueError, match=f"^{message}"):
        sparsed.load_model(folder, weights=weights)
    assert main(["info", str(folder)]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("changes", [{"ignore": ["Linear"]}, targets("re:encoder[.]"), targets()])
def test_a_scheme_declares_some_layers(tmp_path, changes) -> None:
    values = tiny_config("llada_8b", quantization_config=llmcompressor_scheme(**changes))
    with pytest.raises(ValueError, match="^load_model: quantization_config in config.json declares no layer of this"):
        sparsed.load_model(write_checkpoint(tmp_path, values))


def test_the_head_may_be_int8(tmp_path) -> None:
    values = tiny_config("dream_7b")
    folder = write_checkpoint(tmp_path / "model", values, random_tensors(values, BFLOAT16))
    sparsed.quantize(folder, tmp_path / "int8", keep=())
    tensors = stored(tmp_path / "int8")
    assert tensors["lm_head.weight"].dtype == np.int8
    check(sparsed.load_model(tmp_path / "int8", "float32"), values, tensors)


def test_config_of_quantize_is_the_published_scheme(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config("dream_7b"))
    sparsed.quantize(folder, tmp_path / "int8")
    found = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    expected = llmcompressor_scheme()
    assert found["ignore"] == ["lm_head"]
    assert found["config_groups"]["group_0"]["targets"] == expected["config_groups"]["group_0"]["targets"]
    for part in ("weights", "input_activations"):
        own = found["config_groups"]["group_0"][part]
        published = expected["config_groups"]["group_0"][part]
        assert set(own) <= set(published)
        names = ("num_bits", "type", "symmetric", "strategy", "dynamic", "group_size")
        assert {name: own[name] for name in names} == {name: published[name] for name in names}
    for name in ("quant_method", "format", "quantization_status"):
        assert found[name] == expected[name]
