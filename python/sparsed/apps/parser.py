"""The parser of the command line: help with defaults and examples, and errors of one line that lead on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

_INVALID_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)$")
_NAMED_FIRST = re.compile(r"(\w+): (\w+)(?=(?:\[\d+\])? (?:is|has)\b)")
# Arguments of the library that have another name on the command line.
_ALIASES = {
    "generate: folder": "MODEL_DIR",
    "eval: folder": "MODEL_DIR",
    "quantize: folder": "MODEL_DIR",
    "quantize: out": "OUT_DIR",
    "quantize: calibration": "--calibrate",
    "set_num_threads: n": "--threads",
    "TaskSet: task": "--tasks",
}
# The end of an error about a key of a model's file; a key can have the name of an option.
_OF_A_FILE = re.compile(r" \(in [^()]+\.json\)$")


class HelpFormatter(argparse.HelpFormatter):
    """Shows the defaults that there are, and the lines of the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if not action.option_strings or default in (None, argparse.SUPPRESS, []) or isinstance(default, bool):
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{action.help or ''} (default: {shown.replace('%', '%%')})".lstrip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example"):
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, with the nearest name if one was mistyped."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        found = _INVALID_CHOICE.search(message)
        hint = nearest(found[1], (choice.strip(" '") for choice in found[2].split(","))) if found else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} (see {self.prog} --help)\n")

    def refuse(self, extras: list[str]) -> NoReturn:
        """Exits with an error that names the unknown arguments."""
        options = [option for action in self._actions for option in action.option_strings]
        mistyped = next((extra for extra in extras if extra.startswith("-")), None)
        hint = "" if mistyped is None else nearest(mistyped.split("=")[0].replace("_", "-"), options)
        if mistyped is None and any(action.dest == "text" for action in self._actions):
            hint = "; a prompt of several words needs quotes around it"
        self.error(f"unrecognized arguments: {' '.join(extras)}{hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the question whether the most similar known name was meant; empty if none is similar."""
    by_letters = {candidate.lstrip("-"): candidate for candidate in known}
    matches = get_close_matches(name.lstrip("-"), by_letters, n=1)
    return f"; did you mean {by_letters[matches[0]]}?" if matches else ""


def in_terms_of_options(error: Exception, arguments: Mapping[str, Any]) -> str:
    """Returns the message of an error with options of the command line in place of files and of arguments.

    Args:
        error: What the library raised.
        arguments: Values by the name of the option.
    """
    message = str(error)
    if _OF_A_FILE.search(message):
        return message
    for name, value in arguments.items():
        for path in _paths(value):
            if isinstance(error, OSError) and error.filename is not None and Path(error.filename) == path:
                return f"{option(name)} is {path}: {error.strerror}"
            if re.match(rf"(\w+: )?{re.escape(str(path))} ", message):
                return f"{option(name)}: {message}"
    first = _NAMED_FIRST.match(message)
    if first and first[2] in arguments:
        message = option(first[2]) + message[first.end() :]
    elif first and first[0] in _ALIASES:
        message = _ALIASES[first[0]] + message[first.end() :]
    for name in arguments:
        if "_" in name:  # a name without an underscore may be an ordinary word
            message = re.sub(rf"(?<![\w./\"'-]){name}(?![\w./\"'-])", option(name), message)
    return message


def _paths(value: Any) -> list[Path]:
    """Returns the files of an option: FILE, or a list of NAME=FILE."""
    if isinstance(value, Path):
        return [value]
    named = [str(entry).rpartition("=") for entry in value] if isinstance(value, list) else []
    return [Path(path) for _, equals, path in named if equals]


def option(name: str) -> str:
    """Returns the option whose value argparse keeps under this name."""
    return "--" + name.replace("_", "-")
