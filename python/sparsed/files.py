"""Small files of a checkpoint folder: JSON and text, read with errors that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# A larger JSON or text file is refused unread; the largest published tokenizers have a few tens of MB.
MAX_BYTES = 100_000_000


def find_folder(folder: str | os.PathLike[str], function: str) -> Path:
    """`folder` as a path; FileNotFoundError in the name of `function` where there is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{function}: folder is {str(folder)!r}, expected an existing folder")
    return path


def read_text(path: Path) -> str:
    """A UTF-8 text.

    Raises:
        ValueError: it is too large or not UTF-8.
    """
    size = os.stat(path).st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is too large, not UTF-8, not JSON, or no object.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, source: str, *, unique: bool = False) -> dict[str, Any]:
    """The object in `text`, in UTF-8 where it is bytes; `unique` refuses a name that occurs twice in one object."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        values = json.loads(decoded, object_pairs_hook=_unique_pairs if unique else None)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, _DuplicateNameError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds a JSON {type(values).__name__}, expected an object")
    return values


class _DuplicateNameError(Exception):
    pass


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise _DuplicateNameError(f"the name {name!r} occurs twice")
        values[name] = value
    return values
