"""Loads the tokenizer of a checkpoint, which converts between text and token ids and renders conversations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from numpy.typing import ArrayLike

from ..checks import id_array
from .chat import Message, check_messages, choose_template, render_chat
from .chat_template_files import published_template, read_chat_template
from .files import find_folder
from .gguf import find_gguf
from .gguf_config import family_of
from .gguf_file import GgufFile
from .gguf_tokenizer import read_gguf_tokenizer
from .loader import read_config
from .token_declarations import TURN_ENDS, read_declarations, read_optional
from .tokenizer_backend import has_tokenizer_files, load_backend

# Variables of the chat template that a family was trained with. Source: get_tokenizer in dllm/utils/models.py.
_VARIABLES = {"a2d": {"enable_thinking": False}}

# Decoders that join words with spaces leave the forms on the left. `clean_up_tokenization_spaces` asks for those on
# the right.
_SPACES = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class Tokenizer:
    """The tokenizer of a checkpoint. `load_tokenizer` makes it.

    Attributes:
        bos_token_id, eos_token_id, unk_token_id, pad_token_id, mask_token_id: The ids of these tokens. None if the
            files name no such token.
        end_token_ids: The tokens that end a text.
        family: The family of the model in the same folder, as in `ModelConfig`; None if there is none that loads.
        chat_template: The jinja2 template of a conversation, a dict of templates by name, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | Mapping[str, str] | None = None,
        end_token_ids: Iterable[int] = (),
        clean_up_spaces: bool = False,
        family: str | None = None,
    ) -> None:
        self._backend = backend
        self._clean_up_spaces = clean_up_spaces
        self.family = family
        self._special_tokens = dict(special_tokens)
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.unk_token_id = self._special_id("unk_token")
        self.pad_token_id = self._special_id("pad_token")
        self.mask_token_id = self._special_id("mask_token")
        turn_ends = (backend.token_to_id(token) for token in TURN_ENDS)
        ends = [self.eos_token_id, *end_token_ids, *turn_ends]
        self.end_token_ids = tuple(dict.fromkeys(token for token in ends if token is not None))
        self.chat_template = chat_template if chat_template is not None else published_template(backend)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, end_token_ids={self.end_token_ids})"

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the tokenizer knows, including the added ones."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True, *, repeat_bos: bool = False) -> list[int]:
        """Returns the ids of `text`, with the special tokens that the folder's files put around a text.

        Args:
            text: The text to encode.
            add_special_tokens: False leaves out the special tokens around the text.
            repeat_bos: Give a text that begins with the bos token a second one, as transformers does.

        Raises:
            TypeError: `text` is not a str.
            ValueError: `text` is not valid Unicode.
        """
        plain = self._encode(text, add_special_tokens=False)
        if not add_special_tokens:
            return plain
        marked = self._encode(text, add_special_tokens=True)
        bos = [self.bos_token_id]
        second = len(marked) > len(plain) and plain[:1] == bos and marked[:2] == bos * 2
        return marked[1:] if second and not repeat_bos else marked

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids` (n,).

        Raises:
            ValueError, TypeError: `ids` is not a one-dimensional array of non-negative integers.
        """
        return self._decode(_token_ids("decode", ids), skip_special_tokens)

    def text(self, ids: ArrayLike) -> str:
        """Returns the text of `ids` (n,) up to the first end token. Generated tokens after it have no meaning."""
        token_ids = _token_ids("text", ids)
        end = next((i for i, token in enumerate(token_ids) if token in self.end_token_ids), len(token_ids))
        return self._decode(token_ids[:end], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """Returns the id of one token, or None if it is unknown."""
        return self._backend.token_to_id(token)

    def count_unknown(self, ids: ArrayLike) -> int:
        """Returns how many of `ids` (n,) stand for text that is not in the vocabulary."""
        unk_token = getattr(self._backend.model, "unk_token", None)
        unknown = {self.unk_token_id, None if unk_token is None else self.token_id(unk_token)}
        return sum(token in unknown for token in _token_ids("count_unknown", ids))

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """Returns the prompt of a conversation as text, as transformers renders it.

        Args:
            messages: The messages in order, such as {"role": "user", "content": "..."}.
            add_generation_prompt: Whether the prompt ends with the header of the assistant's turn.
            tools: The JSON schemas of functions that the assistant may call.
            documents: Documents such as {"title": "...", "text": "..."}, for templates that take them.
            chat_template: The name of one of the folder's templates, or a jinja2 template. The default is "tool_use"
                if tools are given and the folder has it, and "default" otherwise.
            continue_final_message: Whether the prompt ends with the content of the last message, so that the model
                continues it. A str names another field to continue. Needs add_generation_prompt=False.
            variables: Other variables of the template, such as enable_thinking, which is False for the A2D family
                unless it is given. They replace special tokens of the same name.

        Raises:
            ValueError: There are no messages, there is no template, or the template refuses the messages.
            TypeError: `messages`, `tools`, `documents` or `variables` are not as described.
        """
        check_messages(messages)
        return render_chat(
            choose_template(self.chat_template, chat_template, tools),
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            continue_final_message=continue_final_message,
            variables=self._special_tokens | _VARIABLES.get(self.family or "", {}) | variables,
        )

    def chat(self, messages: str | Sequence[Message], **options: Any) -> list[int]:
        """Returns the token ids of a prompt that the assistant answers.

        Args:
            messages: The conversation. A str stands for one message of the user.
            options: The options of `apply_chat_template`.
        """
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self._encode(self.apply_chat_template(conversation, **options), add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"encode: text is a {type(text).__name__}, expected a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encode: text has {text[error.start]!r} at {error.start}, expected Unicode text (was it read from "
                "bytes that are not UTF-8?)"
            ) from None
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self._clean_up_spaces:
            for spaced, written in _SPACES.items():
                text = text.replace(spaced, written)
        return text

    def _special_id(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Loads the tokenizer of a checkpoint folder: tokenizer.json, or vocab.json and merges.txt (Qwen2, Dream).

    It may also lie in a GGUF file, which is given by its path, or as the only one in a folder without these files.
    "demo" stands for the shipped model unless a folder has that name.

    Tokens that tokenizer_config.json, special_tokens_map.json or added_tokens.json declare are added, with the
    precedence that transformers 5 gives these files. The chat template comes from chat_template.jinja and
    additional_chat_templates/, or else from tokenizer_config.json, or else from chat_template.json. A folder without
    a template gets the published template of LLaDA or Dream if it has the tokens of that family.

    Raises:
        FileNotFoundError: The folder or its tokenizer files do not exist.
        ValueError: A file is damaged, the files give a token different ids, or a GGUF file has a tokenizer of another
            kind.
    """
    path = find_folder(folder, "load_tokenizer")
    if not has_tokenizer_files(path) and (gguf := find_gguf(path, "load_tokenizer")):
        file = GgufFile(gguf, "load_tokenizer")
        found = read_gguf_tokenizer(file)
        return Tokenizer(found.backend, found.named, found.chat_template, found.end_token_ids, family=family_of(file))
    declared = read_declarations(path)
    backend = load_backend(path, declared)
    special_tokens = {name: str(token) for name, token in declared.named.items()}
    clean_up = _cleans_up(backend, declared.config)
    template = read_chat_template(path, declared.config)
    return Tokenizer(backend, special_tokens, template, _end_tokens(path), clean_up, _family(path))


def _family(path: Path) -> str | None:
    """Returns the family of the model beside the tokenizer; None if there is none that `load_model` reads."""
    try:
        return read_config(path)[0].family
    except (FileNotFoundError, ValueError):
        return None


def _cleans_up(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> bool:
    """Returns whether `decode` removes the spaces before punctuation. With BPE, a second key must ask for it, too."""
    # transformers has this key because the clean-up removes spaces that byte-level BPE keeps exactly.
    force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    wanted = bool(config.get("clean_up_tokenization_spaces"))
    return wanted and (not isinstance(backend.model, tokenizers.models.BPE) or bool(config.get(force)))


def _end_tokens(path: Path) -> list[int]:
    """Reads the end tokens from the files of the model. They may list more than those of the tokenizer."""
    ends: list[int] = []
    for name in ("config.json", "generation_config.json"):
        value = read_optional(path / name).get("eos_token_id")
        ends += [
            token for token in (value if isinstance(value, list) else [value]) if type(token) is int and token >= 0
        ]
    return ends


def _token_ids(function: str, ids: ArrayLike) -> list[int]:
    array = id_array(function, "ids", ids, "one row of token ids")
    if array.ndim != 1:
        raise ValueError(f"{function}: ids has shape {list(array.shape)}, expected one dimension")
    if array.size and not 0 <= array.min() <= array.max() < 2**32:
        raise ValueError(f"{function}: ids has values {array.min()} ... {array.max()}, expected token ids")
    return [int(token) for token in array]
