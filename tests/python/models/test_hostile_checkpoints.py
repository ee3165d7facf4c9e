"""Checkpoint folders made to do harm: refused by name, before anything large is parsed or allocated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed
from sparsed.models.chat_template import render
from sparsed.models.safetensors import SafetensorsFile
from tiny_checkpoint import random_tensors, safetensors_bytes, tiny_config, write_checkpoint

CONFIGS = ("llada_8b", "illada_8b", "dream_7b")
LAYERS = {"llada_8b": "n_layers", "illada_8b": "num_hidden_layers", "dream_7b": "num_hidden_layers"}


def sparse_file(path: Path, begin: bytes, size: int) -> Path:
    """A file of `size` bytes that takes no room on disk: zeros after `begin`."""
    with open(path, "wb") as file:
        file.write(begin)
        file.truncate(size)
    return path


def with_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer_config.json"]
)
def test_json_of_a_billion_entries_is_refused_unread(tmp_path, name) -> None:
    if "index" in name:
        write_checkpoint(tmp_path, tiny_config("llada_8b"), shards=2)
    else:
        write_checkpoint(tmp_path, tiny_config("llada_8b"))
    sparse_file(tmp_path / name, b"[0,0,0,", 2_000_000_001)
    load = sparsed.load_tokenizer if "tokenizer" in name else sparsed.load_model
    with pytest.raises(ValueError, match=rf"{name} has 2000000001 bytes, expected at most 10000000$"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_tokenizers_of_a_billion_entries_are_refused_unread(tmp_path, name) -> None:
    sparse_file(tmp_path / name, b'{"a":0,', 2_000_000_001)
    (tmp_path / "merges.txt").touch()
    with pytest.raises(ValueError, match=rf"{name} has 2000000001 bytes, expected at most 100000000$"):
        sparsed.load_tokenizer(tmp_path)


def test_a_header_of_gigabytes_is_refused_unread(tmp_path) -> None:
    length = 2_000_000_000
    path = sparse_file(tmp_path / "a.safetensors", length.to_bytes(8, "little") + b"{", length + 8)
    with pytest.raises(ValueError, match="its header has 2000000000 bytes, expected at most 10000000"):
        SafetensorsFile(path)


# Numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [10**9, 10**18, 10**4000])
def test_a_config_of_too_many_layers(tmp_path, name, layers) -> None:
    write_checkpoint(tmp_path, tiny_config(name))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(name, **{LAYERS[name]: layers})))
    with pytest.raises(ValueError, match=rf"^load_model: {LAYERS[name]} is .*, expected an integer from 1 to 10000"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 2**62, "n_heads": 2**56, "n_kv_heads": 2**56},
        {"embedding_size": 2**31},
        {"eos_token_id": 2**64},
        {"rope_theta": 10**400},
        {"rms_norm_eps": 10**400},
    ],
)
def test_config_numbers_beyond_any_model(tmp_path, changes) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llada_8b", **changes)))
    with pytest.raises(ValueError, match=rf"^load_model: {next(iter(changes))} is "):
        sparsed.load_model(tmp_path)


def test_sizes_that_the_tensors_do_not_have_are_refused_before_allocation(tmp_path) -> None:
    values = tiny_config("llada_8b")
    write_checkpoint(tmp_path, values)
    (tmp_path / "config.json").write_text(json.dumps(values | {"mlp_hidden_size": 2**30}))
    with pytest.raises(ValueError, match=r"has shape .*, expected .*1073741824"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**62] * 200_000, "expected a list of at most 8 sizes"),
        ([1] * 100, "expected a list of at most 8 sizes"),
        ([2**32, 2**32], "expected at most 4611686018427387904 elements"),
        ([0, 2**63, 2**63], "expected at most 4611686018427387904 elements"),
        ([0] + [int("9" * 4000)] * 7, "expected at most 4611686018427387904 elements"),
        ([2**61], "tensor a has 0 bytes, expected 9223372036854775808"),
    ],
)
def test_shapes_whose_product_overflows(tmp_path, shape, message) -> None:
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    with pytest.raises(ValueError, match=message):
        SafetensorsFile(with_header(tmp_path / "a.safetensors", header))


def test_an_empty_tensor_of_large_sizes_is_read(tmp_path) -> None:
    header = {"a": {"dtype": "BF16", "shape": [2**30, 0, 2**30], "data_offsets": [0, 0]}}
    assert SafetensorsFile(with_header(tmp_path / "a.safetensors", header)).array("a").shape == (2**30, 0, 2**30)


# JSON ---------------------------------------------------------------------------------------------------------------

HOSTILE_JSON = [
    ('{"a": ' + "[" * 90_000 + "]" * 90_000 + "}", "is not valid JSON|nested more than 100"),
    ('{"a": ' + "[" * 150 + "]" * 150 + "}", "is nested more than 100 levels deep"),
    ('{"a":' * 150 + "0" + "}" * 150, "is nested more than 100 levels deep"),
    ('{"a": ' + "1" * 5000 + "}", "is not valid JSON: Exceeds the limit"),
    ('{"a": "\\ud800"}', "is not valid JSON: .*surrogates not allowed"),
    ('{"a": "\\uDfff"}', "is not valid JSON: .*surrogates not allowed"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE_JSON)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
def test_hostile_json(tmp_path, name, text, message) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"), shards=2)
    (tmp_path / name).write_text(text)
    load = sparsed.load_tokenizer if "tokenizer" in name else sparsed.load_model
    with pytest.raises(ValueError, match=rf"{name} ({message})"):
        load(tmp_path)


@pytest.mark.parametrize(("text", "message"), HOSTILE_JSON)
def test_hostile_headers(tmp_path, text, message) -> None:
    with pytest.raises(ValueError, match=rf"the header of .*a\.safetensors ({message})"):
        SafetensorsFile(with_header(tmp_path / "a.safetensors", text.encode()))


def test_surrogate_pairs_are_text(tmp_path) -> None:
    header = b'{"__metadata__":{"smile":"\\ud83d\\ude00"}}'
    assert SafetensorsFile(with_header(tmp_path / "a.safetensors", header)).tensors == {}


# Files outside ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard", ["../a.safetensors", "/etc/a.safetensors", "b/../../a.safetensors", "a\0.safetensors"]
)
def test_an_index_does_not_reach_out_of_its_folder(tmp_path, shard) -> None:
    folder = write_checkpoint(tmp_path / "inside", tiny_config("llada_8b"), shards=2)
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(random_tensors(tiny_config("llada_8b"))))
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, shard)}))
    with pytest.raises((ValueError, FileNotFoundError), match=r"^load_model: "):
        sparsed.load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_no_file(tmp_path, name) -> None:
    folder = write_checkpoint(tmp_path, tiny_config("llada_8b"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FileNotFoundError, match=r"^load_model: "):
        sparsed.load_model(folder)


# Tokenizers ---------------------------------------------------------------------------------------------------------


def write_words(folder: Path, **files: Any) -> Path:
    files = {"vocab": {"a": 0, "b": 1, "ab": 2}, "tokenizer_config": {}, "added_tokens": {}} | files
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "merges.txt").write_text("a b\n")
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"vocab": {"a": 0, "b": 1, "ab": 2**64}},
        {"vocab": {"a": 0, "b": 1, "ab": None}},
        {"added_tokens": {"<m>": "3"}},
        {"added_tokens": {"<m>": [3]}},
        {"added_tokens": {"<m>": 2**70}},
        {"added_tokens": {"<m>": -1}},
        {"tokenizer_config": {"added_tokens_decoder": [3]}},
        {"tokenizer_config": {"added_tokens_decoder": {"3": "<m>"}}},
        {"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "<m>"}}}},
    ],
)
def test_hostile_tokenizer_files(tmp_path, files) -> None:
    with pytest.raises(ValueError, match=r"^load_tokenizer: "):
        sparsed.load_tokenizer(write_words(tmp_path, **files))


@pytest.mark.parametrize(
    "config",
    [{"additional_special_tokens": 3}, {"chat_template": [3]}, {"chat_template": [{"name": []}]}, {"bos_token": 3}],
)
def test_tokenizer_values_of_other_types_are_named(tmp_path, config) -> None:
    with pytest.raises(ValueError, match=f"^load_tokenizer: {next(iter(config))} is .*, expected "):
        sparsed.load_tokenizer(write_words(tmp_path, tokenizer_config=config))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": ' * 10_000, '{"version": 1e999}', "null", "\0"])
def test_hostile_tokenizer_json(tmp_path, text) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"^load_tokenizer: .* is not a tokenizer"):
        sparsed.load_tokenizer(tmp_path)


# Chat templates -----------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Hi"}]
RANGES = "{% for a in range(90000) %}{% for b in range(90000) %}"


@pytest.mark.parametrize(
    "template",
    [
        RANGES + "{% endfor %}{% endfor %}",
        "{% for a in 'xxxxxxxxxx' * 1000 %}{% for b in 'xxxxxxxxxx' * 1000 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ 10 ** 11 * 'x' }}",
        "{{ [0] * 10 ** 11 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ '%100000000000d' % 1 }}",
        "{{ 'x' | center(10 ** 20) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.json }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_templates_are_bounded(template) -> None:
    with pytest.raises(ValueError, match=r"^apply_chat_template: the chat template failed: "):
        render(template, {"messages": MESSAGES})


def test_loops_keep_what_they_know() -> None:
    template = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}none{% endfor %}"
        "{% for a, b in {'x': 1}.items() if b %}{{ a * 2 + 'y' }}{{ '%02d' % b }}{{ 7 % 4 }}{{ 2 ** 5 }}{% endfor %}"
    )
    assert render(template, {"messages": MESSAGES * 3}) == "1/3,2/3,3/3xxy01332"
    assert render(template, {"messages": []}) == "nonexxy01332"


# Memory -------------------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_named_before_they_are_read(tmp_path) -> None:
    """A checkpoint of terabytes that takes no room on disk."""
    hidden, mlp = 2**15, 2**22
    values = tiny_config("llada_8b", d_model=hidden, n_heads=256, n_kv_heads=256, n_layers=1, mlp_hidden_size=mlp)
    small = tiny_config("llada_8b", n_layers=1)
    sizes = {64: hidden, 112: mlp, 96: 96}
    header, end = {}, 0
    for name, tensor in random_tensors(small).items():
        shape = [sizes[length] for length in tensor.shape]
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = sparse_file(tmp_path / "model.safetensors", len(text).to_bytes(8, "little") + text, 8 + len(text) + end)
    assert path.stat().st_blocks < 1000
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(MemoryError, match=r"^load_model: the weights needs? \d.* GiB, available are "):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize("gen_length", [10**12, 10**18])
def test_generations_that_do_not_fit_are_named(tmp_path, gen_length) -> None:
    model = sparsed.load_model(write_checkpoint(tmp_path, tiny_config("llada_8b")))
    with pytest.raises(MemoryError, match=r"^generate: "):
        sparsed.generate(model, [[1, 2, 3]], gen_length=gen_length, steps=1)


def test_refusals_take_no_memory(tmp_path) -> None:
    """A process of 1 GB of address space beyond what it has refuses every one of these folders."""
    resource = pytest.importorskip("resource")
    write_checkpoint(tmp_path, tiny_config("llada_8b"))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llada_8b", n_layers=10**9)))
    code = (
        "import resource, sys, sparsed\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try: sparsed.load_model(sys.argv[1])\n"
        "except ValueError as error: print('refused', error)\n"
    )
    assert resource
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused load_model: n_layers"), done.stderr
