"""Checkpoint folders: what loads, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import sparsed
from paths import DATA
from published_configs import PUBLISHED
from tiny_checkpoint import BFLOAT16, random_tensors, tiny_config, write_checkpoint
from tolerances import ORDER

IDS = np.arange(12)[None]


# Folders ------------------------------------------------------------------------------------------------------------


def test_missing_files_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^load_model: folder is .*absent"):
        sparsed.load_model(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        sparsed.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^load_model: folder is .*config\.json"):
        (tmp_path / "config.json").write_text(json.dumps(tiny_config("llada_8b")))
        sparsed.load_model(tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "nonsense", '{"a": ' * 100_000])
def test_damaged_config_is_named(tmp_path, text) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds a JSON list)"):
        sparsed.load_model(tmp_path)


def test_config_that_is_not_utf8_is_named(tmp_path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"config\.json is not UTF-8"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bf16", None, np.float16, np.dtype("float64"), np.dtype(np.int32), float, object, 4, ["float32"]],
)
def test_unknown_dtype(dtype) -> None:
    with pytest.raises(ValueError, match=r"^load_model: dtype is .*, expected one of \['auto', 'float32', "):
        sparsed.load_model(DATA / "llada_b32", dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "float32"),
        (np.dtype("float32"), "float32"),
        (np.dtype(">f4"), "float32"),
        ("torch.float32", "float32"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (BFLOAT16, "bfloat16"),
    ],
)
def test_dtypes_of_numpy_and_ml_dtypes(dtype, name) -> None:
    assert sparsed.load_model(DATA / "llada_b32", dtype=dtype).dtype == name


@pytest.mark.parametrize("name", ["llada_8b", "dream_7b", "illada_8b"])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_equal_one_file(tmp_path, name, shards) -> None:
    values = tiny_config(name)
    one = sparsed.load_model(write_checkpoint(tmp_path / "one", values))
    many = sparsed.load_model(str(write_checkpoint(tmp_path / "many", values, shards=shards)))
    assert np.array_equal(one.forward(IDS), many.forward(IDS))


def test_links_to_shards_are_followed(tmp_path) -> None:
    write_checkpoint(tmp_path / "blobs", tiny_config("llada_8b"), shards=2)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in (tmp_path / "blobs").iterdir():
        os.symlink(Path("..") / "blobs" / file.name, folder / file.name)
    assert sparsed.load_model(folder).forward(IDS).shape == (1, 12, 96)


def test_memory_is_asked_for_before_anything_is_packed(tmp_path, monkeypatch) -> None:
    tensors = random_tensors(tiny_config("llada_8b"), BFLOAT16)
    write_checkpoint(tmp_path, tiny_config("llada_8b"), tensors)
    asked = []

    def refuse(num_bytes, what):
        asked.append(num_bytes)
        raise MemoryError(f"{what} need {num_bytes} bytes")

    monkeypatch.setattr("sparsed.kernels.ops.require_memory", refuse)
    monkeypatch.setattr("sparsed.kernels.ops.pack_weights", None)
    with pytest.raises(MemoryError, match=r"^load_model: the weights"):
        sparsed.load_model(tmp_path)
    assert asked == [sum(tensor.nbytes for tensor in tensors.values())]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_no_file_stays_mapped() -> None:
    model = sparsed.load_model(DATA / "llada_b128")
    assert "llada_b128/model-" not in Path("/proc/self/maps").read_text()
    assert model.forward(IDS).shape == (1, 12, 200)


@pytest.mark.parametrize("name", ["llada_8b", "dream_7b"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_do_not_change_with_their_files(tmp_path, name, tied) -> None:
    key = "weight_tying" if name == "llada_8b" else "tie_word_embeddings"
    values = tiny_config(name, **{key: tied})
    model = sparsed.load_model(write_checkpoint(tmp_path, values))
    before = model.forward(IDS)
    for file in tmp_path.glob("*.safetensors"):  # in place, as another run of a training script writes it
        size = file.stat().st_size
        with open(file, "r+b") as stream:
            stream.write(b"\x11" * size)
        assert np.array_equal(model.forward(IDS), before)
        os.truncate(file, 0)
        assert np.array_equal(model.forward(IDS), before)


def test_weights_outlive_their_folder(tmp_path) -> None:
    values = tiny_config("dream_7b")
    model = sparsed.load_model(write_checkpoint(tmp_path / "model", values))
    before = model.forward(IDS)
    shutil.rmtree(tmp_path / "model")
    assert np.array_equal(model.forward(IDS), before)


@pytest.mark.parametrize("name", PUBLISHED)
def test_stored_bfloat16_stays_two_bytes(tmp_path, name) -> None:
    values = tiny_config(name)
    narrow = sparsed.load_model(write_checkpoint(tmp_path / "a", values, random_tensors(values, BFLOAT16)))
    wide = sparsed.load_model(write_checkpoint(tmp_path / "b", values, random_tensors(values, np.float32)))
    rounded = sparsed.load_model(tmp_path / "b", dtype="bfloat16")
    assert narrow.nbytes == rounded.nbytes < 0.6 * wide.nbytes


def test_mixed_dtypes_in_one_projection(tmp_path) -> None:
    values = tiny_config("llada_8b")
    tensors = random_tensors(values, BFLOAT16)
    same = sparsed.load_model(write_checkpoint(tmp_path / "a", values, tensors), "float32")
    wide = {
        name: tensor.astype(np.float32) if "k_proj" in name or "up_proj" in name else tensor
        for name, tensor in tensors.items()
    }
    mixed = sparsed.load_model(write_checkpoint(tmp_path / "b", values, wide), "float32")
    np.testing.assert_allclose(mixed.forward(IDS), same.forward(IDS), atol=ORDER)


# Tensors ------------------------------------------------------------------------------------------------------------


def test_missing_tensors_are_named(tmp_path) -> None:
    values = tiny_config("dream_7b")
    tensors = random_tensors(values)
    del tensors["model.layers.1.self_attn.k_proj.bias"], tensors["model.norm.weight"]
    write_checkpoint(tmp_path, values, tensors)
    with pytest.raises(ValueError, match=r"missing in .*: model\.layers\.1\.self_attn\.k_proj\.bias, model\.norm\."):
        sparsed.load_model(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path) -> None:
    write_checkpoint(tmp_path, tiny_config("dream_7b"), {"model.norm.weight": np.ones(64, np.float32)})
    with pytest.raises(ValueError, match=r"missing in .* and 21 more$"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("llada_8b", "model.transformer.blocks.0.q_proj.bias"),
        ("llada_8b", "model.transformer.blocks.2.q_proj.weight"),
        ("llada_8b", "model.transformer.blocks.0.q_norm.weight"),
        ("dream_7b", "model.layers.0.self_attn.o_proj.bias"),
    ],
)
def test_extra_tensors_are_named_with_their_file(tmp_path, name, extra) -> None:
    values = tiny_config(name)
    write_checkpoint(tmp_path, values, random_tensors(values) | {extra: np.ones(64, np.float32)})
    with pytest.raises(ValueError, match=rf"not expected in .*model\.safetensors: {extra}$"):
        sparsed.load_model(tmp_path)


def test_misshapen_tensors_are_named_with_their_file(tmp_path) -> None:
    values = tiny_config("llada_8b")
    tensors = random_tensors(values)
    name = "model.transformer.blocks.1.ff_out.weight"
    write_checkpoint(tmp_path, values, tensors | {name: tensors[name].T.copy()}, shards=2)
    with pytest.raises(ValueError, match=rf"tensor {name} has shape \[112, 64\], expected \[64, 112\] \(in .*-of-0"):
        sparsed.load_model(tmp_path)


def test_rotary_buffers_are_ignored(tmp_path) -> None:
    values = tiny_config("dream_7b")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in range(2)}
    model = sparsed.load_model(write_checkpoint(tmp_path / "a", values, random_tensors(values) | buffers))
    plain = sparsed.load_model(write_checkpoint(tmp_path / "b", values))
    assert np.array_equal(model.forward(IDS), plain.forward(IDS))


@pytest.mark.parametrize(
    ("name", "embedding", "head"),
    [
        ("illada_8b", "model.embed_tokens.weight", "lm_head.weight"),
        ("illada_llada_keys", "model.transformer.wte.weight", "model.transformer.ff_out.weight"),
    ],
)
def test_tied_weights_come_under_either_name(tmp_path, name, embedding, head) -> None:
    values = tiny_config(name)
    tensors = random_tensors(values)
    expected = sparsed.load_model(write_checkpoint(tmp_path / "a", values, tensors)).forward(IDS)
    both = tensors | {head: tensors[embedding]}
    assert np.array_equal(sparsed.load_model(write_checkpoint(tmp_path / "b", values, both)).forward(IDS), expected)
    only_head = {key: tensor for key, tensor in both.items() if key != embedding}
    assert np.array_equal(
        sparsed.load_model(write_checkpoint(tmp_path / "c", values, only_head)).forward(IDS), expected
    )
    other = tensors | {head: tensors[embedding] + 1}
    with pytest.raises(ValueError, match=f"{embedding} and {head} differ"):
        sparsed.load_model(write_checkpoint(tmp_path / "d", values, other))
    neither = {key: tensor for key, tensor in tensors.items() if key != embedding}
    with pytest.raises(ValueError, match=f"missing in .*{embedding}"):
        sparsed.load_model(write_checkpoint(tmp_path / "e", values, neither))


# The index of shards ------------------------------------------------------------------------------------------------


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "sub/part.safetensors", "..", "", 7, "model.bin"]
)
def test_index_that_points_elsewhere(tmp_path, shard) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"), shards=2)
    change_index(tmp_path, lambda weight_map: weight_map.update({"model.transformer.ln_f.weight": shard}))
    with pytest.raises(ValueError, match=r"puts model\.transformer\.ln_f\.weight into .*, expected a \.safetensors"):
        sparsed.load_model(tmp_path)


def test_index_that_disagrees_with_its_shards(tmp_path) -> None:
    write_checkpoint(tmp_path / "a", tiny_config("llada_8b"), shards=2)
    change_index(tmp_path / "a", lambda weight_map: weight_map.update({"ghost": "model-00001-of-00002.safetensors"}))
    with pytest.raises(ValueError, match=r"tensors not in .*model-00001-of-00002\.safetensors: ghost"):
        sparsed.load_model(tmp_path / "a")
    write_checkpoint(tmp_path / "b", tiny_config("llada_8b"), shards=2)
    change_index(tmp_path / "b", lambda weight_map: weight_map.pop("model.transformer.ln_f.weight"))
    with pytest.raises(ValueError, match=r"not listed by .* for .*-of-00002\.safetensors: model\.transformer\.ln_f"):
        sparsed.load_model(tmp_path / "b")
    (tmp_path / "a" / "model-00002-of-00002.safetensors").unlink()
    change_index(tmp_path / "a", lambda weight_map: weight_map.pop("ghost"))
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors does not exist, but .* lists it"):
        sparsed.load_model(tmp_path / "a")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_index_without_a_map(tmp_path, index) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"), shards=1)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="has no weight_map"):
        sparsed.load_model(tmp_path)
