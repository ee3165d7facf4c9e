"""The files of the A2D family and of Open-dCoder: where the mask token is named, and the chat template's variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sparsed
from sparsed.models.a2d import A2D_QWEN2, A2D_QWEN3
from tiny_checkpoint import tiny_config, write_checkpoint
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


def write_files(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("files", NAMED, ids=lambda files: " ".join(files))
@pytest.mark.parametrize("name", ["a2d_qwen3", "a2d_llama", "open_dcoder"])
def test_a_mask_token_that_the_tokenizer_names(tmp_path, name, files) -> None:
    write_checkpoint(tmp_path, tiny_config(name, mask_token_id=...))
    write_files(tmp_path, files)
    assert sparsed.load_model(tmp_path).config.mask_token_id == 77


def test_the_config_s_mask_token_counts_first(tmp_path) -> None:
    write_checkpoint(tmp_path, tiny_config("a2d_qwen3", mask_token_id=78))
    write_files(tmp_path, NAMED[0])
    assert sparsed.load_model(tmp_path).config.mask_token_id == 78


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
