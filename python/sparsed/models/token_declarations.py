"""Reads the tokens that the files of a checkpoint folder declare, with transformers' precedence between the files."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from .files import MAX_BYTES, read_json

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Tokens that end a text or a turn in a published family, in addition to the one that the files name eos.
TURN_ENDS = ("<|endoftext|>", "<|eot_id|>", "<|im_end|>")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_DECIMAL_ID = re.compile("[0-9]{1,9}")
# The classes of Qwen2's tokenizer, and the tokens that these classes have unless the files name others.
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_QWEN2_NAMES = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")


@dataclass
class Declarations:
    """The tokens that a folder declares in addition to those of tokenizer.json or vocab.json.

    Attributes:
        config: The content of tokenizer_config.json. If it names no tokenizer_class, that of config.json is used.
        named: The tokens with names: bos_token, mask_token and so on, then those with names that only this folder has.
        extra: The special tokens without a name.
        added: The tokens whose ids are in the files, with these ids, by content.
        qwen2: Whether the class of the tokenizer is Qwen2's, or Dream's copy of it.
        complete: Whether the folder has added_tokens_decoder. If so, the flags in tokenizer.json do not count for named
            tokens.
    """

    config: dict[str, Any]
    named: dict[str, str | AddedToken]
    extra: list[str | AddedToken]
    added: dict[str, tuple[AddedToken, int]]
    qwen2: bool
    complete: bool


class MaskToken(NamedTuple):
    """The id of a mask token, and the name of the file that has this id."""

    id: int
    file: str


def read_optional(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file, or returns an empty one if the file does not exist."""
    return read_json(path) if path.is_file() else {}


def _is_qwen2(config: Mapping[str, Any], folder: Path) -> bool:
    name = config.get("tokenizer_class")
    # Dream's class is a copy of Qwen2's that reads vocab.json and merges.txt.
    return name in _QWEN2_CLASSES or (name == "DreamTokenizer" and not (folder / "tokenizer.json").is_file())


def read_declarations(folder: Path) -> Declarations:
    """Reads the declarations of a folder.

    If tokenizer_config.json has added_tokens_decoder, special_tokens_map.json and added_tokens.json are ignored.
    Otherwise special_tokens_map.json has precedence over tokenizer_config.json.

    Source: transformers 5, `PreTrainedTokenizerBase._from_pretrained`.

    Raises:
        ValueError: A file is damaged or a token is malformed.
    """
    model_config = read_optional(folder / "config.json")
    config = {"tokenizer_class": model_config.get("tokenizer_class")} | read_optional(folder / "tokenizer_config.json")
    complete = "added_tokens_decoder" in config
    special_map = {} if complete else _read_special_map(folder / "special_tokens_map.json")
    qwen2 = _is_qwen2(config, folder)
    defaults = _QWEN2_NAMES if qwen2 else {}
    fields = {name: source[name] for source in (config, special_map) for name in NAMES if name in source}
    custom, extra, additional = _other_special_tokens(config, special_map)
    tokens = {name: token for name, token in (defaults | fields).items() if token is not None} | custom
    named = {name: _token(tokens[name], name) for name in sorted(tokens, key=_order)}
    if complete:
        added = _from_decoder(config["added_tokens_decoder"], folder)
    else:
        # transformers marks these as special: the tokens written as a str, the extra tokens written as a str, and the
        # named tokens of special_tokens_map.json.
        texts = [token for token in (*fields.values(), *extra) if isinstance(token, str)]
        special = {*texts, *(str(named[name]) for name in NAMES if special_map.get(name) is not None)}
        added = _from_added_tokens(folder / "added_tokens.json", special)
    unnamed = [_token(value, "additional_special_tokens") for value in (*extra, *additional)]
    return Declarations(config, named, unnamed, added, qwen2, complete)


def declared_turn_ends(folder: Path) -> list[int]:
    """Returns the ids of the tokens that end a turn, where added_tokens_decoder or added_tokens.json has them.

    Raises:
        ValueError: A file is damaged or a token is malformed.
    """
    decoder = read_optional(folder / "tokenizer_config.json").get("added_tokens_decoder")
    added = _from_added_tokens(folder / "added_tokens.json", ()) if decoder is None else _from_decoder(decoder, folder)
    return [added[token][1] for token in TURN_ENDS if token in added]


def find_mask_token(folder: Path) -> MaskToken | None:
    """Returns the mask token that the files of the tokenizer, or else generation_config.json, name.

    Raises:
        ValueError: A file is damaged or a token is malformed.
    """
    if declared := declared_mask_token(folder):
        return declared
    file = "generation_config.json"
    token_id: Any = read_optional(folder / file).get("mask_token_id")
    return MaskToken(token_id, file) if is_id(token_id) else None


def declared_mask_token(folder: Path) -> MaskToken | None:
    """Returns the mask token that the files of the tokenizer name, if they have its id.

    Raises:
        ValueError: A file is damaged or a token is malformed.
    """
    declared = read_declarations(folder)
    mask = declared.named.get("mask_token")
    if mask is None:
        return None
    if str(mask) in declared.added:
        file = "tokenizer_config.json" if declared.complete else "added_tokens.json"
        return MaskToken(declared.added[str(mask)][1], file)
    path = folder / "tokenizer.json"  # transformers 5 has the ids of added tokens only there
    tokens = read_json(path, MAX_BYTES).get("added_tokens") if path.is_file() else None
    for token in _list(tokens, "added_tokens"):
        if _is_written_token(token) and token["content"] == str(mask) and is_id(token.get("id")):
            return MaskToken(int(token["id"]), path.name)
    return None


def _read_special_map(path: Path) -> dict[str, Any]:
    """Reads the tokens of special_tokens_map.json, which are all special."""
    return {
        name: value | {"special": True} if _is_written_token(value) else value
        for name, value in read_optional(path).items()
    }


def _order(name: str) -> int:
    return NAMES.index(name) if name in NAMES else len(NAMES)


def _other_special_tokens(
    config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Returns the special tokens beside the standard ones.

    These are the tokens with names that only this folder has, and two lists of tokens without names, which the files
    write in a newer and in an older form.
    """
    # A str in tokenizer_config.json has precedence over special_tokens_map.json, but a token with flags has not.
    custom = {name: value for name, value in config.items() if _is_custom_name(name) and isinstance(value, str)}
    flagged = {
        name: value
        for source in (config, special_map)
        for name, value in source.items()
        if _is_custom_name(name) and (_is_written_token(value) or (source is special_map and isinstance(value, str)))
    }
    # transformers 4 called the list additional_special_tokens.
    extra, additional = config.get("extra_special_tokens"), config.get("additional_special_tokens")
    if not extra and "additional_special_tokens" in config:
        extra, additional = additional, None
    if isinstance(extra, Mapping):
        custom |= extra
        extra = None
    custom = custom or dict(_object(config.get("model_specific_special_tokens"), "model_specific_special_tokens"))
    more = special_map.get("extra_special_tokens")
    if isinstance(more, Mapping):
        custom |= more
    elif more is not None:
        extra = [*_list(extra, "extra_special_tokens"), *_list(more, "extra_special_tokens")]
    additional = special_map.get("additional_special_tokens", additional)
    return (
        flagged | custom,
        _list(extra, "extra_special_tokens" if "extra_special_tokens" in config else "additional_special_tokens"),
        _list(additional, "additional_special_tokens") if extra is None else [],
    )


def _is_custom_name(name: str) -> bool:
    return name.endswith("_token") and name not in NAMES


def _is_written_token(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("content"), str)


def _from_decoder(decoder: Any, folder: Path) -> dict[str, tuple[AddedToken, int]]:
    found: dict[str, tuple[AddedToken, int]] = {}
    for key, entry in _object(decoder, "added_tokens_decoder").items():
        if not _is_written_token(entry) or not _DECIMAL_ID.fullmatch(key):
            raise ValueError(
                f"load_tokenizer: added_tokens_decoder has {key!r:.100}: {entry!r:.200}, expected id: token"
            )
        token = _written_token(entry, "added_tokens_decoder", special=False)
        other = found.setdefault(token.content, (token, int(key)))[1]
        if other != int(key):
            raise ValueError(
                f"load_tokenizer: the token {token.content!r} has ids {other} and {key}, expected one (in {folder})"
            )
    return found


def _from_added_tokens(path: Path, special: Container[str]) -> dict[str, tuple[AddedToken, int]]:
    found: dict[str, tuple[AddedToken, int]] = {}
    for content, token_id in read_optional(path).items():
        if not is_id(token_id):
            raise ValueError(
                f"load_tokenizer: added_tokens.json has {content!r}: {token_id!r:.200}, expected a token id"
            )
        is_special = content in special
        found[content] = (AddedToken(content, normalized=not is_special, special=is_special), token_id)
    return found


def is_id(value: Any) -> bool:
    """Returns whether a value of a JSON file is a token id."""
    return type(value) is int and 0 <= value < 2**31


def _token(value: Any, name: str) -> str | AddedToken:
    """Reads a token that is written as a str or as {"content": ..., "lstrip": ...}."""
    if isinstance(value, str):
        return value
    if not _is_written_token(value):
        raise ValueError(f"load_tokenizer: {name} is {value!r:.200}, expected a token")
    return _written_token(value, name, special=True)


def _written_token(value: Mapping[str, Any], name: str, *, special: bool) -> AddedToken:
    flags = {flag: value[flag] for flag in _FLAGS if value.get(flag) is not None}
    wrong = next((flag for flag in flags if not isinstance(flags[flag], bool)), None)
    if wrong is not None:
        raise ValueError(
            f"load_tokenizer: {wrong} of {value['content']!r:.100} is {flags[wrong]!r:.100}, expected true or false "
            f"(in {name})"
        )
    return AddedToken(value["content"], **({"special": special} | flags))


def _list(value: Any, name: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ValueError(f"load_tokenizer: {name} is {value!r:.200}, expected a list of tokens")
    return value or []


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"load_tokenizer: {name} is {value!r:.200}, expected an object")
    return value or {}
