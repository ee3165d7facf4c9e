"""`load_tokenizer`: text to token ids and back, and chat templates, from the files of a checkpoint folder."""

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
from .token_declarations import read_declarations, read_optional
from .tokenizer_backend import load_backend

# Tokens that end a turn in a published family, beside the one that the files call eos.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>")
# Decoders that join words with spaces leave these; `clean_up_tokenization_spaces` asks for the form on the right.
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
    """A checkpoint's tokenizer; `load_tokenizer` makes it.

    Attributes:
        bos_token_id, eos_token_id, unk_token_id, pad_token_id, mask_token_id: ids, None where the files name no
            such token.
        end_token_ids: tokens after which a text is over.
        chat_template: the jinja2 template of a conversation, a dict where there are several by name, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | Mapping[str, str] | None = None,
        end_token_ids: Iterable[int] = (),
        clean_up_spaces: bool = False,
    ) -> None:
        self._backend = backend
        self._clean_up_spaces = clean_up_spaces
        self._special_tokens = dict(special_tokens)
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.unk_token_id = self._special_id("unk_token")
        self.pad_token_id = self._special_id("pad_token")
        self.mask_token_id = self._special_id("mask_token")
        turn_ends = (backend.token_to_id(token) for token in _TURN_ENDS)
        ends = [self.eos_token_id, *end_token_ids, *turn_ends]
        self.end_token_ids = tuple(dict.fromkeys(token for token in ends if token is not None))
        self.chat_template = chat_template if chat_template is not None else published_template(backend)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, end_token_ids={self.end_token_ids})"

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows, the added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True, *, repeat_bos: bool = False) -> list[int]:
        """The ids of `text`, with the special tokens that the folder's files put around a text.

        Args:
            text: what to encode.
            add_special_tokens: False leaves these special tokens out.
            repeat_bos: give a text that begins with bos a second one, as transformers does; by default it gets none.

        Raises:
            TypeError: text is not a str.
            ValueError: text has half a surrogate pair, which is no Unicode.
        """
        plain = self._encode(text, add_special_tokens=False)
        if not add_special_tokens:
            return plain
        marked = self._encode(text, add_special_tokens=True)
        bos = [self.bos_token_id]
        second = len(marked) > len(plain) and plain[:1] == bos and marked[:2] == bos * 2
        return marked[1:] if second and not repeat_bos else marked

    def decode(self, ids: ArrayLike, skip_special_tokens: bool = True) -> str:
        """The text of `ids` (n,).

        Raises:
            ValueError, TypeError: ids is not a row of non-negative integers.
        """
        return self._decode(_token_ids("decode", ids), skip_special_tokens)

    def text(self, ids: ArrayLike) -> str:
        """The text of `ids` (n,) up to the first end token: what a generation says."""
        row = _token_ids("text", ids)
        end = next((i for i, token in enumerate(row) if token in self.end_token_ids), len(row))
        return self._decode(row[:end], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of one token, None where it is unknown."""
        return self._backend.token_to_id(token)

    def count_unknown(self, ids: ArrayLike) -> int:
        """How many of `ids` (n,) stand for text that the vocabulary lacks."""
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
        """The prompt of a conversation as text, as transformers renders it.

        Args:
            messages: {"role": "user", "content": "..."} and so on, in order.
            add_generation_prompt: end with the head of the assistant's turn.
            tools: JSON schemas of functions that the assistant may call.
            documents: {"title": "...", "text": "..."} and so on, for templates that take them.
            chat_template: the name of one of the folder's templates, or a jinja2 template. By default "tool_use"
                if tools are given and the folder has it, else "default".
            continue_final_message: end with the content of the last message, which the model then continues; a str
                names another field to continue. Needs add_generation_prompt=False.
            variables: other variables of the template, such as enable_thinking. They replace special tokens of the
                same name.

        Raises:
            ValueError: no messages, no template, or the template refuses them.
            TypeError: messages, tools, documents or variables are not as described.
        """
        check_messages(messages)
        return render_chat(
            choose_template(self.chat_template, chat_template, tools),
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            continue_final_message=continue_final_message,
            variables=self._special_tokens | variables,
        )

    def chat(self, messages: str | Sequence[Message], **options: Any) -> list[int]:
        """The ids of a prompt that the assistant answers; a str is one message of the user.

        Args:
            messages: the conversation.
            options: as for apply_chat_template.
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
    """The tokenizer of a checkpoint folder: tokenizer.json, or vocab.json and merges.txt (Qwen2, Dream).

    "demo" stands for the shipped model unless a folder has that name.

    Tokens that tokenizer_config.json, special_tokens_map.json or added_tokens.json declare are added, with the
    precedence that transformers 5 gives these files. The chat template is chat_template.jinja with
    additional_chat_templates/, else that of tokenizer_config.json, else that of chat_template.json. A folder that has
    the tokens of LLaDA or Dream and no template gets the published template of that family.

    Raises:
        FileNotFoundError: the folder or its tokenizer files do not exist.
        ValueError: a file is damaged, or the files contradict each other on the id of a token.
    """
    path = find_folder(folder, "load_tokenizer")
    declared = read_declarations(path)
    backend = load_backend(path, declared)
    special_tokens = {name: str(token) for name, token in declared.named.items()}
    clean_up = _cleans_up(backend, declared.config)
    return Tokenizer(backend, special_tokens, read_chat_template(path, declared.config), _end_tokens(path), clean_up)


def _cleans_up(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether decode removes the spaces before punctuation. With BPE the folder has to force it, as in transformers."""
    force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    wanted = bool(config.get("clean_up_tokenization_spaces"))
    return wanted and (not isinstance(backend.model, tokenizers.models.BPE) or bool(config.get(force)))


def _end_tokens(path: Path) -> list[int]:
    """The end tokens that the model's own files list."""
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
