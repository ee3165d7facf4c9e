"""Tokens that a folder declares beside its vocabulary: their ids, contradictions, and malformed declarations."""

from __future__ import annotations

import json

import pytest

import sparsed


def write_words(folder, added=(), model=None, **config):
    """A tokenizer.json of the words a, b and ?, with added tokens, and a tokenizer_config.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    model = model or {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
    values = {
        "version": "1.0",
        "added_tokens": [flags | {"id": i, "content": token} for token, i in added],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def decoder(*ids, **flags):
    return {str(i): {"content": f"<{i}>", "special": True} | flags for i in ids}


@pytest.mark.parametrize("ids", [(3, 4), (5, 9), (4, 3000)])
@pytest.mark.parametrize("place", ["tokenizer.json", "added_tokens_decoder", "added_tokens.json"])
def test_ids_of_the_files_hold_where_they_leave_gaps(tmp_path, place, ids) -> None:
    tokens = [(f"<{i}>", i) for i in ids]
    if place == "tokenizer.json":
        write_words(tmp_path, tokens[::-1])
    elif place == "added_tokens.json":
        (write_words(tmp_path) / place).write_text(json.dumps(dict(tokens)))
    else:
        write_words(tmp_path, added_tokens_decoder=decoder(*ids), mask_token="<m>")
    tokenizer = sparsed.load_tokenizer(tmp_path)
    text = "".join(token for token, _ in tokens)
    assert tokenizer.encode(f"a {text} b") == [0, *ids, 1]
    assert tokenizer.decode(ids, skip_special_tokens=False) == " ".join(token for token, _ in tokens)
    assert tokenizer.mask_token_id == (max(ids) + 1 if place == "added_tokens_decoder" else None)


def test_a_token_without_an_id_takes_none_of_the_vocabulary(tmp_path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 3, "?": 4}, "unk_token": "?"}
    tokenizer = sparsed.load_tokenizer(write_words(tmp_path, model=model, mask_token="<m>", pad_token="b"))
    assert tokenizer.encode("b <m> a") == [3, 5, 0]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (5, 3)


@pytest.mark.parametrize(
    ("added", "config", "message"),
    [
        ([("<7>", 3)], {"added_tokens_decoder": decoder(7)}, "the token '<7>' has ids 3 and 7, expected one"),
        ([("<x>", 3)], {"added_tokens_decoder": decoder(3)}, "the id 3 has tokens '<x>' and '<3>', expected one"),
        ([], {"added_tokens_decoder": decoder(1)}, "the id 1 has tokens 'b' and '<1>', expected one"),
        ([("<x>", 3), ("<y>", 3)], {}, "the id 3 has tokens '<x>' and '<y>', expected one"),
        ([("b", 7)], {}, "the token 'b' has ids 1 and 7, expected one"),
        ([("<x>", 0)], {}, "the id 0 has tokens 'a' and '<x>', expected one"),
        ([], {"added_tokens_decoder": {"3": {"content": "x"}, "4": {"content": "x"}}}, "the token 'x' has ids 3 and 4"),
        ([], {"added_tokens_decoder": {"3": {"content": "x"}, "03": {"content": "y"}}}, "the id 3 has tokens 'x' and"),
        ([], {"added_tokens_decoder": {"-1": {"content": "x"}}}, "added_tokens_decoder has '-1'"),
        ([], {"added_tokens_decoder": decoder(3, lstrip="yes")}, "lstrip of '<3>' is 'yes', expected true or false"),
        ([], {"added_tokens_decoder": {"3": {"content": None}}}, "added_tokens_decoder has '3'"),
        ([], {"mask_token": 3}, "mask_token is 3, expected a token"),
        ([], {"mask_token": ["<m>"]}, r"mask_token is \['<m>'\], expected a token"),
        ([], {"additional_special_tokens": 3}, "additional_special_tokens is 3, expected a list"),
        ([], {"additional_special_tokens": [3]}, "additional_special_tokens is 3, expected a token"),
        ([], {"extra_special_tokens": {"x": 3}}, "x is 3, expected a token"),
        ([], {"split_special_tokens": "no"}, "split_special_tokens is 'no', expected true or false"),
    ],
)
def test_declarations_that_contradict_or_are_none(tmp_path, added, config, message) -> None:
    with pytest.raises(ValueError, match=f"^load_tokenizer: {message}"):
        sparsed.load_tokenizer(write_words(tmp_path, added, **config))


def test_a_vocabulary_with_scores_has_no_gaps(tmp_path) -> None:
    model = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -1.0]], "unk_id": 0}
    with pytest.raises(ValueError, match="the token '<7>' has the id 7, expected 2"):
        sparsed.load_tokenizer(write_words(tmp_path, model=model, added_tokens_decoder=decoder(7)))


def test_spaces_before_punctuation(tmp_path) -> None:
    model = {"type": "WordLevel", "vocab": {".": 0, "do": 1, "n't": 2, "?": 3}, "unk_token": "?"}
    for wanted, text in ((True, "don't."), (False, "do n't ."), (None, "do n't .")):
        tokenizer = sparsed.load_tokenizer(write_words(tmp_path, model=model, clean_up_tokenization_spaces=wanted))
        assert tokenizer.decode([1, 2, 0]) == tokenizer.text([1, 2, 0]) == text


def test_a_folder_with_another_form_of_tokenizer_says_what_converts_it(tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model is another form: save_pretrained of transformers"):
        sparsed.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"]
)
def test_a_byte_order_mark_changes_nothing_and_a_git_lfs_pointer_is_named(tmp_path, name) -> None:
    folder = write_words(tmp_path, [("<x>", 3)], mask_token="<m>", chat_template="{{ mask_token }}")
    files = {"special_tokens_map.json": {"pad_token": "<p>"}, "added_tokens.json": {"<p>": 4}}
    for other, values in (files | {"config.json": {"eos_token_id": 3}}).items():
        (folder / other).write_text(json.dumps(values))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xef\xbb\xbf" + data)
    tokenizer = sparsed.load_tokenizer(folder)
    assert tokenizer.encode("a <x> <p> <m>") == [0, 3, 4, 5]
    assert (tokenizer.end_token_ids, tokenizer.apply_chat_template([{"role": "user", "content": "a"}])) == ((3,), "<m>")
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer"):
        sparsed.load_tokenizer(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "chat_template.jinja"])
def test_a_git_lfs_pointer_is_named_among_the_other_files(tmp_path, name) -> None:
    vocab = {"a": 0, "b": 1, "ab": 2}
    files = {"vocab.json": json.dumps(vocab), "merges.txt": "a b\n", "chat_template.jinja": "{{ messages[0].content }}"}
    for other, text in files.items():
        (tmp_path / other).write_text("\ufeff" + text, encoding="utf-8")
    assert sparsed.load_tokenizer(tmp_path).chat("ab") == [2]
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer"):
        sparsed.load_tokenizer(tmp_path)
