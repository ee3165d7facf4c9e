"""Finds a checkpoint folder and reads its JSON and text files. Every error names its file."""

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

# Larger files are refused before they are read. The largest published tokenizers have a few tens of MB. Parsed JSON
# takes up to 30 times the size of its file, so other files, which are never that large, have a lower limit.
MAX_BYTES = 100_000_000
MAX_CONFIG_BYTES = 10_000_000
# JSON that is nested deeper is refused. No published file has more than ten levels.
MAX_DEPTH = 100
# Matches "owner/name", which is how Hugging Face names a checkpoint, or the address of its page.
_HUB_NAME = re.compile(r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/|hf://)?(\w[\w.-]*/(\w[\w.-]*))(?:/tree/.*)?/?")
# Byte order marks of encodings that are refused. UTF-32 comes first because its mark begins with that of UTF-16.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def demo_model_folder() -> Path:
    """Returns the checkpoint folder of the demo model, which lies inside the package."""
    return Path(str(importlib.resources.files("sparsed") / "demo_model"))


def find_folder(folder: str | os.PathLike[str], function: str) -> Path:
    """Returns `folder`, or the GGUF file of this name, as a path.

    "demo" stands for the shipped model unless a folder has that name.

    Raises:
        FileNotFoundError: There is no such folder or GGUF file. The message begins with `function`, and says what
            else the path is if that is known.
        TypeError: `folder` is not a path.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"{function}: folder is {folder!r:.200}, expected a path")
    path = Path(folder).expanduser()
    if not path.is_dir():
        if str(folder) == "demo":
            return demo_model_folder()
        hint = ""
        if path.is_file():
            if recognise.is_gguf(path):
                return path
            hint = f": {recognise.file(path)}"
        elif name := _HUB_NAME.fullmatch(str(folder)):
            hint = f" (nothing is downloaded here: hf download {name[1]} --local-dir {name[2]})"
        raise FileNotFoundError(
            f"{function}: folder is {str(folder)!r}, expected an existing folder, a GGUF file or 'demo'{hint}"
        )
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to; the finished file then replaces `path`.

    Readers see the old file or the new one, never half of it. Existing mappings of the old file stay valid.
    """
    new = path.with_name(path.name + ".new")
    yield new
    os.replace(new, path)


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Reads a UTF-8 text, removes its byte order mark and turns its line ends into line feeds.

    Raises:
        ValueError: The file is too large, not UTF-8, or a Git LFS pointer.
    """
    size = os.stat(path).st_size
    if size > max_bytes:
        raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
    return decode_text(path.read_bytes(), str(path))


def decode_text(data: bytes, source: str) -> str:
    """Decodes the UTF-8 text in `data`, removes its byte order mark and ends each line with a line feed.

    Raises:
        ValueError: The text has another encoding, or is a Git LFS pointer.
    """
    if recognise.first_bytes(data) == recognise.LFS_POINTER:
        raise ValueError(f"{source} is {recognise.LFS_POINTER}")
    encoding = next((name for mark, name in _OTHER_MARKS if data.startswith(mark)), None)
    if encoding is None and len(data) > 1 and (data[0] == 0) != (data[1] == 0):
        encoding = "UTF-16"  # even without a mark: in Latin text, every second byte is 0
    if encoding is not None:
        raise ValueError(f"{source} is not UTF-8: it is {encoding}, so save it as UTF-8")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
        ValueError: The file is too large, not UTF-8, not JSON, nested too deep, or does not hold an object.
    """
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str | bytes, source: str, *, unique: bool = False) -> dict[str, Any]:
    """Parses the JSON object in `text`; bytes must be UTF-8. `unique` refuses a name that occurs twice in an object."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        values = json.loads(decoded, object_pairs_hook=_unique_pairs if unique else None)
        if "\\ud" in decoded or "\\uD" in decoded:  # encoding fails if half of a surrogate pair is missing
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # integers of thousands of digits raise ValueError, too
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds a JSON {type(values).__name__}, expected an object")
    _check_depth(values, source)
    return values


def _check_depth(values: dict[str, Any], source: str) -> None:
    """Refuses deeply nested objects, which could exhaust the stack of recursive code."""
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
