"""Patterns and generations as pictures: matplotlib figures, HTML in notebooks, a page, a terminal.

Importing this package registers the drawing methods of `BlockPattern`, `PatternCache` and `GenerationResult`. The
modules that draw, and matplotlib, are imported when a method is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...kernels import drawing
from ...kernels.pattern import BlockPattern, PatternCache

if TYPE_CHECKING:
    from ...generation.result import GenerationResult
    from ...models.tokenizer import Tokenizer


def _cache_grid(cache: PatternCache, layers: Sequence[int] | None, heads: Sequence[int] | None, *, batch: int) -> Any:
    from . import figures

    if isinstance(layers, str):
        raise TypeError(f"plot_grid: layers is {layers!r}, expected integers")
    layers = cache.layers if layers is None else layers
    return figures.plot_grid({layer: cache.pattern(layer) for layer in layers}, heads, batch)


def _cache_html(cache: PatternCache) -> str:
    from . import inline

    return inline.cache_html(cache)


def _result_figure(result: GenerationResult, row: int) -> Any:
    from . import figures

    return figures.plot_result(result, row)


def _result_page(result: GenerationResult, tokenizer: Tokenizer, *, row: int, title: str) -> str:
    from . import page

    return page.render(result, tokenizer, row=row, title=title)


def _result_html(result: GenerationResult) -> str:
    from . import inline

    return inline.result_html(result)


drawing.register("PatternCache.plot_grid", _cache_grid)
drawing.register("PatternCache.html", _cache_html)
drawing.register("GenerationResult.plot", _result_figure)
drawing.register("GenerationResult.page", _result_page)
drawing.register("GenerationResult.html", _result_html)


# Methods of the compiled class, attached as pandas attaches accessors.


def plot(self: BlockPattern, head: int = 0, *, batch: int = 0, ax: Any = None) -> Any:  # noqa: D417
    """Draws one head: query blocks downwards, key blocks to the right, the end of the prompt as a line.

    Needs matplotlib.

    Args:
        head: The query head.
        batch: The batch row.
        ax: The matplotlib Axes to draw into; None: new ones.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: There is no such head or row.
    """
    from . import figures

    return figures.plot_pattern(self, head, batch, ax)


def plot_grid(self: BlockPattern, heads: Sequence[int] | None = None, *, batch: int = 0) -> Any:  # noqa: D417
    """Draws the heads side by side; `PatternCache.plot_grid` draws layers too. Needs matplotlib.

    Args:
        heads: None: all.
        batch: The batch row.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: A head or row that does not exist.
    """
    from . import figures

    return figures.plot_grid({None: self}, heads, batch)


def _repr_html_(self: BlockPattern) -> str:
    from . import inline

    return inline.pattern_html(self)


for _method in (plot, plot_grid, _repr_html_):
    _method.__doc__ = inspect.getdoc(_method)  # without indentation, as Python 3.13 has it
    setattr(BlockPattern, _method.__name__, _method)
