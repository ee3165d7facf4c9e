"""The records of a run in a folder, and the plan that says what decides them; a stopped run continues there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...models.files import decode_text, find_folder, replacing

R = TypeVar("R")

# Parts of a plan that may grow, as {length: {name: value}}: only entries of both plans are compared.
GROWING = ("settings", "sources")
_OF_A_MODEL = (".json", ".safetensors", ".txt", ".jinja", ".gguf")
# Smaller files are compared by content, larger ones by size and time.
_HASHED_BYTES = 1 << 28


def file_identity(path: Path) -> dict[str, Any]:
    """Identifies a data file by name, size and time."""
    found = path.stat()
    return {"file": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def model_identity(folder: Path) -> dict[str, Any]:
    """Identifies a checkpoint by its name and its files: configuration, weights, tokenizer."""
    found = find_folder(folder, "eval")
    files = [found] if found.is_file() else sorted(path for path in found.iterdir() if path.suffix in _OF_A_MODEL)
    return {"name": folder.resolve().name, "files": {path.name: _content(path) for path in files}}


def _content(path: Path) -> dict[str, Any]:
    found = path.stat()
    if found.st_size > _HASHED_BYTES:
        return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
    return {"size": found.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


class Log(Generic[R]):
    """The records of a folder; each is on disk before the next answer is computed.

    Args:
        folder: Folder of the records; it is created if it does not exist.
        plan: Everything that decides the records, in plain JSON types. A folder with another plan is refused. The
            parts in GROWING may have more or fewer entries than the plan of the folder, which then gets all of them.
        kind: Dataclass of a record.
        name: Name of the file of records; the plan lies beside it.

    Raises:
        ValueError: The folder has another plan, or a damaged line. The last line may be cut by a crash: it is dropped.
    """

    def __init__(self, folder: Path | str, plan: dict[str, Any], kind: type[R], name: str = "records") -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{name}.jsonl"
        self.records: list[R] = []
        where = folder / ("plan.json" if name == "records" else f"{name}_plan.json")
        merged = _merged(_read_plan(where, self._path), json.loads(json.dumps(plan)), where)
        self._read(kind)
        with replacing(where) as new:
            new.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")

    def _read(self, kind: type[R]) -> None:
        if not self._path.is_file():
            return
        content = self._path.read_bytes()
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                self.records.append(kind(**json.loads(decode_text(line, "it"))))
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"eval: line {number} of {self._path} is damaged: {error}") from error
        if rest:
            with self._path.open("r+b") as file:
                file.truncate(len(content) - len(rest))

    def add(self, record: R) -> None:
        """Appends a record, here and on disk."""
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(record), ensure_ascii=False) + "\n")


def _read_plan(path: Path, records: Path) -> dict[str, Any] | None:
    """The plan of a folder; None if there is none, or if a crash left it empty before the first record."""
    content = path.read_bytes() if path.is_file() else b""
    recorded = records.is_file() and records.stat().st_size > 0
    if not content.strip() and not (recorded and path.is_file()):
        return None
    try:
        plan = json.loads(decode_text(content, "it"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"eval: {path} is damaged: {error} (choose another --out to begin anew)") from error
    if not isinstance(plan, dict):
        raise ValueError(f"eval: {path} holds a JSON {type(plan).__name__}, expected an object")
    return plan


def _merged(found: dict[str, Any] | None, plan: dict[str, Any], path: Path) -> dict[str, Any]:
    """The plan, with the further entries of the plan that the folder has."""
    if found is None:
        return plan
    differences: list[str] = []
    for key in sorted((plan.keys() | found.keys()) - set(GROWING)):
        differences += _differences((key,), found.get(key, _ABSENT), plan.get(key, _ABSENT))
    merged = dict(plan)
    for key in sorted(plan.keys() & set(GROWING)):
        new, earlier = plan[key], found.get(key, {})
        for length in sorted(new.keys() & earlier.keys(), key=int):
            for name in sorted(new[length].keys() & earlier[length].keys()):
                where = (f"{name} at length {length}",)
                differences += _differences(where, earlier[length][name], new[length][name])
        merged[key] = {
            length: {**earlier.get(length, {}), **new.get(length, {})}
            for length in sorted(new.keys() | earlier.keys(), key=int)
        }
    if differences:
        more = f"; {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError(
            f"eval: {'; '.join(differences[:_SHOWN])}{more} ({path} has the earlier settings; "
            "choose another --out to begin anew)"
        )
    return merged


_ABSENT = object()
_SHOWN = 4  # differences in a message


def _differences(path: tuple[str, ...], found: Any, given: Any) -> list[str]:
    """The differences of two parts of a plan, each as "NAME OF THE PART: rho was 0.3, is 0.5"."""
    if isinstance(found, dict) and isinstance(given, dict):
        return [
            difference
            for name in sorted(found.keys() | given.keys())
            for difference in _differences((*path, name), found.get(name, _ABSENT), given.get(name, _ABSENT))
        ]
    if found == given:
        return []
    *part, name = path
    before, now = ("absent" if value is _ABSENT else json.dumps(value) for value in (found, given))
    return [f"{'.'.join(part)}{': ' if part else ''}{name} was {before}, is {now}"]
