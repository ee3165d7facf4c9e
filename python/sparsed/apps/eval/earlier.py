"""Reports of earlier runs in the same folder: they are renamed with a number, never overwritten."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def keep_earlier(paths: Sequence[Path], **content: Any) -> None:
    """Renames the files of an earlier report from NAME.EXT to NAME_1.EXT, NAME_2.EXT, ... and says so on stderr.

    Args:
        paths: The files of one report; they differ by their extension, and one of them is JSON.
        content: What the new report holds under these keys. A report that holds the same is not kept.
    """
    present = [path for path in paths if path.exists()]
    if not present or any(path.suffix == ".json" and _holds(path, content) for path in present):
        return
    for number in itertools.count(1):
        kept = [path.with_stem(f"{path.stem}_{number}") for path in present]
        if not any(path.exists() for path in kept):
            break
    for path, new in zip(present, kept, strict=True):
        path.rename(new)
    names = ", ".join(path.name for path in kept)
    print(f"sparsed: the earlier report of {present[0].parent} is kept as {names}", file=sys.stderr)


def _holds(path: Path, content: dict[str, Any]) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not a report of this program
        return False
    wanted = json.loads(json.dumps(content))
    return isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())
