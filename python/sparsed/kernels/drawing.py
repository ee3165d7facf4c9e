"""The functions that draw patterns and results.

`sparsed.apps.pictures` registers them when the package is imported, so that the classes that are drawn do not depend on
the code that draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_functions: dict[str, Callable[..., Any]] = {}


def register(name: str, function: Callable[..., Any]) -> None:
    """Makes `draw(name, ...)` call this function."""
    _functions[name] = function


def draw(name: str, *args: Any, **options: Any) -> Any:
    """Calls the function that is registered under this name."""
    return _functions[name](*args, **options)
