"""Tokenizers and chat templates of GGUF files: as those of the folder that the file was made from."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sparsed
from sparsed.apps.cli import main
from sparsed.apps.eval.records import model_identity
from tiny_checkpoint import random_tensors
from tiny_gguf import tokenizer_metadata, write_gguf
from tiny_tokenizers import CORPUS, TEMPLATE, write_folder

TEXTS = [
    *CORPUS,
    "I'm SURE it's 1234 !?\r\n\r\n\n  x",
    "\n\n \n",
    "a<mask>b<|end|>",
    " <eos>",
    "",
    "don'T   stop\t",
    "Ünïcode e\u0301 한국어",
]
MESSAGES = [{"role": "user", "content": "hi"}]
# The rules of the published tokenizers, by the model and by the name that llama.cpp gives them.
RULES = {
    ("dream_7b", "qwen2"): r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ("llada_8b", "bailingmoe"): r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
}


def write_both(tmp_path, family="llada_8b", pre="bailingmoe", gap=3, **metadata):
    """A folder with a tokenizer that splits by the published rule, and the GGUF file made from it."""
    folder = write_folder(tmp_path / "folder", "bytes", family)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": RULES[family, pre]}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    data["normalizer"] = {"type": "NFC"} if pre == "qwen2" else None
    extra = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    size = len(data["model"]["vocab"])
    data["added_tokens"].append({"id": size, "content": "</think>", **extra})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    values = json.loads((folder / "config.json").read_text())
    values |= {"vocab_size": size + 1 + gap} | ({"embedding_size": size + 1 + gap} if family == "llada_8b" else {})
    path = tmp_path / "file" / "model.gguf"
    own = tokenizer_metadata(folder, pre, num_tokens=size + 1 + gap) | metadata
    write_gguf(path, values | {"bos_token_id": 1}, random_tensors(values), metadata=own)
    return sparsed.load_tokenizer(folder), path


@pytest.mark.parametrize(("family", "pre"), list(RULES))
def test_texts_are_encoded_as_by_the_folder(tmp_path, family, pre) -> None:
    expected, path = write_both(tmp_path, family, pre)
    tokenizer = sparsed.load_tokenizer(path)
    for text in TEXTS:
        ids = expected.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == expected.decode(ids)
        assert tokenizer.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "end_token_ids", "vocab_size"):
        assert getattr(tokenizer, name) == getattr(expected, name), name
    assert tokenizer.family == expected.family == family.partition("_")[0]
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.chat(MESSAGES) == expected.chat(MESSAGES)
    assert sparsed.load_tokenizer(path.parent).encode(TEXTS[0]) == expected.encode(TEXTS[0])


def test_marks_around_a_text(tmp_path) -> None:
    expected, path = write_both(tmp_path, **{"tokenizer.ggml.add_bos_token": True})
    tokenizer = sparsed.load_tokenizer(path)
    assert tokenizer.encode("the sun") == [1, *expected.encode("the sun")]
    assert tokenizer.encode("<bos>the sun") == [1, *expected.encode("the sun")]
    assert tokenizer.encode("the sun", add_special_tokens=False) == expected.encode("the sun")
    assert tokenizer.chat(MESSAGES) == expected.chat(MESSAGES)


def test_templates_by_name(tmp_path) -> None:
    more = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools[0].name }}"}
    _, path = write_both(tmp_path, **more)
    tokenizer = sparsed.load_tokenizer(path)
    assert tokenizer.chat_template == {"default": TEMPLATE, "tool_use": "{{ tools[0].name }}"}
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{"name": "find"}]) == "find"


def test_a_tokenizer_beside_the_file_goes_first(tmp_path) -> None:
    _, path = write_both(tmp_path)
    expected = sparsed.load_tokenizer(write_folder(path.parent, "words"))
    assert sparsed.load_tokenizer(path.parent).encode("the sun") == expected.encode("the sun")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer.ggml.model": ...}, "tokenizer.ggml.model is missing, expected one of"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama', expected one of"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe', expected one of .*bailingmoe.*qwen2"),
        ({"tokenizer.ggml.pre": ...}, "tokenizer.ggml.pre is missing, expected one of"),
        ({"tokenizer.ggml.tokens": ...}, "tokenizer.ggml.tokens is missing, expected an array of texts"),
        ({"tokenizer.ggml.token_type": ...}, "tokenizer.ggml.token_type is damaged"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.token_type is damaged, expected .* kinds"),
        ({"tokenizer.ggml.merges": ...}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merge 0 is 'ab', expected two tokens"),
        ({"tokenizer.ggml.merges": ["a 火"]}, "tokenizer of .* is damaged: .*not in vocabulary|out of vocabulary"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id is 1000000, expected a token id below"),
        ({"tokenizer.ggml.add_bos_token": 2}, "add_bos_token is 2, expected true or false"),
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template is 3, expected a template"),
        ({"tokenizer.chat_templates": ["x"]}, "tokenizer.chat_template.x is None, expected a template"),
    ],
)
def test_damaged_tokenizers_are_named(tmp_path, metadata, message) -> None:
    _, path = write_both(tmp_path, **metadata)
    with pytest.raises(ValueError, match=message):
        sparsed.load_tokenizer(path)


def test_tokens_that_occur_twice(tmp_path) -> None:
    _, path = write_both(tmp_path)
    tokens = sparsed.models.gguf_file.GgufFile(path, "load_model").texts("tokenizer.ggml.tokens")
    tokens[20] = tokens[21]
    _, path = write_both(tmp_path, **{"tokenizer.ggml.tokens": tokens})
    with pytest.raises(ValueError, match=r"model\.gguf is damaged: the token .* has the ids 20 and 21, expected one"):
        sparsed.load_tokenizer(path)


def test_the_commands_take_the_file(tmp_path, capsys) -> None:
    _, path = write_both(tmp_path)
    assert main(["generate", str(path), "the sun is", "--gen-length", "4", "--steps", "2", "--quiet"]) == 0
    assert capsys.readouterr().out
    identity = model_identity(path)
    assert identity["name"] == "model.gguf" and list(identity["files"]) == ["model.gguf"]


def test_generate_gives_the_same_tokens(tmp_path) -> None:
    tokenizer, path = write_both(tmp_path, gap=0)
    model = sparsed.load_model(path)
    prompt = tokenizer.chat(MESSAGES)
    result = sparsed.generate(model, prompt, gen_length=4, steps=4)
    assert np.asarray(result.generated).shape == (1, 4)
