"""Small files of a checkpoint folder: JSON and text, read with errors that name them."""

from __future__ import annotations

import codecs
import contextlib
import importlib.resources
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import recognise

# Larger files are refused unread: the largest published tokenizers have a few tens of MB. Parsed JSON takes up to 30
# times its size, so that files of a kind that never is that large have a limit of their own.
MAX_BYTES = 100_000_000
MAX_CONFIG_BYTES = 10_000_000
# Deeper JSON is refused: no published file has more than ten levels.
MAX_DEPTH = 100
# "owner/name", as Hugging Face names a checkpoint, or the address of its page.
_HUB_NAME = re.compile(r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/|hf://)?(\w[\w.-]*/(\w[\w.-]*))(?:/tree/.*)?/?")
# Byte order marks of the encodings that are not read. UTF-32 goes first: its mark begins with that of UTF-16.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def demo_model_folder() -> Path:
    """The checkpoint folder inside the package."""
    return Path(str(importlib.resources.files("sparsed") / "demo_model"))


def find_folder(folder: str | os.PathLike[str], function: str) -> Path:
    """`folder` as a path; "demo" stands for the shipped model unless a folder has that name.

    Raises:
        FileNotFoundError: There is no such folder; the message begins with `function` and says what the path is.
        TypeError: It is not a path.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"{function}: folder is {folder!r:.200}, expected a path")
    path = Path(folder).expanduser()
    if not path.is_dir():
        if str(folder) == "demo":
            return demo_model_folder()
        hint = ""
        if path.is_file():
            hint = f": {recognise.file(path)}"
        elif name := _HUB_NAME.fullmatch(str(folder)):
            hint = f" (nothing is downloaded here: hf download {name[1]} --local-dir {name[2]})"
        raise FileNotFoundError(f"{function}: folder is {str(folder)!r}, expected an existing folder or 'demo'{hint}")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which then takes the place of `path`: nobody meets half a file, and who maps it keeps his."""
    new = path.with_name(path.name + ".new")
    yield new
    os.replace(new, path)


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """A UTF-8 text, without its byte order mark, with a line feed at the end of each line.

    Raises:
        ValueError: it is too large, not UTF-8, or a Git LFS pointer.
    """
    size = os.stat(path).st_size
    if size > max_bytes:
        raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
    return decode_text(path.read_bytes(), str(path))


def decode_text(data: bytes, source: str) -> str:
    """The UTF-8 text in `data`, without its byte order mark, with a line feed at the end of each line.

    Raises:
        ValueError: it is in another encoding, or a Git LFS pointer.
    """
    if recognise.first_bytes(data) == recognise.LFS_POINTER:
        raise ValueError(f"{source} is {recognise.LFS_POINTER}")
    encoding = next((name for mark, name in _OTHER_MARKS if data.startswith(mark)), None)
    if encoding is None and len(data) > 1 and (data[0] == 0) != (data[1] == 0):
        encoding = "UTF-16"  # without a mark: every second byte of Latin letters is 0
    if encoding is not None:
        raise ValueError(f"{source} is not UTF-8: it is {encoding}, so save it as UTF-8")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
