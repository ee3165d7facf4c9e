"""Reads the chat templates of a checkpoint folder, and knows the published ones for folders that lost theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from .files import read_text
from .token_declarations import read_optional

_NO_TOOLS = "{% if tools %}{{ raise_exception('the built-in template has no tools') }}{% endif %}"
# For folders without a template. The tokens in a key occur together only in the published tokenizers of one family;
# the value is the template that these tokenizers are published with.
_PUBLISHED = {
    ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"): (  # LLaDA
        _NO_TOOLS + "{{ bos_token or '<|startoftext|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    ("<|beginoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"): (  # Dream
        _NO_TOOLS + "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}


def read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Returns the template of a folder, several templates by name, or None if it has none.

    chat_template.jinja and additional_chat_templates/NAME.jinja have precedence over tokenizer_config.json. The last
    choice is chat_template.json, where transformers' processors keep templates.

    Raises:
        ValueError: A template is malformed.
    """
    templates = {
        path.stem: read_text(path)
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if path.is_file()
    }
    if (folder / "chat_template.jinja").is_file():
        templates = {"default": read_text(folder / "chat_template.jinja")} | templates
    if templates:
        return templates["default"] if list(templates) == ["default"] else templates
    if config.get("chat_template") is not None:
        return _declared(config["chat_template"], "tokenizer_config.json")
    other = read_optional(folder / "chat_template.json").get("chat_template")
    return None if other is None else _declared(other, "chat_template.json")


def published_template(backend: tokenizers.Tokenizer) -> str | None:
    """Returns the published template of the family whose tokens a tokenizer has; None for other tokenizers."""
    known = (
        text for tokens, text in _PUBLISHED.items() if all(backend.token_to_id(token) is not None for token in tokens)
    )
    return next(known, None)


def _declared(value: Any, file: str) -> str | dict[str, str]:
    """Returns a declared template, or templates by name. A file may write the latter as a list of entries."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        entries = [entry if isinstance(entry, Mapping) else {} for entry in value]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
        if len(named) < len(value) or not all(isinstance(entry.get("name"), str) for entry in entries):
            raise ValueError(
                f"load_tokenizer: chat_template is {value!r:.200}, expected names and templates (in {file})"
            )
        value = named
    if not isinstance(value, dict) or not all(isinstance(template, str) for template in value.values()):
        raise ValueError(f"load_tokenizer: chat_template is {value!r:.200}, expected a template (in {file})")
    return value
