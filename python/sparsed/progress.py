"""Progress on stderr."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(shown: bool, **options: Any) -> Any:
    """A bar of tqdm with the time that is left; not `shown`, it does nothing.

    Args:
        shown: Whether there is a bar.
        options: As tqdm has them.
    """
    size: dict[str, Any] = {"dynamic_ncols": True}
    if shown and _columns() == 0:  # a terminal that does not know its size, in which tqdm would show nothing
        size = {"ncols": 80, "nrows": 24}
    return tqdm(**size, **options, disable=not shown)


def _columns() -> int | None:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # stderr is no terminal, or no file at all
        return None
