"""Tokenizers of generated folders next to transformers' AutoTokenizer: the same ids, the same text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import sparsed

transformers = pytest.importorskip("transformers", minversion="5")

SEEDS = range(12)
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "image_token")
CONTENTS = ("<|mask|>", "<s>", "</s>", "<pad>", "<|end|>", "[X]", "tool", "<|a", "É", "<|mask|>2")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TEXTS = (
    "",
    " ",
    "  \n\t ",
    "a",
    "Hello, world! isn't it 's ? . 12",
    "<|mask|>",
    "  <|mask|>  <s>a</s> ",
    "x<|mask|>2<|mask|> 2",
    "<|mask|><|mask|>\n<pad>",
    "<|mas k|> <|a <|a|> <|end|",
    "toolbox tool  tool",
    "e\u0301 É E\u0301 é",
    "日本語 🤖 \U0001f468\u200d\U0001f469\u200d\U0001f467 naïve",
    "\x00 \x7f \ufeff \u200b \u00a0x",
    "<|MASK|> TOOL [x] [X]",
    "a\r\nb\r\n\r\n",
    "long <|mask|> text " * 2000,
)


def letters() -> dict[str, int]:
    return {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def byte_level_bpe() -> tokenizers.Tokenizer:
    vocab, merges = letters(), [("h", "e"), ("l", "l"), ("t", "o"), ("Ġ", "t"), ("<", "|"), ("i", "t")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def words() -> tokenizers.Tokenizer:
    known = ("?", "hello", "world", "it", "a", ".", "!", "tool", "'s", "isn", "t", "2")
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="?"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def word_pieces() -> tokenizers.Tokenizer:
    known = ("[UNK]", "a", "h", "##e", "##l", "##lo", "tool", "##box", "it", "!", ",", "?", "e", "x")
    backend = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


def sentence_pieces() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁tool", -3.0), ("a", -4.0), ("t", -4.0), ("o", -4.1), ("l", -4.2)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


KINDS = (byte_level_bpe, words, word_pieces, sentence_pieces)


class Declared:
    """One folder: where each of a few tokens is declared, and with what flags, is drawn anew."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.contents = self.draw.sample(CONTENTS, self.draw.randint(2, 6))
        self.ids: dict[str, int] = {}

    def maybe(self, chance: float = 0.5) -> bool:
        return self.draw.random() < chance

    def some(self) -> list[str]:
        return [content for content in self.contents if self.maybe()]

    def flags(self) -> dict[str, bool]:
        return {flag: self.maybe(0.3) for flag in FLAGS}

    def number(self, backend: tokenizers.Tokenizer, contents: list[str]) -> None:
        """Ids without gaps, as the library gives them."""
        following = max([backend.get_vocab_size(False) - 1, *backend.get_added_tokens_decoder()]) + 1
        for content in contents:
            known = backend.token_to_id(content)
            self.ids[content] = following if known is None else known
            following += known is None

    def token(self, content: str) -> str | dict[str, Any]:
        return content if self.maybe() else {"__type": "AddedToken", "content": content, **self.flags()}

    def names(self) -> dict[str, Any]:
        return {name: self.token(self.draw.choice(self.contents)) for name in NAMES if self.maybe(0.35)}

    def config(self) -> dict[str, Any]:
        config = self.names()
        if self.maybe(0.6):
            config["added_tokens_decoder"] = {
                str(token_id): {"content": content, **(self.flags() if self.maybe(0.8) else {})}
                for content, token_id in self.ids.items()
            }
        if self.maybe(0.3):
            config["additional_special_tokens"] = [self.token(content) for content in self.some()]
        if self.maybe(0.2):
            config["extra_special_tokens"] = [self.token(content) for content in self.some()]
        elif self.maybe(0.2):
            config["extra_special_tokens"] = {f"own_{i}": content for i, content in enumerate(self.some())}
        for name in ("clean_up_tokenization_spaces", "split_special_tokens", "add_bos_token", "add_prefix_space"):
            if self.maybe(0.25):
                config[name] = self.maybe()
        if self.maybe(0.3):
            config["tokenizer_class"] = self.draw.choice(("PreTrainedTokenizerFast", "DreamTokenizer"))
        return config

    def special_map(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            name: token if isinstance(token, str) else {key: token[key] for key in token if key != "__type"}
            for name, token in self.names().items()
        }
        if self.maybe(0.3):
            values[self.draw.choice(("additional_special_tokens", "extra_special_tokens"))] = self.some()
        return values

    def write(self, folder: Path, config: dict[str, Any]) -> None:
        files: dict[str, Any] = {"config": {}, "tokenizer_config": config}
        if self.maybe(0.4):
            files["special_tokens_map"] = self.special_map()
        if self.maybe(0.4):
            files["added_tokens"] = self.ids
        for name, values in files.items():
            (folder / f"{name}.json").write_text(json.dumps(values))


def compare(folder: Path, seed: int) -> None:
    ours = sparsed.load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours._special_tokens == theirs.special_tokens_map
    assert len(ours) == len(theirs)
    for name in ("bos", "eos", "unk", "pad", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    draw = random.Random(seed)
    rows = [[draw.randrange(len(theirs)) for _ in range(30)] for _ in range(5)]
    for text in TEXTS:
        plain = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == plain
        marked = theirs.encode(text)
        bos = [theirs.bos_token_id]
        # A text that begins with bos does not get a second one here; where none is added, it keeps all it has.
        twice = len(marked) > len(plain) and plain[:1] == bos and marked[:2] == bos * 2
        assert ours.encode(text) == marked[twice:]
        rows.append(marked)
    for row in rows:
        for skip in (True, False):
            assert ours.decode(row, skip_special_tokens=skip) == theirs.decode(row, skip_special_tokens=skip)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_json(tmp_path, kind, seed) -> None:
    declared = Declared(seed)
    backend = kind()
    backend.add_tokens([tokenizers.AddedToken(content, **declared.flags()) for content in declared.some()])
    declared.number(backend, declared.some())
    known = [token.content for token in backend.get_added_tokens_decoder().values()]
    if known and declared.maybe(0.3):
        backend.post_processor = processors.TemplateProcessing(
            single=[known[0], "$A", known[-1]], special_tokens=[(c, backend.token_to_id(c)) for c in {*known}]
        )
    if known and declared.maybe(0.2):
        backend.enable_padding(pad_token=known[0], pad_id=backend.token_to_id(known[0]), length=9)
        backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    declared.write(tmp_path, declared.config())
    compare(tmp_path, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_vocabulary_and_merges(tmp_path, seed) -> None:
    declared = Declared(seed)
    model = json.loads(byte_level_bpe().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    declared.number(byte_level_bpe(), declared.some())
    config = declared.config() | {"tokenizer_class": declared.draw.choice(("Qwen2Tokenizer", "Qwen2TokenizerFast"))}
    if declared.maybe(0.3):
        config["add_eos_token"] = declared.maybe()
    declared.write(tmp_path, config)
    compare(tmp_path, seed)
