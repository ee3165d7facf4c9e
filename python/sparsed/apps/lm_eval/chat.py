"""Conversations as text, by the rules of lm-eval's `hf` backend."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ...models.chat import Message
from ...models.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


def conversation_text(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """Returns the conversation in the tokenizer's chat template.

    A template that fails is tried once more without the messages of the system: some templates know no such role.

    Args:
        tokenizer: What `load_tokenizer` returns.
        messages: Roles and contents.
        add_generation_prompt: End with the head of the assistant's turn. False leaves the last message open.
        variables: Other arguments of `Tokenizer.apply_chat_template`, such as enable_thinking.

    Raises:
        ValueError: The template fails, or it does not write the last message that should stay open.
    """
    variables = {"continue_final_message": not add_generation_prompt, **variables}
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt, **variables)
    except ValueError as error:
        without_system = [message for message in messages if message["role"] != "system"]
        if not isinstance(error.__cause__, jinja2.TemplateError) or len(without_system) == len(messages):
            raise
        _log.warning("%s; the system messages are left out", error)
        return tokenizer.apply_chat_template(without_system, add_generation_prompt, **variables)


def fingerprint(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> str:
    """Returns a short hash of everything that decides how a conversation becomes text."""
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    names = [None if token is None else tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
    text = json.dumps([tokenizer.chat_template, names, dict(variables)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
