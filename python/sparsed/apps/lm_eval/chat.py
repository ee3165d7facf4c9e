"""Conversations as text, by the rules of lm-eval's `hf` backend."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ...models.files import read_json, read_text
from ...models.tokenizer import Message, Tokenizer

_log = logging.getLogger(__name__)

# It marks where an open message ends. The space at its end shows whether the template strips the message.
_TAG = "SPARSED_END_OF_OPEN_MESSAGE "


def conversation_text(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """The conversation in the tokenizer's chat template.

    A template that fails is tried once more without the messages of the system: some templates know no such role.

    Args:
        tokenizer: What `load_tokenizer` returns.
        messages: Roles and contents.
        add_generation_prompt: End with the head of the assistant's turn. False leaves the last message open.
        variables: More variables of the template, such as enable_thinking.

    Raises:
        ValueError: The template fails, or it does not write the last message that should stay open.
    """
    try:
        return _rendered(tokenizer, messages, add_generation_prompt, variables)
    except ValueError as error:
        without_system = [message for message in messages if message["role"] != "system"]
        if not isinstance(error.__cause__, jinja2.TemplateError) or len(without_system) == len(messages):
            raise
        _log.warning("%s; the system messages are left out", error)
        return _rendered(tokenizer, without_system, add_generation_prompt, variables)


def _rendered(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    if add_generation_prompt or not messages:
        return tokenizer.apply_chat_template(messages, add_generation_prompt, **variables)
    *before, last = messages
    tagged = {**last, "content": last["content"] + _TAG}
    text = tokenizer.apply_chat_template([*before, tagged], False, **variables)
    end = text.rfind(_TAG.rstrip())
    if end < 0 or last["content"].strip() not in text:
        raise ValueError(
            f"apply_chat_template: the chat template does not write the last message {last['content']!r:.100}, "
            "expected a template that does, since the message is to be continued"
        )
    return text[:end] if text.startswith(_TAG, end) else text[:end].rstrip()


def named_templates(folder: Path) -> dict[str, str]:
    """The folder's chat templates by name; none where it has only one, which then needs no name."""
    config = folder / "tokenizer_config.json"
    listed = read_json(config).get("chat_template") if config.is_file() else None
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    found = {str(entry.get("name")): str(entry.get("template")) for entry in entries}
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if (found or more) and (folder / "chat_template.jinja").is_file():
        more.append(folder / "chat_template.jinja")
    return found | {"default" if path.parent == folder else path.stem: read_text(path) for path in more}


def fingerprint(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> str:
    """A short hash of everything that decides how a conversation becomes text."""
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    names = [None if token is None else tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
    text = json.dumps([tokenizer.chat_template, names, dict(variables)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
