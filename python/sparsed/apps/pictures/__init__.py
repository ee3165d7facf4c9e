"""Patterns and generations as pictures: matplotlib figures, HTML in notebooks, a page, a terminal.

Importing this package registers the drawing methods of `BlockPattern`, `PatternCache` and `GenerationResult`. The
modules that draw, and matplotlib, are imported when a method is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...kernels import drawing
from ...kernels.pattern import BlockPattern
from ...kernels.pattern_cache import PatternCache

if TYPE_CHECKING:
    from ...generation.result import GenerationResult
    from ...models.tokenizer import Tokenizer


def _pattern_figure(pattern: BlockPattern, head: int, batch: int, ax: Any) -> Any:
    from . import figures

    return figures.plot_pattern(pattern, head, batch, ax)


def _pattern_grid(pattern: BlockPattern, heads: Sequence[int] | None, batch: int) -> Any:
    from . import figures

    return figures.plot_grid({None: pattern}, heads, batch)


def _pattern_html(pattern: BlockPattern) -> str:
    from . import inline

    return inline.pattern_html(pattern)


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


drawing.register("BlockPattern.plot", _pattern_figure)
drawing.register("BlockPattern.plot_grid", _pattern_grid)
drawing.register("BlockPattern.html", _pattern_html)
drawing.register("PatternCache.plot_grid", _cache_grid)
drawing.register("PatternCache.html", _cache_html)
drawing.register("GenerationResult.plot", _result_figure)
drawing.register("GenerationResult.page", _result_page)
drawing.register("GenerationResult.html", _result_html)
