"""Tokenizers of checkpoint folders and chat templates."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

import sparsed

DEMO = files("sparsed") / "demo_model"
DREAM_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")


def byte_letters():
    """GPT-2's letter for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (number for number in range(256, 1024))
    return {byte: chr(byte) if byte in printable else chr(next(others)) for byte in range(256)}


LETTERS = byte_letters()
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell"), ("'", "s"), ("1", "2"), ("Ã", "©"), ("Ġhell", "Ċ")]
FIRST_ADDED = 300  # beyond the vocabulary: published files leave such gaps


def write_bpe(folder, config=None, **extra_files):
    """A folder in the form of Dream's: single bytes, MERGES, and its special tokens from id 300 on."""
    vocab = {LETTERS[byte]: byte for byte in range(256)}
    for a, b in MERGES:
        vocab.setdefault(a + b, len(vocab))
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    added = {
        str(FIRST_ADDED + i): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        for i, token in enumerate(DREAM_TOKENS)
    }
    values = {
        "added_tokens_decoder": added,
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": {"content": "<|mask|>"},
        "tokenizer_class": "DreamTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values | (config or {})))
    for name, text in extra_files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def encode_pieces(tokenizer, text):
    return [tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.encode(text)]


def test_demo_tokenizer() -> None:
    tokenizer = sparsed.load_tokenizer(DEMO)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.mask_token_id, tokenizer.end_token_ids, len(tokenizer)) == (3, (2,), 1579)
    prompt = tokenizer.chat("the magic number for zileba is 107 .")
    text = "user : the magic number for zileba is 107 . assistant :"
    assert prompt[0] == 1
    assert tokenizer.decode(prompt) == text
    assert tokenizer.decode(prompt, skip_special_tokens=False) == f"<bos> {text}"
    assert tokenizer.encode(f"<bos> {text}") == prompt
    answer = tokenizer.encode("zileba is 107 ;")
    assert tokenizer.text([*answer, 3, 2, 2, *answer]) == "zileba is 107 ;"
    assert tokenizer.text(np.array(answer)) == tokenizer.decode(np.array(answer)) == "zileba is 107 ;"
    assert repr(tokenizer) == "Tokenizer(vocab_size=1579, end_token_ids=(2,))"


def test_byte_level_bpe(tmp_path) -> None:
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path))
    assert encode_pieces(tokenizer, "hell hello") == ["hell", " hell", "o"]
    assert encode_pieces(tokenizer, "it's 12") == ["i", "t", "'s", " ", "1", "2"]  # digits one by one
    assert encode_pieces(tokenizer, "hell\n\nx") == ["hell", "\n", "\n", "x"]
    assert encode_pieces(tokenizer, " hell\n") == [" hell", "\n"]  # no token crosses a split
    assert tokenizer.encode("") == []
    for text in ("naïve café", "  two  spaces \t", "日本語 🤖", "a\r\nb", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_is_normalised_to_nfc(tmp_path) -> None:
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é") == [tokenizer.token_id("Ã©")]


def test_added_tokens_have_the_ids_of_the_files(tmp_path) -> None:
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path))
    for i, token in enumerate(DREAM_TOKENS):
        assert tokenizer.encode(f"he{token}he") == [256, FIRST_ADDED + i, 256]
        assert tokenizer.token_id(token) == FIRST_ADDED + i
    assert tokenizer.token_id("absent") is None
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.mask_token_id) == (300, 303, 304)
    assert tokenizer.end_token_ids == (300, 302)
    assert tokenizer.decode([256, 304, 256]) == "hehe"
    assert tokenizer.decode([256, 304, 256], skip_special_tokens=False) == "he<|mask|>he"
    assert tokenizer.text([256, 302, 256]) == "he"


def without_decoder(folder):
    """The folder as transformers wrote it before tokenizer_config.json had added_tokens_decoder."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    added = config.pop("added_tokens_decoder")
    path.write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({entry["content"]: int(key) for key, entry in added.items()}))
    return folder


def test_added_tokens_json_and_special_tokens_map(tmp_path) -> None:
    folder = without_decoder(write_bpe(tmp_path))
    more = {"<extra>": 310, "<|sp|>": 311, "he": 256}
    added = json.loads((folder / "added_tokens.json").read_text()) | more
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"cls_token": {"content": "<|sp|>", "lstrip": True}, "bos_token": "<|im_start|>", "pad_token": None}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = sparsed.load_tokenizer(folder)
    assert tokenizer.encode("a<extra> <|sp|>") == [ord("a"), 310, tokenizer.token_id("Ġ"), 311]
    assert tokenizer.encode("the") == [ord("t"), 256]
    assert tokenizer.decode([310, 311, 304]) == "<extra>"
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (301, None, 304)


def test_added_tokens_decoder_goes_before_the_older_files(tmp_path) -> None:
    files = {"added_tokens__json": '{"<|mask|>": 305, "<x>": 306}', "special_tokens_map__json": '{"bos_token": "he"}'}
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path, **files))
    assert tokenizer.encode("<|mask|>") == [304]
    assert (tokenizer.bos_token_id, tokenizer.token_id("<x>")) == (303, None)


def test_qwen2_s_names_hold_where_the_files_name_none(tmp_path) -> None:
    names = dict.fromkeys(("eos_token", "pad_token"), "<|im_end|>")
    write_bpe(tmp_path, names | {"pad_token": None})
    tokenizer = sparsed.load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (302, None, 300)


def test_marks_and_prefix_of_vocabulary_files(tmp_path) -> None:
    marks = {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True}
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path, marks))
    hell = tokenizer.token_id("Ġhell")
    assert tokenizer.encode("hell") == [303, hell, 300]
    assert tokenizer.encode("hell", add_special_tokens=False) == [hell]
    assert tokenizer.encode("<|beginoftext|>hell") == [303, hell, 300]


def test_vocabulary_files_of_other_classes_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="tokenizer_class is 'GPT2Tokenizer', expected Qwen2's or Dream's"):
        sparsed.load_tokenizer(write_bpe(tmp_path, {"tokenizer_class": "GPT2Tokenizer"}))


def test_end_tokens_of_the_model_files(tmp_path) -> None:
    folder = write_bpe(
        tmp_path, config__json='{"eos_token_id": 300}', generation_config__json='{"eos_token_id": [65, 302, -1]}'
    )
    assert sparsed.load_tokenizer(folder).end_token_ids == (300, 65, 302)


def with_bos(folder):
    """A tokenizer.json that puts <s> before a text, as LLaDA's does."""
    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "chat_template": "{{ bos_token }} {{ messages[0].content }}"})
    )
    return sparsed.load_tokenizer(folder)


def test_bos_comes_once_and_texts_stay_whole(tmp_path) -> None:
    tokenizer = with_bos(tmp_path)
    assert tokenizer.encode("a b a b") == [0, 1, 2, 1, 2]
    assert tokenizer.encode("<s> a b") == [0, 1, 2]
    assert tokenizer.encode("<s> a b", repeat_bos=True) == [0, 0, 1, 2]
    assert tokenizer.encode("<s> a b", False, repeat_bos=True) == [0, 1, 2]
    assert tokenizer.chat("a b a") == [0, 1, 2, 1]


# Chat templates -----------------------------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": " Hi? "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "So"},
]


def test_published_format_of_dream(tmp_path) -> None:
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path))
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    turns = "<|im_start|>user\n Hi? <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nSo<|im_end|>\n"
    assert tokenizer.apply_chat_template(TALK) == f"{system}{turns}<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(TALK, add_generation_prompt=False) == system + turns
    own = [{"role": "system", "content": "Brief."}, *TALK]
    assert tokenizer.apply_chat_template(own, False) == f"<|im_start|>system\nBrief.<|im_end|>\n{turns}"
    assert tokenizer.decode(tokenizer.chat("So"), skip_special_tokens=False) == tokenizer.apply_chat_template(TALK[2:])


def test_published_format_of_llada(tmp_path) -> None:
    words = ["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|endoftext|>"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[4]))
    backend.add_special_tokens(words)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}')
    tokenizer = sparsed.load_tokenizer(tmp_path)

    def turn(role, content):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}"

    expected = f"<|startoftext|>{turn('user', 'Hi?')}<|eot_id|>{turn('assistant', 'Yes.')}<|eot_id|>"
    expected += f"{turn('user', 'So')}<|eot_id|>"
    assert tokenizer.apply_chat_template(TALK, False) == expected
    assert tokenizer.apply_chat_template(TALK) == expected + turn("assistant", "")
    assert tokenizer.end_token_ids == (4, 3)


@pytest.mark.parametrize(
    ("config", "extra_files", "expected"),
    [
        ({"chat_template": "one {{ messages | length }}"}, {}, "one 3"),
        ({"chat_template": "one"}, {"chat_template__jinja": "two"}, "two"),
        ({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}, {}, "d"),
        ({"chat_template": "{{ eos_token }}{{ mask_token }}{{ cls_token }}"}, {}, "<|endoftext|><|mask|>"),
        (
            {"chat_template": "{% for m in messages %}\n  {% if m.role == 'user' %}\nu\n  {% endif %}\n{% endfor %}"},
            {},
            "u\nu\n",
        ),
        ({"chat_template": "{% for m in messages %}{% break %}{% endfor %}{{ 'é' | tojson }}"}, {}, '"é"'),
        ({"chat_template": "{% if tools %}x{% endif %}{{ strftime_now('%%') }}"}, {}, "%"),
    ],
)
def test_templates_of_the_folder(tmp_path, config, extra_files, expected) -> None:
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path, config, **extra_files))
    assert tokenizer.apply_chat_template(TALK) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages %}",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_templates_that_fail(tmp_path, template) -> None:
    tokenizer = sparsed.load_tokenizer(write_bpe(tmp_path, {"chat_template": template}))
    with pytest.raises(ValueError, match=r"^apply_chat_template: the chat template failed: "):
        tokenizer.apply_chat_template(TALK)


def test_no_template(tmp_path) -> None:
    with_bos(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = sparsed.load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.end_token_ids, tokenizer.chat_template) == (None, (), None)
    with pytest.raises(ValueError, match="has no chat_template"):
        tokenizer.chat("a")


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], ValueError),
        ({"role": "user", "content": "x"}, TypeError),
        ([{"role": "user"}], TypeError),
        ([{"role": "user", "content": 3}], TypeError),
        (["hello"], TypeError),
        (3, TypeError),
    ],
)
def test_messages_that_are_none(messages, error) -> None:
    with pytest.raises(error, match=r"^apply_chat_template: message"):
        sparsed.load_tokenizer(DEMO).chat(messages)


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2]], ValueError, r"ids has shape \[1, 2\], expected one dimension"),
        ([1.0], TypeError, "ids has dtype float64, expected integers"),
        ([-1], ValueError, "ids has values -1"),
        ([2**40], ValueError, "ids has values"),
    ],
)
@pytest.mark.parametrize("function", ["decode", "text"])
def test_ids_that_are_none(function, ids, error, message) -> None:
    with pytest.raises(error, match=f"^{function}: {message}"):
        getattr(sparsed.load_tokenizer(DEMO), function)(ids)


def test_text_must_be_a_str() -> None:
    with pytest.raises(TypeError, match=r"^encode: text is a list, expected a str"):
        sparsed.load_tokenizer(DEMO).encode(["a"])


def test_missing_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^load_tokenizer: folder is .*absent"):
        sparsed.load_tokenizer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        sparsed.load_tokenizer(tmp_path)
    write_bpe(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        sparsed.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json is not a tokenizer"),
        ("vocab.json", "[]", r"vocab\.json holds a JSON list"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json has ids that are not integers >= 0"),
        ("vocab.json", '{"a": 1}', r"merges\.txt does not fit vocab\.json"),
        ("merges.txt", "h e l", r"line 1 of .*merges\.txt is 'h e l', expected two tokens"),
        ("merges.txt", "h z", r"merges\.txt does not fit vocab\.json"),
        ("vocab.json", '{"a": 1, "b": 1}', "the id 1 has tokens 'a' and 'b', expected one"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "added_tokens_decoder has 'x'"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
    ],
)
def test_damaged_files(tmp_path, name, text, message) -> None:
    write_bpe(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        sparsed.load_tokenizer(tmp_path)
