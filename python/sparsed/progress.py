"""Shows progress bars on stderr."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(shown: bool, **options: Any) -> Any:
    """Returns a tqdm progress bar that shows the remaining time, or one that does nothing if it is not `shown`.

    Args:
        shown: Whether to show the bar.
        options: The options of tqdm.
    """
    size: dict[str, Any] = {"dynamic_ncols": True}
    if shown and _columns() == 0:  # tqdm shows nothing in a terminal that does not know its size
        size = {"ncols": 80, "nrows": 24}
    return tqdm(**size, **options, disable=not shown)


def _columns() -> int | None:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # stderr is not a terminal, or not even a file
        return None
