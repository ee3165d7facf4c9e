"""Builds the tokenizer that the metadata of a GGUF file describes: a byte-level BPE.

The file names the rule that splits text, but does not hold it. The rules of LLaDA and Dream are known here.

Source: `llm_tokenizer_bpe` in llama-vocab.cpp of ggml-org/llama.cpp, which writes the rules without possessive
quantifiers; `_set_vocab_gpt2` in conversion/base.py there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, normalizers

from .gguf_file import GgufFile
from .tokenizer_backend import QWEN2_PATTERN, byte_level_bpe, set_marks

# The kinds of tokens, llama_token_type in llama.h.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_KINDS = range(7)


class _Rule(NamedTuple):
    pattern: str
    nfc: bool  # whether the published tokenizer normalises text to NFC


# By tokenizer.ggml.pre. LLaDA has the tokenizer of Ling, which llama.cpp calls BailingMoE.
_LLADA_RULE = _Rule(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    nfc=False,
)
_RULES = {"bailingmoe": _LLADA_RULE, "llada-moe": _LLADA_RULE, "qwen2": _Rule(QWEN2_PATTERN, nfc=True)}

_KEY = "tokenizer.ggml.{}"
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # as the format spells it
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_TEMPLATE, _NAMED_TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"


class GgufTokenizer(NamedTuple):
    """The tokenizer of a file.

    Attributes:
        backend: It converts between text and token ids.
        named: The texts of bos_token, mask_token and so on.
        chat_template: The template of a conversation, several templates by name, or None.
        end_token_ids: The tokens that end a text or a turn.
    """

    backend: tokenizers.Tokenizer
    named: dict[str, str]
    chat_template: str | dict[str, str] | None
    end_token_ids: list[int]


def read_gguf_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Builds the tokenizer of a file.

    Raises:
        ValueError: The file has no tokenizer, one of another kind, or a damaged one.
    """
    for key, known in (("model", ["gpt2"]), ("pre", list(_RULES))):
        value = file.get(_KEY.format(key))
        if value not in known:
            found = "missing" if value is None else repr(value)[:100]
            raise ValueError(
                f"load_tokenizer: {_KEY.format(key)} is {found}, expected one of {known}: the byte-level BPE of LLaDA "
                f"or Dream (in {file.path})"
            )
    tokens = file.texts(_KEY.format("tokens"))
    kinds = _token_kinds(file, tokens)
    rule = _RULES[file.get(_KEY.format("pre"))]
    try:
        backend = byte_level_bpe(_vocabulary(file, tokens, kinds), _merges(file), rule.pattern, add_prefix_space=False)
    except ValueError as error:
        raise ValueError(f"load_tokenizer: the tokenizer of {file.path} is damaged: {error}") from error
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    # A token of the vocabulary keeps its id when it is added.
    backend.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED) and token
        ]
    )
    ids = {key: _token_id(file, key, len(tokens)) for key in (*_NAMED.values(), *_ENDS)}
    named = {name: tokens[token] for name, key in _NAMED.items() if (token := ids[key]) is not None}
    marks = {key: file.get(_KEY.format(key)) for key in ("add_bos_token", "add_eos_token")}
    set_marks(backend, marks, named)
    ends = [token for key in _ENDS if (token := ids[key]) is not None]
    return GgufTokenizer(backend, named, _chat_template(file), ends)


def _token_kinds(file: GgufFile, tokens: list[str]) -> list[int]:
    kinds = file.get(_KEY.format("token_type"))
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not all(kind in _KINDS for kind in kinds):
        raise ValueError(
            f"load_tokenizer: {_KEY.format('token_type')} is damaged, expected {len(tokens)} kinds from 0 to "
            f"{_KINDS[-1]}, one for each token (in {file.path})"
        )
    return kinds


def _vocabulary(file: GgufFile, tokens: list[str], kinds: list[int]) -> dict[str, int]:
    """Returns the ids of all tokens but the unused ones, with which the file fills gaps."""
    vocab: dict[str, int] = {}
    for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != _UNUSED and vocab.setdefault(token, token_id) != token_id:
            raise ValueError(f"the token {token!r} has the ids {vocab[token]} and {token_id}, expected one")
    return vocab


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = []
    for number, text in enumerate(file.texts(_KEY.format("merges"))):
        first, _, second = text.partition(" ")
        if not first or not second:
            raise ValueError(f"merge {number} is {text!r:.100}, expected two tokens")
        merges.append((first, second))
    return merges


def _token_id(file: GgufFile, key: str, num_tokens: int) -> int | None:
    token: Any = file.get(_KEY.format(key))
    if token is not None and (type(token) is not int or not 0 <= token < num_tokens):
        raise ValueError(
            f"load_tokenizer: {_KEY.format(key)} is {token!r:.100}, expected a token id below {num_tokens} "
            f"(in {file.path})"
        )
    return token


def _chat_template(file: GgufFile) -> str | dict[str, str] | None:
    """Returns the template, or several by name: the default one has a key of its own."""
    keys: Mapping[str, str] = {"default": _TEMPLATE}
    if file.get(_NAMED_TEMPLATES) is not None:
        keys = {**keys, **{name: f"{_TEMPLATE}.{name}" for name in file.texts(_NAMED_TEMPLATES)}}
    templates: dict[str, str] = {}
    for name, key in keys.items():
        template = file.get(key)
        if template is None and name == "default":
            continue
        if not isinstance(template, str):
            raise ValueError(f"load_tokenizer: {key} is {template!r:.100}, expected a template (in {file.path})")
        templates[name] = template
    return templates.get("default") if set(templates) <= {"default"} else templates
