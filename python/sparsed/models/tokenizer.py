"""`load_tokenizer`: text to token ids and back, and chat templates, from the files of a checkpoint folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tokenizers
from numpy.typing import ArrayLike
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from ..checks import id_array
from .chat_template import render
from .files import MAX_BYTES, find_folder, read_json, read_text

Message = Mapping[str, str]

# The pre-tokenizer of Qwen2, which Dream's tokenizer has too: contractions, letters, single digits, punctuation, space.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Tokens that end a turn in a published family, beside the one that the files call eos.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>")
_DECIMAL_ID = re.compile("[0-9]{1,9}")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# For folders without a template: a token that tells the family, and the format that the family was trained on.
_FALLBACK_TEMPLATES = {
    "<|start_header_id|>": (
        "{{ bos_token or '<|startoftext|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "<|im_start|>": (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}


class Tokenizer:
    """A checkpoint's tokenizer; `load_tokenizer` makes it.

    Attributes:
        bos_token_id, eos_token_id, unk_token_id, pad_token_id, mask_token_id: ids, None where the files name no
            such token.
        end_token_ids: tokens after which a text is over.
        chat_template: the jinja2 template of a conversation, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | None = None,
        end_token_ids: Iterable[int] = (),
    ) -> None:
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.unk_token_id = self._special_id("unk_token")
        self.pad_token_id = self._special_id("pad_token")
        self.mask_token_id = self._special_id("mask_token")
        turn_ends = (backend.token_to_id(token) for token in _TURN_ENDS)
        ends = [self.eos_token_id, *end_token_ids, *turn_ends]
        self.end_token_ids = tuple(dict.fromkeys(token for token in ends if token is not None))
        self.chat_template = chat_template or next(
            (text for token, text in _FALLBACK_TEMPLATES.items() if backend.token_to_id(token) is not None), None
        )

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, end_token_ids={self.end_token_ids})"

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows, the added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with the marks that the tokenizer's own files put around a text; no second bos.

        Args:
            text: what to encode.
            add_special_tokens: False leaves the marks out.

        Raises:
            TypeError: text is not a str.
        """
        plain = self._encode(text, add_special_tokens=False)
        if not add_special_tokens:
            return plain
        if self.bos_token_id is not None and plain[:1] == [self.bos_token_id]:
            return plain
        return self._encode(text, add_special_tokens=True)

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = True) -> str:
        """The text of `ids` (n,).

        Raises:
            ValueError, TypeError: ids is not a row of non-negative integers.
        """
        return self._backend.decode(_token_ids("decode", ids), skip_special_tokens=skip_special_tokens)

    def text(self, ids: ArrayLike) -> str:
        """The text of `ids` (n,) up to the first end token: what a generation says."""
        row = _token_ids("text", ids)
        end = next((i for i, token in enumerate(row) if token in self.end_token_ids), len(row))
        return self._backend.decode(row[:end], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of one token, None where it is unknown."""
        return self._backend.token_to_id(token)

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation as text.

        Args:
            messages: {"role": "user", "content": "..."} and so on, in order.
            add_generation_prompt: end with the head of the assistant's turn.

        Raises:
            ValueError: no messages, no template, or the template refuses them.
            TypeError: messages are not as described.
        """
        _check_messages(messages)
        if self.chat_template is None:
            raise ValueError("apply_chat_template: the tokenizer has no chat_template, expected one in its folder")
        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        return render(self.chat_template, variables | self._special_tokens)

    def chat(self, messages: str | Sequence[Message]) -> list[int]:
        """The ids of a prompt that the assistant answers; a str is one message of the user."""
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self._encode(self.apply_chat_template(conversation), add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"encode: text is a {type(text).__name__}, expected a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encode: text has {text[error.start]!r} at {error.start}, expected Unicode (bytes that are no UTF-8?)"
            ) from None
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def _special_id(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint folder: tokenizer.json, or vocab.json and merges.txt (Dream).

    The chat template is chat_template.jinja, else that of tokenizer_config.json, else the published one of the family.

    Raises:
        FileNotFoundError: the folder or its tokenizer files do not exist.
        ValueError: a file is damaged.
    """
    path = find_folder(folder, "load_tokenizer")
    config = _read_optional(path / "tokenizer_config.json")
    special_map = _read_optional(path / "special_tokens_map.json")
    special_tokens = {
        name: content for name in _SPECIAL_NAMES if (content := _content(config.get(name, special_map.get(name))))
    }
    if (path / "tokenizer.json").is_file():
        backend = _from_json(path / "tokenizer.json")
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        backend = _from_vocab(path, config, special_map, set(special_tokens.values()))
    else:
        raise FileNotFoundError(f"load_tokenizer: neither tokenizer.json nor vocab.json and merges.txt exist in {path}")
    return Tokenizer(backend, special_tokens, _chat_template(path, config), _end_tokens(path))


def _from_json(path: Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"load_tokenizer: {path} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _from_vocab(
    path: Path, config: Mapping[str, Any], special_map: Mapping[str, Any], special: set[str]
) -> tokenizers.Tokenizer:
    """Qwen2's byte-level BPE. Added tokens enter the vocabulary under the ids that the files give them."""
    vocab: dict[str, int] = read_json(path / "vocab.json", MAX_BYTES)
    for source in (config, special_map):
        more = source.get("additional_special_tokens")
        special |= {content for token in (more if isinstance(more, list) else []) if (content := _content(token))}
    added = _added_tokens(path, config, special)
    if not all(_is_id(token_id) for token_id in vocab.values()):
        raise ValueError(f"load_tokenizer: {path / 'vocab.json'} has ids that are no integers, expected token ids")
    for token, token_id in added:
        if vocab.setdefault(token.content, token_id) != token_id:
            _fail_added(path, token.content, token_id, vocab[token.content])
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=_read_merges(path / "merges.txt")))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"load_tokenizer: {path / 'merges.txt'} does not fit vocab.json: {error}") from error
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([token for token, _ in added])
    return backend


def _added_tokens(path: Path, config: Mapping[str, Any], special: set[str]) -> list[tuple[AddedToken, int]]:
    """Tokens beside the vocabulary and their ids, from tokenizer_config.json and added_tokens.json."""
    found: dict[str, tuple[AddedToken, int]] = {}
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise ValueError(
            f"load_tokenizer: added_tokens_decoder is {decoder!r:.200}, expected ids and tokens (in {path})"
        )
    for key, entry in decoder.items():
        content = _content(entry)
        if content is None or not isinstance(entry, Mapping) or not _DECIMAL_ID.fullmatch(key):
            raise ValueError(f"load_tokenizer: added_tokens_decoder has {key!r}: {entry!r:.200}, expected id: token")
        options = {name: bool(entry.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        found[content] = (AddedToken(content, **options), int(key))
    for content, token_id in _read_optional(path / "added_tokens.json").items():
        if not _is_id(token_id):
            raise ValueError(
                f"load_tokenizer: added_tokens.json has {content!r}: {token_id!r:.200}, expected a token id"
            )
        if content not in found:
            is_special = content in special
            found[content] = (AddedToken(content, normalized=not is_special, special=is_special), token_id)
        elif found[content][1] != token_id:
            _fail_added(path, content, token_id, found[content][1])
    return sorted(found.values(), key=lambda item: item[1])


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _fail_added(path: Path, content: str, token_id: int, other: int) -> NoReturn:
    raise ValueError(f"load_tokenizer: the token {content!r} has ids {token_id} and {other}, expected one (in {path})")


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


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    """A token that is given as a str or as {"content": ...}."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = (entry for entry in template if isinstance(entry, Mapping) and entry.get("name") == "default")
        template = next((entry.get("template") for entry in named), None)
    return template if isinstance(template, str) else None


def _end_tokens(path: Path) -> list[int]:
    """The end tokens that the model's own files list."""
    ends: list[int] = []
    for name in ("config.json", "generation_config.json"):
        value = _read_optional(path / name).get("eos_token_id")
        ends += [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]
    return ends


def _token_ids(function: str, ids: ArrayLike) -> list[int]:
    array = id_array(function, "ids", ids, "one row of token ids")
    if array.ndim != 1:
        raise ValueError(f"{function}: ids has shape {list(array.shape)}, expected one dimension")
    if array.size and not 0 <= array.min() <= array.max() < 2**32:
        raise ValueError(f"{function}: ids has values {array.min()} ... {array.max()}, expected token ids")
    return [int(token) for token in array]


def _check_messages(messages: Sequence[Message]) -> None:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"apply_chat_template: messages is a {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise ValueError("apply_chat_template: messages is empty, expected at least one")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise TypeError(f"apply_chat_template: message {number} is {message!r:.100}, expected a role and a content")
