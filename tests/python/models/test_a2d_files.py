"""The files of the A2D family and of Open-dCoder: where the mask token is named, and the chat template's variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sparsed
from sparsed.apps.model_info import model_info
from sparsed.models.a2d import A2D_QWEN2, A2D_QWEN3
from tiny_checkpoint import random_tensors, tiny_config, write_checkpoint
from tiny_gguf import write_gguf
from tiny_tokenizers import write_folder

NAMED: list[dict[str, dict[str, Any]]] = [
    {
        "tokenizer_config.json": {
            "mask_token": "<|mask|>",
            "added_tokens_decoder": {"77": {"content": "<|mask|>", "special": True}},
        }
    },
    {"special_tokens_map.json": {"mask_token": {"content": "<|mask|>"}}, "added_tokens.json": {"<|mask|>": 77}},
    {  # as transformers 5 writes them
        "tokenizer_config.json": {"mask_token": "<|mask|>"},
        "tokenizer.json": {"added_tokens": [{"id": 3, "content": "a"}, {"id": 77, "content": "<|mask|>"}]},
    },
    {"generation_config.json": {"mask_token_id": 77}},
]
DECLARING = ["tokenizer_config.json", "added_tokens.json", "tokenizer.json"]  # the files of the tokenizer with the id


def write_files(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("files", NAMED, ids=lambda files: " ".join(files))
@pytest.mark.parametrize("name", ["a2d_qwen3", "a2d_llama", "open_dcoder"])
def test_a_mask_token_that_the_tokenizer_names(tmp_path, name, files) -> None:
    write_checkpoint(tmp_path, tiny_config(name, mask_token_id=...))
    write_files(tmp_path, files)
    assert sparsed.load_model(tmp_path).config.mask_token_id == 77


@pytest.mark.parametrize(("files", "declaring"), list(zip(NAMED, DECLARING, strict=False)))
@pytest.mark.parametrize("name", ["a2d_qwen3", "llada_8b", "dream_7b"])
def test_the_config_s_mask_token_counts_before_the_tokenizer_s(tmp_path, name, files, declaring) -> None:
    write_checkpoint(tmp_path, tiny_config(name, mask_token_id=78))
    write_files(tmp_path, files)
    message = rf"mask token is 78 in .*config\.json, but 77 in .*/{declaring}: the model has 78, that of config\.json"
    for load in (sparsed.load_model, model_info):
        with pytest.warns(sparsed.SparsedWarning, match=f"^load_model: the {message}") as warned:
            load(tmp_path)
        assert len(warned) == 1
    with pytest.warns(sparsed.SparsedWarning):
        assert sparsed.load_model(tmp_path).config.mask_token_id == 78


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("files", NAMED, ids=lambda files: " ".join(files))
def test_files_that_agree_about_the_mask_token_bring_no_warning(tmp_path, files) -> None:
    write_checkpoint(tmp_path, tiny_config("a2d_qwen3", mask_token_id=77))
    write_files(tmp_path, files)
    assert sparsed.load_model(tmp_path).config.mask_token_id == 77


def test_a_mask_token_beside_a_gguf_file(tmp_path) -> None:
    """Its metadata counts in the place of config.json."""
    values = tiny_config("llada_8b", mask_token_id=78)
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values))
    write_files(tmp_path, NAMED[0])
    with pytest.warns(sparsed.SparsedWarning, match=r"78 in .*model\.gguf, but 77 in .*tokenizer_config\.json"):
        assert sparsed.load_model(tmp_path).config.mask_token_id == 78
    assert sparsed.load_model(path).config.mask_token_id == 78  # the file alone


@pytest.mark.parametrize(
    ("files", "source"),
    list(zip([*NAMED[:3], {}], [*DECLARING, "config.json"], strict=True)),
)
def test_another_mask_token_in_generation_config(tmp_path, files, source) -> None:
    write_checkpoint(tmp_path, tiny_config("a2d_qwen3", mask_token_id=... if files else 77))
    write_files(tmp_path, files | {"generation_config.json": {"mask_token_id": 76}})
    expected = rf"mask_token_id is 76, expected 77 \(that of {source}\) \(in .*generation_config\.json\)"
    with pytest.raises(ValueError, match=f"^load_model: {expected}"):
        sparsed.load_model(tmp_path)


def test_without_a_name_it_is_the_one_behind_the_tokens(tmp_path) -> None:
    assert (A2D_QWEN3.mask_token, A2D_QWEN2.mask_token) == (151669, 151665)
    write_checkpoint(tmp_path, tiny_config("a2d_llama", mask_token_id=...))
    with pytest.raises(ValueError, match=r"^load_model: mask_token_id is missing, expected a token id below 96"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"architectures": ...}])
def test_a_qwen2_model_without_a_mask_token_is_autoregressive(tmp_path, changes) -> None:
    write_checkpoint(tmp_path, tiny_config("open_dcoder", mask_token_id=..., **changes))
    with pytest.raises(
        ValueError, match=r"this is an autoregressive .*\(Open-dCoder has this class and names a mask token"
    ):
        sparsed.load_model(tmp_path)


def test_the_chat_template_thinks_only_if_asked(tmp_path) -> None:
    """dllm renders Qwen3's template with enable_thinking=False, which the models were trained with."""
    template = "{% if enable_thinking is defined %}{{ 'thinks' if enable_thinking else 'answers' }}{% endif %}"
    messages = [{"role": "user", "content": "a"}]
    write_folder(tmp_path / "a2d", family="a2d_qwen3", template=template)
    tokenizer = sparsed.load_tokenizer(tmp_path / "a2d")
    assert tokenizer.family == "a2d"
    assert tokenizer.apply_chat_template(messages) == "answers"
    assert tokenizer.apply_chat_template(messages, enable_thinking=True) == "thinks"
    write_folder(tmp_path / "llada", template=template)
    assert sparsed.load_tokenizer(tmp_path / "llada").apply_chat_template(messages) == ""
