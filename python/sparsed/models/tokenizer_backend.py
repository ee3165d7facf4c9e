"""Builds the `tokenizers.Tokenizer` of a checkpoint folder, in which every declared token has the id from the files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from . import recognise
from .files import MAX_BYTES, read_json, read_text
from .token_declarations import Declarations, is_id

# The pre-tokenizer of Qwen2 and Dream splits text into contractions, words, single digits, punctuation and spaces.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_VOCAB_FILES = ("vocab.json", "merges.txt")
# Files of tokenizers in other forms, which transformers can convert.
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "tiktoken.model", "tekken.json", "vocab.txt")


def has_tokenizer_files(folder: Path) -> bool:
    """Returns whether `load_backend` finds its files in a folder."""
    return (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in _VOCAB_FILES)


def load_backend(folder: Path, declared: Declarations) -> tokenizers.Tokenizer:
    """Builds the tokenizer from tokenizer.json, or else from vocab.json and merges.txt, and adds the declared tokens.

    Raises:
        FileNotFoundError: The folder has none of these files.
        ValueError: A file is damaged, two tokens have one id, or a token has two ids.
    """
    if (folder / "tokenizer.json").is_file():
        backend = _from_json(folder / "tokenizer.json")
        if backend.padding is not None and "pad_token" not in declared.config:
            declared.named.setdefault("pad_token", backend.padding["pad_token"])
        backend.no_truncation()
        backend.no_padding()
        backend = _add_declared(backend, declared, folder)
    elif has_tokenizer_files(folder):
        backend = _add_declared(_from_vocab(folder, declared), declared, folder)
        set_marks(backend, declared.config, declared.named)
    else:
        others = [name for name in _OTHER_FORMS if (folder / name).is_file()]
        hint = (
            f" ({others[0]} is another form: save_pretrained of transformers writes a tokenizer.json)"
            if others
            else recognise.without_tokenizer(folder)
        )
        raise FileNotFoundError(
            f"load_tokenizer: neither tokenizer.json nor vocab.json and merges.txt exist in {folder}{hint}"
        )
    if declared.qwen2:  # this class of transformers adds its special tokens once more, without their flags
        special = dict.fromkeys(map(str, (*declared.named.values(), *declared.extra)))
        backend.add_tokens([AddedToken(content, special=True) for content in special])
    split = declared.config.get("split_special_tokens", False)
    if not isinstance(split, bool):
        raise ValueError(f"load_tokenizer: split_special_tokens is {split!r:.100}, expected true or false")
    backend.encode_special_tokens = split
    return backend


def _add_declared(backend: tokenizers.Tokenizer, declared: Declarations, folder: Path) -> tokenizers.Tokenizer:
    """Adds the declared tokens in the order and with the flags that transformers gives them.

    There is one difference: transformers renumbers tokens whose ids have gaps, and here they keep the ids of the files.

    Source: transformers 5, `TokenizersBackend.__init__`.
    """
    existing = {token.content: (token, i) for i, token in backend.get_added_tokens_decoder().items()}
    # Without added_tokens_decoder, the flags of tokenizer.json have precedence over those of added_tokens.json.
    added = declared.added if declared.complete else declared.added | existing
    in_order = [token for token, _ in sorted(added.values(), key=lambda item: item[1])]
    others: list[str | AddedToken] = []
    for token in (*declared.named.values(), *declared.extra):
        if str(token) not in existing and str(token) not in added and token not in others:
            others.append(token)
    ids = {content: token_id for content, (_, token_id) in declared.added.items()}
    backend = _place(backend, ids, [str(token) for token in others if str(token)], folder)
    named = set(map(str, declared.named.values()))
    tokens = [*in_order, *(AddedToken(token, special=True) if isinstance(token, str) else token for token in others)]
    for added_token in tokens:
        if added_token.content in named:
            added_token.special = True
    backend.add_tokens(tokens)
    return backend


def _place(
    backend: tokenizers.Tokenizer, ids: Mapping[str, int], others: Iterable[str], folder: Path
) -> tokenizers.Tokenizer:
    """Returns a backend that gives the tokens these ids when they are added in the order of their ids.

    The `others` get the next free ids. The library numbers added tokens without gaps, from the end of the vocabulary
    on. If the ids in the files have gaps, this function puts the tokens into the vocabulary itself.

    Raises:
        ValueError: An id has two tokens, or a token has two ids.
    """
    size = backend.get_vocab_size(with_added_tokens=False)
    next_id = max([size - 1, *backend.get_added_tokens_decoder()]) + 1
    in_sequence = True
    absent: dict[str, int] = {}
    by_id: dict[int, str] = {}
    for content, token_id in sorted(ids.items(), key=lambda item: item[1]):
        known = backend.token_to_id(content)
        other = backend.id_to_token(token_id) or by_id.get(token_id)
        if known is not None and known != token_id:
            raise ValueError(
                f"load_tokenizer: the token {content!r} has ids {known} and {token_id}, expected one (in {folder})"
            )
        if known is None and other is not None:
            raise ValueError(
                f"load_tokenizer: the id {token_id} has tokens {other!r} and {content!r}, expected one (in {folder})"
            )
        if known is None:
            in_sequence &= token_id == next_id
            next_id = max(next_id, token_id + 1)
            absent[content] = token_id
        by_id[token_id] = content
    for content in others:
        if content not in absent and backend.token_to_id(content) is None:
            while backend.id_to_token(next_id) is not None:  # a vocabulary with gaps has ids beyond its size
                in_sequence = False
                next_id += 1
            absent[content] = next_id
            next_id += 1
    return backend if in_sequence else _with_vocabulary(json.loads(backend.to_str()), absent, folder)


def _with_vocabulary(data: dict[str, Any], more: dict[str, int], folder: Path) -> tokenizers.Tokenizer:
    vocab = data["model"]["vocab"]
    if not isinstance(vocab, dict):
        content, token_id = next(iter(more.items()))
        raise ValueError(
            f"load_tokenizer: the token {content!r} has the id {token_id}, expected {len(vocab)}: a vocabulary with "
            f"scores has no gaps (in {folder})"
        )
    vocab |= more
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _from_json(path: Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"load_tokenizer: {path} is not a tokenizer: {error}") from error
    # The library numbers the added tokens itself and drops the ids that the file gives them.
    data = json.loads(text)
    wanted = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    actual = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    if any(token_id != wanted[content] for content, token_id in actual.items()):
        added = sorted(data["added_tokens"], key=lambda token: token["id"])
        bare = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": []}))
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        backend = _place(bare, wanted, [], path.parent)
        backend.add_tokens([AddedToken(token["content"], **{flag: token[flag] for flag in flags}) for token in added])
    return backend


def _from_vocab(folder: Path, declared: Declarations) -> tokenizers.Tokenizer:
    """Builds Qwen2's byte-level BPE from vocab.json and merges.txt."""
    name = declared.config.get("tokenizer_class")
    if name is not None and not declared.qwen2:
        raise ValueError(
            f"load_tokenizer: tokenizer_class is {name!r:.100}, expected Qwen2's or Dream's for vocab.json and "
            f"merges.txt (save_pretrained of transformers writes a tokenizer.json for other classes; in {folder})"
        )
    vocab = read_json(folder / "vocab.json", MAX_BYTES)
    if not all(is_id(token_id) for token_id in vocab.values()):
        raise ValueError(
            f"load_tokenizer: {folder / 'vocab.json'} has ids that are not integers >= 0, expected token ids"
        )
    _check_unique(vocab, folder)
    merges = _read_merges(folder / "merges.txt")
    prefix = declared.config.get("add_prefix_space") or False
    if not isinstance(prefix, bool):
        raise ValueError(f"load_tokenizer: add_prefix_space is {prefix!r:.100}, expected true or false")
    try:
        backend = byte_level_bpe(vocab, merges, QWEN2_PATTERN, add_prefix_space=prefix)
    except ValueError as error:
        raise ValueError(f"load_tokenizer: {folder / 'merges.txt'} does not fit vocab.json: {error}") from error
    backend.normalizer = normalizers.NFC()
    return backend


def byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], pattern: str, *, add_prefix_space: bool
) -> tokenizers.Tokenizer:
    """Builds a byte-level BPE that splits text by the regular expression `pattern` first.

    Raises:
        ValueError: A merge has tokens that are not in the vocabulary.
    """
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(str(error)) from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _check_unique(vocab: dict[str, int], folder: Path) -> None:
    tokens: dict[int, str] = {}
    for token, token_id in vocab.items():
        other = tokens.setdefault(token_id, token)
        if other != token:
            raise ValueError(
                f"load_tokenizer: the id {token_id} has tokens {other!r} and {token!r}, expected one "
                f"(in {folder / 'vocab.json'})"
            )


def set_marks(backend: tokenizers.Tokenizer, config: Mapping[str, Any], named: Mapping[str, str | AddedToken]) -> None:
    """Makes the backend put bos before a text and eos after it, if the config's add_bos_token and add_eos_token say so.

    `named` has the tokens under bos_token and eos_token.
    """
    marks: dict[str, list[str]] = {}
    for key, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        wanted = config.get(key) or False
        if not isinstance(wanted, bool):
            raise ValueError(f"load_tokenizer: {key} is {wanted!r:.100}, expected true or false")
        marks[name] = [str(named[name])] if wanted and name in named else []
    contents = [*marks["bos_token"], *marks["eos_token"]]
    if contents:
        backend.post_processor = processors.TemplateProcessing(
            single=[*marks["bos_token"], "$A", *marks["eos_token"]],
            special_tokens=[(content, backend.token_to_id(content)) for content in contents],
        )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ValueError(f"load_tokenizer: line {number} of {path} is {line!r:.100}, expected two tokens")
        merges.append((parts[0], parts[1]))
    return merges
