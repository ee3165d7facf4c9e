"""Builds the prompt of a conversation: chooses its template and passes messages, tools and documents as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .chat_template import render

Message = Mapping[str, Any]

# Marks the end of the text to continue. The space at its end shows whether the template trimmed the message.
_END_OF_TEXT = "CONTINUE_FINAL_MESSAGE_TAG "
# The keys under which messages carry reasoning. Most templates read the first, some the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def choose_template(
    chat_template: str | Mapping[str, str] | None, name: str | None, tools: Sequence[Any] | None
) -> str:
    """Returns the template for a conversation.

    Args:
        chat_template: The tokenizer's template, or several templates by name.
        name: The name of one of these templates, or a template itself. None chooses "tool_use" if there are tools and
            a template has that name, and "default" otherwise.
        tools: The tools of the conversation.

    Raises:
        ValueError: There is no template, or no template has that name.
    """
    named = chat_template if isinstance(chat_template, Mapping) else {}
    if name is not None:
        if name in named:
            return named[name]
        if "{" in name:  # this is a template and not a name
            return name
        raise ValueError(f"apply_chat_template: chat_template is {name!r:.100}, expected a template or {_names(named)}")
    if tools is not None and "tool_use" in named:
        return named["tool_use"]
    if "default" in named:
        return named["default"]
    if chat_template is None:
        raise ValueError(
            "apply_chat_template: the tokenizer has no chat_template, expected one in its folder or chat_template="
        )
    if isinstance(chat_template, Mapping):
        raise ValueError(
            "apply_chat_template: the folder names its chat templates and none of them is the default, expected "
            f"chat_template= with {_names(named)}"
        )
    return chat_template


def _names(named: Mapping[str, str]) -> str:
    return f"one of the names {', '.join(map(repr, sorted(named)))}" if named else "a name (the folder has none)"


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    continue_final_message: bool | str,
    variables: Mapping[str, Any],
) -> str:
    """Renders a conversation as text, with the variables that transformers gives to a template.

    Source: transformers 5, `utils/chat_template_utils.py`, `render_jinja_template`.
    """
    chat = [_message(message, number) for number, message in enumerate(messages)]
    end = _mark_end(template, chat, continue_final_message, add_generation_prompt) if continue_final_message else None
    text = render(
        template,
        {
            "messages": chat,
            "add_generation_prompt": add_generation_prompt,
            "tools": _objects(tools, "tools", "a JSON schema as a dict (transformers.utils.get_json_schema makes one)"),
            "documents": _objects(documents, "documents", "a dict with title and text"),
            **{name: _plain(value, name) for name, value in variables.items()},
        },
    )
    return text if end is None else _cut(text, end)


def check_messages(messages: Sequence[Message]) -> None:
    """Checks that `messages` is a conversation.

    Raises:
        TypeError: `messages` is not a list of dicts with a role and a content.
        ValueError: `messages` is empty.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"apply_chat_template: messages is a {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise ValueError("apply_chat_template: messages is empty, expected at least one")
    for number, message in enumerate(messages):
        given = {key: value for key, value in message.items() if value is not None} if _is_object(message) else {}
        content = given.get("content")
        parts = isinstance(content, Sequence) and all(isinstance(part, (str, Mapping)) for part in content)
        # An assistant's message that calls tools has tool_calls, and it may have no content.
        if not isinstance(given.get("role"), str) or not (parts or ("content" not in given and len(given) > 1)):
            raise TypeError(f"apply_chat_template: message {number} is {message!r:.100}, expected a role and a content")


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _message(message: Message, number: int) -> dict[str, Any]:
    """Returns a message as templates expect it: without nulls, and with its reasoning under the keys they read."""
    plain: dict[str, Any] = {
        key: _plain(value, f"{key} of message {number}") for key, value in message.items() if value is not None
    }
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any, name: str) -> Any:
    """Copies JSON data into plain Python types, because a template must not reach the methods of other objects."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (str, bool, int, float):
        return value
    # Subclasses lose their methods here, too: the base class converts them.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, name) for item in value)
    raise TypeError(f"apply_chat_template: {name} has a {type(value).__name__}, expected text, numbers, lists, dicts")


def _objects(values: Sequence[Mapping[str, Any]] | None, name: str, expected: str) -> list[dict[str, Any]] | None:
    if values is None:
        return None
    if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
        raise TypeError(f"apply_chat_template: {name} is a {type(values).__name__}, expected a list")
    for number, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise TypeError(f"apply_chat_template: {name}[{number}] is a {type(value).__name__}, expected {expected}")
    return [_plain(value, name) for value in values]


def _mark_end(template: str, chat: list[dict[str, Any]], continued: bool | str, add_generation_prompt: bool) -> str:
    """Marks the end of the text that the model is to continue, in the last message of `chat`. Returns that text."""
    if add_generation_prompt:
        raise ValueError(
            "apply_chat_template: continue_final_message and add_generation_prompt are both set, expected one of them"
        )
    name = continued if isinstance(continued, str) else "content"
    last = chat[-1]
    text = last.get(name)
    if text is None:
        raise ValueError(f"apply_chat_template: the last message has no {name!r:.100}, expected text to continue")
    names = [other for other in _REASONING if last.get(other) == text] if name in _REASONING else [name]
    if not any(other in template for other in names):
        raise ValueError(
            f"apply_chat_template: the chat template does not use {name!r:.100}, expected it to be continued"
        )
    if isinstance(text, str):
        last |= {other: text + _END_OF_TEXT for other in names}
        return text
    part = next((part for part in reversed(text) if isinstance(part, dict) and isinstance(part.get("text"), str)), None)
    if part is None:
        raise ValueError("apply_chat_template: the last message has no text, expected text to continue")
    text = str(part["text"])
    part["text"] += _END_OF_TEXT
    return text


def _cut(rendered: str, text: str) -> str:
    """Returns the rendered conversation up to the mark.

    A template that trims its messages has trimmed the space at the end of the mark, too. The text in front of the mark
    is then trimmed in the same way.
    """
    mark = _END_OF_TEXT.strip()
    if text.strip() not in rendered or mark not in rendered:
        raise ValueError(
            f"apply_chat_template: the last message {text.strip()!r:.100} is not in the text of the chat template, "
            "expected it at the end"
        )
    at = rendered.rindex(mark)
    return rendered[:at] if rendered.startswith(_END_OF_TEXT, at) else rendered[:at].rstrip()
