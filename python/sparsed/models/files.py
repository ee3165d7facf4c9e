"""Small files of a checkpoint folder: JSON and text, read with errors that name them."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Larger files are refused unread: the largest published tokenizers have a few tens of MB. Parsed JSON takes up to 30
# times its size, so that files of a kind that never is that large have a limit of their own.
MAX_BYTES = 100_000_000
MAX_CONFIG_BYTES = 10_000_000
# Deeper JSON is refused: no published file has more than ten levels.
MAX_DEPTH = 100
# "owner/name", as Hugging Face names a checkpoint.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def demo_model_folder() -> Path:
    """The checkpoint folder inside the package."""
    return Path(str(importlib.resources.files("sparsed") / "demo_model"))


def find_folder(folder: str | os.PathLike[str], function: str) -> Path:
    """`folder` as a path; "demo" stands for the shipped model unless a folder has that name.

    Raises:
        FileNotFoundError: There is no such folder; the message begins with the name of `function`.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        if str(folder) == "demo":
            return demo_model_folder()
        hint = ""
        if _HUB_NAME.fullmatch(str(folder)):
            name = str(folder).split("/")[1]
            hint = f" (nothing is downloaded here: hf download {folder} --local-dir {name})"
        raise FileNotFoundError(f"{function}: folder is {str(folder)!r}, expected an existing folder or 'demo'{hint}")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which then takes the place of `path`: nobody meets half a file, and who maps it keeps his."""
    new = path.with_name(path.name + ".new")
    yield new
    os.replace(new, path)


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """A UTF-8 text.

    Raises:
        ValueError: it is too large or not UTF-8.
    """
    size = os.stat(path).st_size
    if size > max_bytes:
        raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is too large, not UTF-8, not JSON, too deep, or no object.
    """
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str | bytes, source: str, *, unique: bool = False) -> dict[str, Any]:
    """The object in `text`, in UTF-8 where it is bytes; `unique` refuses a name that occurs twice in one object."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        values = json.loads(decoded, object_pairs_hook=_unique_pairs if unique else None)
        if "\\ud" in decoded or "\\uD" in decoded:  # half a surrogate pair is no text
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds a JSON {type(values).__name__}, expected an object")
    _check_depth(values, source)
    return values


def _check_depth(values: dict[str, Any], source: str) -> None:
    """Refuses what could exhaust the stack of code that walks it."""
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for nodes in children for child in nodes if isinstance(child, (dict, list))]
        if not level:
            return
    raise ValueError(f"{source} is nested more than {MAX_DEPTH} levels deep")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the name {name!r} occurs twice")
        values[name] = value
    return values
