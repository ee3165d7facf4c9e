"""Text files from other systems: byte order marks and other encodings, in all files that the package reads."""

from __future__ import annotations

import codecs
import json

import numpy as np
import pytest

import sparsed
from sparsed.apps.eval.jsonl import read_samples
from sparsed.apps.eval.qa import read_hotpotqa, read_squad
from sparsed.models.files import decode_text, read_json, read_text
from tiny_checkpoint import tiny_config, write_checkpoint

TEXT = "Naïve café\n日本語\n"
OTHERS = [
    ("utf-16", "UTF-16"),
    ("utf-16-le", "UTF-16"),
    ("utf-16-be", "UTF-16"),
    ("utf-32", "UTF-32"),
]


def mark(path):
    """Saves a text file anew with a byte order mark, as editors on Windows do."""
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())


def test_a_mark_is_not_part_of_the_text(tmp_path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(TEXT.encode("utf-8-sig"))
    assert read_text(path) == TEXT
    path.write_bytes(codecs.BOM_UTF8)
    assert read_text(path) == ""
    inner = "a\ufeffb"
    assert decode_text(inner.encode(), "it") == inner


def test_ends_of_lines(tmp_path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"a\r\nb\rc\n\r\n")
    assert read_text(path) == "a\nb\nc\n\n" == path.read_text()


@pytest.mark.parametrize(("codec", "name"), OTHERS)
def test_other_encodings_are_named(tmp_path, codec, name) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes('{"a": "Hello"}'.encode(codec))
    for read in (read_text, read_json):
        with pytest.raises(ValueError, match=rf"prompt\.txt is not UTF-8: it is {name}, so save it as UTF-8"):
            read(path)


def test_latin_1_is_no_utf8(tmp_path) -> None:
    (tmp_path / "prompt.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompt\.txt is not UTF-8: "):
        read_text(tmp_path / "prompt.txt")


def test_marks_in_all_files_of_a_model(tmp_path) -> None:
    plain = sparsed.load_model(write_checkpoint(tmp_path / "plain", tiny_config("dream_7b"), shards=2))
    folder = write_checkpoint(tmp_path / "marked", tiny_config("dream_7b"), shards=2)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    for path in folder.glob("*.json"):
        mark(path)
    model = sparsed.load_model(folder)
    assert model.config.end_token_ids[-2:] == (3, 4)
    assert np.array_equal(model.forward([[1, 2, 3]]), plain.forward([[1, 2, 3]]))


def test_marks_in_all_files_of_a_tokenizer(tmp_path) -> None:
    files = {
        "vocab.json": '{"a": 0, "b": 1, "ab": 2}',
        "merges.txt": "a b\n",
        "tokenizer_config.json": '{"bos_token": "<s>"}',
        "added_tokens.json": '{"<s>": 3}',
        "special_tokens_map.json": "{}",
        "config.json": '{"eos_token_id": 1}',
        "generation_config.json": '{"eos_token_id": 2}',
        "chat_template.jinja": "{{ messages[0].content }}",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        mark(tmp_path / name)
    tokenizer = sparsed.load_tokenizer(tmp_path)
    assert tokenizer.encode("ab<s>") == [2, 3]
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert set(tokenizer.end_token_ids) >= {1, 2}


def test_a_mark_in_tokenizer_json(tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"a": 0, "b": 1}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    mark(tmp_path / "tokenizer.json")
    assert sparsed.load_tokenizer(tmp_path).encode("b") == [1]


def test_marks_in_samples(tmp_path) -> None:
    row = {"index": 4, "input": "Question", "outputs": ["answer"], "gen_length": 8}
    path = tmp_path / "validation.jsonl"
    path.write_bytes(2 * (codecs.BOM_UTF8 + json.dumps(row).encode() + b"\r\n"))
    assert [(sample.index, sample.input) for sample in read_samples(path, "niah_single_1")] == [(4, "Question")] * 2
    path.write_bytes((json.dumps(row) + "\n").encode("utf-16"))
    with pytest.raises(ValueError, match=r"^read_samples: line 1 of .*not UTF-8: it is UTF-16"):
        read_samples(path, "niah_single_1")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ValueError, match=r"^read_samples: line 1 of .*Git LFS pointer.*git lfs pull"):
        read_samples(path, "niah_single_1")


@pytest.mark.parametrize("read", [read_squad, read_hotpotqa])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{}".encode("utf-16"), "is not UTF-8: it is UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"[" * 100_000, "is not JSON"),
        (b"{", "is not JSON"),
    ],
    ids=["utf-16", "pointer", "deep", "damaged"],
)
def test_question_files_that_are_no_json(tmp_path, read, content, expected) -> None:
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} {expected}"):
        read(path)
