"""What notebooks show for patterns and results: tables and SVG, without matplotlib and without scripts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...generation.stats import LEGEND, GenerationStats
from ...kernels.pattern import BlockPattern
from ...kernels.pattern_cache import PatternCache
from .grid import cells_of, head_masks, runs
from .palette import PHASE_COLOURS, PROMPT_COLOUR, confidence_shade

if TYPE_CHECKING:
    from ...generation.result import GenerationResult

_HEADS = 16  # heads shown of a pattern
_LAYERS = 4  # layers shown of a cache
_CELLS = 96  # cells on a side of a drawn head
_LEVELS = 4  # shades of a cell that stands for several blocks
_ROWS = 4  # batch rows shown of a result
_HEADS_LEGEND = (
    "query blocks downwards, key blocks to the right, computed ones dark; the number is the density, their share; "
    "the line is the end of the prompt"
)
_SPARK_WIDTH, _SPARK_HEIGHT = 640, 56


def pattern_html(pattern: BlockPattern) -> str:
    """A line of facts and the first heads of the first batch row, with what the pictures show."""
    shown = min(pattern.heads, _HEADS)
    facts = (
        f"{pattern.heads} heads, {pattern.q_blocks} x {pattern.kv_blocks} blocks of {pattern.block_size}, "
        f"density {pattern.density:.3f}, {_bytes(pattern.nbytes)}"
    )
    if pattern.batch > 1:
        facts = f"{pattern.batch} rows (the first is shown), {facts}"
    if shown < pattern.heads:
        facts += f"; heads 0 ... {shown - 1} are shown"
    return _frame(f"BlockPattern: {facts}", _head_row(pattern, shown) + _caption(_HEADS_LEGEND))


def cache_html(cache: PatternCache) -> str:
    """The phase and the patterns of the first layers."""
    layers = cache.layers
    name = "given patterns" if cache.config is None else type(cache.config).__name__
    facts = f"{name}, step {cache.step}, {len(layers)} layers hold patterns"
    if layers:
        facts += f", {_bytes(cache.nbytes)}"
    if len(layers) > _LAYERS:
        facts += f"; the first {_LAYERS} are shown"
    body = "".join(
        f'<div style="margin-top:6px"><b>layer {layer}</b></div>{_head_row(cache.pattern(layer), _HEADS)}'
        for layer in layers[:_LAYERS]
    )
    return _frame(f"PatternCache: {facts}", body + (_caption(_HEADS_LEGEND) if layers else ""))


def result_html(result: GenerationResult) -> str:
    """The phases as a table, the seconds of each step, and the order in which the rows were unmasked."""
    stats = result.stats
    phases = [phase for phase in PHASE_COLOURS if any(step.phase == phase for step in stats)]
    parts = [(phase, GenerationStats([step for step in stats if step.phase == phase])) for phase in phases]
    header = "".join(
        f'<th style="text-align:right">{name}</th>' for name in ("steps", "seconds", "density", "tokens", "tokens/s")
    )
    body = "".join(_phase_row(name, part) for name, part in [*parts, ("all", stats)])
    shown = range(min(len(result.tokens), _ROWS))
    order = "".join(_order(result.filled_at[row], result.confidence[row], len(stats)) for row in shown)
    return _frame(
        repr(result),
        f'<table style="margin:6px 0;font-size:13px"><tr><th style="text-align:left">phase</th>{header}</tr>'
        f"{body}</table>{_caption(LEGEND)}{_caption('seconds per step')}{_spark(stats)}"
        f"{_caption('position (across) and the step that unmasked it (down); fainter: less sure')}{order}",
    )


def _frame(line: str, body: str) -> str:
    return f'<div style="font-size:13px">{escape(line)}{body}</div>'


def _caption(text: str) -> str:
    return f'<div style="font-size:11px;opacity:.75;margin-top:4px">{escape(text)}</div>'


def _bytes(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.2f} MB"


def _head_row(pattern: BlockPattern, count: int) -> str:
    masks = head_masks(pattern, 0)[:count]
    figures = "".join(
        f'<figure style="margin:4px 10px 4px 0;display:inline-block">{_head_svg(mask, pattern, head)}'
        f'<figcaption style="font-size:11px;opacity:.75">head {head}, {pattern.head_density[0, head]:.2f}</figcaption>'
        "</figure>"
        for head, mask in enumerate(masks)
    )
    return f'<div style="line-height:1.2">{figures}</div>'


def _head_svg(mask: NDArray[np.bool_], pattern: BlockPattern, head: int) -> str:
    """One head; cells of equal shade are one path of runs. Drawn in the text's colour, so it fits light and dark."""
    cells = cells_of(mask).shrunk(_CELLS)
    levels = np.ceil(cells.counts / cells.blocks * _LEVELS).astype(int)
    rows, columns = levels.shape
    paths = []
    for level in range(1, _LEVELS + 1):
        steps = [
            f"M{first} {y}h{end - first}v1H{first}z" for y in range(rows) for first, end in runs(levels[y] == level)
        ]
        if steps:
            paths.append(f'<path fill-opacity="{0.75 * level / _LEVELS:.2f}" d="{"".join(steps)}"/>')
    if 0 < pattern.prompt_length < pattern.kv_len:
        x = pattern.prompt_length / (pattern.block_size * cells.factor)
        paths.append(f'<path d="M{x:.2f} 0V{rows}" stroke="{PROMPT_COLOUR}" stroke-width="{columns / 90:.2f}"/>')
    return (
        f'<svg width="104" height="{max(104 * rows // columns, 8)}" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="none" fill="currentColor" role="img" '
        f'aria-label="Key blocks that the query blocks of head {head} attend to" shape-rendering="crispEdges" '
        f'style="border:1px solid rgba(128,128,128,.5)">{"".join(paths)}</svg>'
    )


def _phase_row(name: str, stats: GenerationStats) -> str:
    cells = (
        str(len(stats)),
        f"{stats.seconds:.2f}",
        f"{stats.density:.2f}",
        str(stats.unmasked),
        f"{stats.tokens_per_second:.1f}",
    )
    dot = f'<span style="color:{PHASE_COLOURS[name]}">&#9632;</span> ' if name in PHASE_COLOURS else ""
    row = "".join(f'<td style="text-align:right">{cell}</td>' for cell in cells)
    return f'<tr><td style="text-align:left">{dot}{escape(name)}</td>{row}</tr>'


def _spark(stats: GenerationStats) -> str:
    """A bar per step, coloured by phase, as high as its seconds."""
    longest = max((step.seconds for step in stats), default=0) or 1
    bars = "".join(
        f'<path fill="{PHASE_COLOURS[step.phase]}" d="M{step.step} {_SPARK_HEIGHT}h.9v-{height:.1f}h-.9z"/>'
        for step in stats
        if (height := _SPARK_HEIGHT * step.seconds / longest)
    )
    return _plot_svg(f"0 0 {max(len(stats), 1)} {_SPARK_HEIGHT}", "Seconds of each step", bars)


def _order(filled_at: NDArray[np.int32], confidence: NDArray[np.float32], steps: int) -> str:
    """A mark per token: its position across, its step down, fainter where the sampler was less sure."""
    sure = confidence_shade(confidence)
    height = _SPARK_HEIGHT / max(steps, 1)
    mark = f"h.9v{max(height, 1.5):.1f}h-.9z"
    marks = "".join(
        f'<path fill-opacity="{0.25 + 0.75 * sure[i]:.2f}" d="M{i} {height * step:.1f}{mark}"/>'
        for i, step in enumerate(filled_at.tolist())
        if step >= 0
    )
    return _plot_svg(f"0 0 {len(filled_at)} {_SPARK_HEIGHT + 2}", "The step that unmasked each position", marks)


def _plot_svg(box: str, label: str, body: str) -> str:
    return (
        f'<svg width="{_SPARK_WIDTH}" height="{_SPARK_HEIGHT}" viewBox="{box}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}" fill="currentColor" '
        f'style="display:block;max-width:100%;border-bottom:1px solid rgba(128,128,128,.5)">{body}</svg>'
    )
