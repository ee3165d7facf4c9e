"""GGUF files: the same weights, config and logits as the checkpoint that they were made from."""

from __future__ import annotations

import dataclasses
import json
import sys

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import sparsed
from sparsed.apps.cli import main
from sparsed.models.gguf import GgufCheckpoint
from sparsed.models.gguf_config import read_gguf_config
from sparsed.models.gguf_file import GgufFile
from sparsed.models.loader import read_config
from tiny_checkpoint import BFLOAT16, random_tensors, reference_logits, tiny_config, write_checkpoint
from tiny_gguf import bfloat16, decoded_blocks, gguf_tensors, random_blocks, write_gguf

IDS = np.arange(3, 15)[None]
# The published models that llama.cpp converts; the last one has grouped heads and a tied head.
MODELS = ["llada_8b", "dream_7b", "illada_llada_keys"]
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": BFLOAT16}
# Rows are whole blocks of Q8_0, and of Q4_K and Q6_K.
BLOCKS = {"mlp_hidden_size": 128}
WIDE = {
    "llada_8b": {"d_model": 256, "mlp_hidden_size": 512},
    "dream_7b": {"hidden_size": 256, "intermediate_size": 512},
}


def open_file(path):
    file = GgufFile(path, "load_model")
    config, architecture = read_gguf_config(file)
    return GgufCheckpoint(file, config), config, architecture


def original_names(values, tensors):
    """The name in the checkpoint of each tensor of a GGUF file."""
    numbered = {name: np.full((8, 2), i, np.float32) for i, name in enumerate(tensors)}
    by_number = list(tensors)
    return {name: by_number[int(tensor[0, 0])] for name, tensor in gguf_tensors(values, numbered).items()}


# Weights and logits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", list(DTYPES))
def test_weights_are_those_of_the_checkpoint(tmp_path, name, kind) -> None:
    values = tiny_config(name)
    tensors = random_tensors(values, DTYPES[kind])
    checkpoint, _, _ = open_file(write_gguf(tmp_path / "model.gguf", values, tensors, kind))
    names = original_names(values, tensors)
    assert set(checkpoint.tensors) == set(names)
    for place, original in names.items():
        array = checkpoint.array(place)
        assert array.dtype == (tensors[original].dtype if array.ndim == 2 else np.float32)
        assert array.shape == checkpoint.tensors[place].shape
        assert np.array_equal(array, tensors[original].astype(array.dtype)), place
    assert sum(array.nbytes for _, array in checkpoint.stream()) == checkpoint.nbytes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", list(DTYPES))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_the_checkpoint(tmp_path, name, kind, dtype) -> None:
    values = tiny_config(name)
    tensors = random_tensors(values, DTYPES[kind])
    path = write_gguf(tmp_path / "model.gguf", values, tensors, kind)
    norms = {key: value if value.ndim == 2 else value.astype(np.float32) for key, value in tensors.items()}
    folder = write_checkpoint(tmp_path / "folder", values, norms)
    expected = sparsed.load_model(folder, dtype).forward(IDS)
    assert np.array_equal(sparsed.load_model(path, dtype).forward(IDS), expected)


@pytest.mark.parametrize("name", list(WIDE))
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K"])
def test_quantised_weights(tmp_path, name, kind) -> None:
    values = tiny_config(name, **WIDE[name])
    values |= {"n_layers": 1} if name == "llada_8b" else {"num_hidden_layers": 1}
    tensors = random_tensors(values)
    names = original_names(values, tensors)
    # The blocks that the file holds, decoded by themselves and put back into the order of the checkpoint.
    blocks, decoded = {}, {}
    for number, (original, tensor) in enumerate(tensors.items()):
        if tensor.ndim == 2:
            if kind == "Q8_0":
                blocks[original] = gguf.quants.quantize(tensor, Kind.Q8_0)
            else:
                blocks[original] = random_blocks(kind, *tensor.shape, seed=number)
            decoded[original] = decoded_blocks(kind, blocks[original])
    path = write_gguf(tmp_path / "model.gguf", values, tensors | blocks, kind)
    checkpoint, _, _ = open_file(path)
    for place, original in names.items():
        array = checkpoint.array(place)
        if original in decoded:
            assert array.dtype == checkpoint.tensors[place].dtype == BFLOAT16
            # A block's product is rounded to float32 before it is rounded to bfloat16, which may tip a tie.
            assert np.allclose(array.astype(np.float64), decoded[original], rtol=2.0**-8 + 1e-6, atol=1e-9)
            library = bfloat16(gguf.quants.dequantize(blocks[original], Kind[kind]))
            assert np.array_equal(array, library), place
        else:
            assert np.array_equal(array, tensors[original])
    rounded = tensors | {original: bfloat16(value) for original, value in decoded.items()}
    folder = write_checkpoint(tmp_path / "folder", values, rounded)
    for dtype in ("float32", "bfloat16"):
        ours = sparsed.load_model(path, dtype).forward(IDS)
        expected = sparsed.load_model(folder, dtype).forward(IDS)
        assert np.array_equal(ours, expected) or kind != "Q8_0"  # exact in float32: a half times an int8
        assert np.abs(ours - expected).max() <= 0.05 * np.abs(expected).max()


def test_a_file_of_mixed_types_like_q4_k_m(tmp_path) -> None:
    values = tiny_config("llada_8b", **WIDE["llada_8b"])
    tensors = random_tensors(values)
    places = gguf_tensors(values, tensors)
    kinds = {place: "Q6_K" if "attn_v" in place or place == "output.weight" else "Q4_K" for place in places}
    blocks = {
        original: random_blocks(kinds[place], *tensors[original].shape, seed=3)
        for place, original in original_names(values, tensors).items()
        if tensors[original].ndim == 2
    }
    kinds = {place: kind for place, kind in kinds.items() if places[place].ndim == 2}
    path = write_gguf(tmp_path / "model.gguf", values, tensors | blocks, kinds=kinds)
    model = sparsed.load_model(path, "bfloat16")
    decoded = {
        original: gguf.quants.dequantize(blocks[original], Kind[kinds[place]])
        for place, original in original_names(values, tensors).items()
        if original in blocks
    }
    expected = reference_logits(values, tensors | decoded, IDS)
    logits = model.forward(IDS).astype(np.float64)
    assert np.abs(logits - expected).max() <= 0.05 * np.abs(expected).max()


def test_tensors_of_many_rows_are_dequantised_in_parts(tmp_path, monkeypatch) -> None:
    values = tiny_config("llada_8b", **BLOCKS)
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), "Q8_0")
    whole = {name: array.copy() for name, array in open_file(path)[0].stream()}
    monkeypatch.setattr("sparsed.models.gguf._CHUNK_VALUES", 200)
    for name, array in open_file(path)[0].stream():
        assert np.array_equal(array, whole[name])


# Config -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_config_is_that_of_the_checkpoint(tmp_path, name) -> None:
    values = tiny_config(name)
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values))
    expected, *_ = read_config(write_checkpoint(tmp_path / "folder", values))
    config, *_ = read_config(path)
    assert config == expected
    assert read_config(path.parent)[0] == config  # the folder that holds the file


def test_keys_of_the_tokenizer(tmp_path) -> None:
    values = tiny_config("dream_7b")
    tokens = [f"[PAD{i}]" for i in range(values["vocab_size"])]
    tokens[7] = "<|im_end|>"
    more = {"tokenizer.ggml.eot_token_id": 8, "tokenizer.ggml.tokens": tokens}
    more["tokenizer.ggml.eos_token_id"] = 5
    config, *_ = read_config(write_gguf(tmp_path / "model.gguf", values, random_tensors(values), metadata=more))
    assert (config.eos_token_id, config.end_token_ids) == (5, (5, 8, 7))


@pytest.mark.parametrize(("name", "shifted"), [("llada_8b", True), ("dream_7b", False)])
def test_the_file_says_whether_logits_are_shifted(tmp_path, name, shifted) -> None:
    values = tiny_config(name)
    path = tmp_path / "model.gguf"
    write_gguf(path, values, random_tensors(values), metadata={"diffusion.shift_logits": shifted})
    config, *_ = read_config(path)
    assert config.shift_logits is shifted
    write_gguf(path, values, random_tensors(values), metadata={"diffusion.shift_logits": ...})
    assert read_config(path)[0] == dataclasses.replace(config, shift_logits=not shifted)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llada.block_count": ...}, "llada.block_count is missing, expected an integer"),
        ({"llada.attention.head_count": 0}, "llada.attention.head_count is 0, expected an integer"),
        (
            {"llada.attention.head_count": 5, "llada.rope.dimension_count": ...},
            "llada.attention.head_count is 5, expected a multiple of llada.attention.head_count_kv 4",
        ),
        ({"llada.attention.layer_norm_rms_epsilon": ...}, "layer_norm_rms_epsilon is missing, expected a number"),
        ({"llada.rope.freq_base": ...}, "llada.rope.freq_base is missing, expected a number above 0"),
        ({"llada.rope.freq_base": float("nan")}, "llada.rope.freq_base is NaN, expected a number above 0"),
        ({"llada.rope.scaling.type": "yarn"}, 'llada.rope.scaling.type is "yarn", expected "none"'),
        ({"llada.rope.scaling.factor": 4.0}, "llada.rope.scaling.factor is 4.0, expected no such key"),
        ({"llada.rope.dimension_count": 8}, "llada.rope.dimension_count is 8, expected 16"),
        ({"llada.attention.key_length": 32}, "llada.attention.key_length is 32, expected 16"),
        ({"llada.attention.causal": True}, "llada.attention.causal is true, expected false"),
        ({"llada.attention.clamp_kqv": 8.0}, "llada.attention.clamp_kqv is 8.0, expected no such key"),
        ({"llada.expert_count": 4}, "llada.expert_count is 4, expected no such key"),
        ({"diffusion.shift_logits": 2}, "diffusion.shift_logits is 2, expected true or false"),
        ({"tokenizer.ggml.mask_token_id": ...}, "tokenizer.ggml.mask_token_id is missing, expected a token id below"),
        ({"tokenizer.ggml.mask_token_id": 96}, "tokenizer.ggml.mask_token_id is 96, expected a token id below 96"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is something else, expected an array of texts"),
        ({"split.count": 3}, "is one of 3 parts, expected a whole file.*--merge"),
    ],
)
def test_metadata_that_is_not_supported(tmp_path, metadata, message) -> None:
    values = tiny_config("llada_8b")
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), metadata=metadata)
    with pytest.raises(ValueError, match=message) as error:
        sparsed.load_model(path)
    assert "model.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("llada-moe", "'llada-moe', expected one of .*LLaDA-MoE, a mixture of experts"),
        ("llama", "'llama', expected one of .*autoregressive"),
        ("rnd1", "'rnd1', expected one of .*RND1"),
    ],
)
def test_other_architectures_are_named(tmp_path, arch, message) -> None:
    values = tiny_config("llada_8b")
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), arch=arch)
    with pytest.raises(ValueError, match=f"^load_model: general.architecture is {message}.*model.gguf"):
        sparsed.load_model(path)


# Tensors ------------------------------------------------------------------------------------------------------------


def test_missing_and_extra_tensors_are_named(tmp_path) -> None:
    values = tiny_config("llada_8b")
    tensors = random_tensors(values)
    path = tmp_path / "model.gguf"
    less = {name: tensor for name, tensor in tensors.items() if not name.endswith("1.k_proj.weight")}
    with pytest.raises(ValueError, match=r"tensors missing in .*model\.gguf: blk\.1\.attn_k\.weight"):
        sparsed.load_model(write_gguf(path, values, less))
    more = tensors | {"model.transformer.blocks.0.q_proj.bias": np.zeros(64, np.float32)}
    with pytest.raises(ValueError, match=r"tensors not expected in .*model\.gguf: blk\.0\.attn_q\.bias"):
        sparsed.load_model(write_gguf(path, values, more))
    other = tensors | {"model.transformer.blocks.0.ff_proj.weight": np.zeros((113, 64), np.float32)}
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_gate\.weight has shape \[113, 64\], expected \[112, 64\]"):
        sparsed.load_model(write_gguf(path, values, other))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q5_K", "IQ4_XS", "MXFP4"])
def test_other_quantisations_are_named(tmp_path, kind) -> None:
    values = tiny_config("llada_8b", **WIDE["llada_8b"])
    tensors = random_tensors(values)
    block, nbytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    name = "model.transformer.blocks.0.v_proj.weight"
    rows, columns = tensors[name].shape
    blocks = {name: np.zeros((rows, columns // block * nbytes), np.uint8)}
    path = write_gguf(tmp_path / "model.gguf", values, tensors | blocks, kinds={"blk.0.attn_v.weight": kind})
    message = rf"model\.gguf: tensor 'blk\.0\.attn_v\.weight' has the type {kind}, expected one of F32, F16, Q8_0, Q4_K"
    with pytest.raises(ValueError, match=message):
        sparsed.load_model(path)


def test_memory_is_asked_for_before_anything_is_read(tmp_path, monkeypatch) -> None:
    values = tiny_config("llada_8b", **WIDE["llada_8b"])
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), "Q8_0")
    asked = []

    def refuse(num_bytes, what):
        asked.append(num_bytes)
        raise MemoryError(what)

    monkeypatch.setattr("sparsed.kernels.ops.require_memory", refuse)
    with pytest.raises(MemoryError, match=r"^load_model: the weights"):
        sparsed.load_model(path, "float32")
    tensors = random_tensors(values).values()
    # Matrices in bfloat16, the others in float32, and the largest one once more while it is packed.
    stored = sum(tensor.size * (2 if tensor.ndim == 2 else 4) for tensor in tensors)
    assert asked == [stored + 2 * max(tensor.size for tensor in tensors)]


def test_files_of_plain_types_need_no_package(tmp_path, monkeypatch) -> None:
    values = tiny_config("llada_8b", **BLOCKS)
    plain = write_gguf(tmp_path / "plain.gguf", values, random_tensors(values), "F16")
    quantised = write_gguf(tmp_path / "quantised.gguf", values, random_tensors(values), "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    assert sparsed.load_model(plain).forward(IDS).shape == (1, 12, 96)
    with pytest.raises(ImportError, match=r"quantised\.gguf has tensors of the type Q8_0.*pip install"):
        sparsed.load_model(quantised)


def test_info_tells_the_file_from_the_memory(tmp_path, capsys) -> None:
    values = tiny_config("llada_8b", **BLOCKS)
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), "Q8_0")
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["weights"] == f"Q8_0 and F32, {path.stat().st_size / 2**20:.1f} MiB"
    model = sparsed.load_model(path)
    loaded = float(facts["memory"].removesuffix(" MiB of weights after loading"))
    assert abs(loaded - model.nbytes / 2**20) < 0.1


# Folders ------------------------------------------------------------------------------------------------------------


def test_folders_with_several_files(tmp_path) -> None:
    values = tiny_config("llada_8b", **BLOCKS)
    tensors = random_tensors(values)
    write_gguf(tmp_path / "a-F32.gguf", values, tensors)
    write_gguf(tmp_path / "a-Q8_0.gguf", values, tensors, "Q8_0")
    for load in (sparsed.load_model, sparsed.load_tokenizer):
        message = rf"^{load.__name__}: .* holds 2 GGUF files, expected the path of one of them: a-F32\.gguf, a-Q8_0"
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    write_checkpoint(tmp_path, values, tensors)  # safetensors go first
    expected = sparsed.load_model(tmp_path / "a-F32.gguf", "float32").forward(IDS)
    assert np.array_equal(sparsed.load_model(tmp_path, "float32").forward(IDS), expected)


def test_a_folder_with_one_file_and_a_config(tmp_path) -> None:
    values = tiny_config("llada_8b")
    (tmp_path / "config.json").write_text(json.dumps(values | {"n_layers": 7}))  # the file speaks for itself
    write_gguf(tmp_path / "model.gguf", values, random_tensors(values))
    assert sparsed.load_model(tmp_path).config.num_layers == 2


def test_torch_engine(tmp_path) -> None:
    pytest.importorskip("torch")
    values = tiny_config("llada_8b", **BLOCKS)
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), "Q8_0")
    expected = sparsed.load_model(path, "float32").forward(IDS)
    logits = sparsed.load_model(path, "float32", engine="torch").forward(IDS)
    assert np.allclose(np.asarray(logits), expected, atol=1e-4)
