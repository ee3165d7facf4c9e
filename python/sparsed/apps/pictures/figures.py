"""Figures by matplotlib, an optional dependency: heads of a pattern, and how a generation went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.pattern import BlockPattern
from .grid import check_index, head_masks
from .palette import PHASE_COLOURS, PROMPT_COLOUR

if TYPE_CHECKING:
    from ...generation.result import GenerationResult

_PANEL = 1.9  # inches of one head in a grid
# Confidence runs over the dark two thirds of the map, so that a sure token stands out on white.
_CONFIDENCE_MAP = "viridis_r"


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot: matplotlib is not installed, expected: pip install matplotlib") from error
    return pyplot


def plot_pattern(pattern: BlockPattern, head: int, batch: int, ax: Any) -> Any:
    """`BlockPattern.plot`."""
    check_index("plot", "batch", batch, pattern.batch)
    check_index("plot", "head", head, pattern.heads)
    if ax is None:
        _, ax = _pyplot().subplots(figsize=(4.2, 4.2), layout="constrained")
    _draw_head(ax, pattern, batch, head)
    ax.set(xlabel=f"key block ({pattern.block_size} tokens)", ylabel="query block")
    ax.set_title(f"head {head}, density {pattern.head_density[batch, head]:.2f}", fontsize=10)
    return ax


def plot_grid(patterns: Mapping[int | None, BlockPattern], heads: Sequence[int] | None, batch: int) -> Any:
    """`BlockPattern.plot_grid` and `PatternCache.plot_grid`; the keys are layers, None where there is but one."""
    if not patterns:
        raise ValueError("plot_grid: layers is empty, expected layers that hold a pattern")
    first = next(iter(patterns.values()))
    if isinstance(heads, str):
        raise TypeError(f"plot_grid: heads is {heads!r}, expected integers")
    heads = range(first.heads) if heads is None else list(heads)
    check_index("plot_grid", "batch", batch, first.batch)
    for head in heads:
        check_index("plot_grid", "head", head, first.heads)
    if not heads:
        raise ValueError("plot_grid: heads is empty, expected at least one head")
    size = (_PANEL * len(heads) + 0.4, _PANEL * len(patterns) + 0.4)
    figure, axes = _pyplot().subplots(len(patterns), len(heads), figsize=size, squeeze=False, layout="constrained")
    for row, (layer, pattern) in zip(axes, patterns.items(), strict=True):
        for ax, head in zip(row, heads, strict=True):
            _draw_head(ax, pattern, batch, head)
            ax.set(xticks=[], yticks=[])
            name = f"head {head}" if layer is None else f"layer {layer}, head {head}"
            ax.set_title(name, fontsize=8, pad=3)
    figure.supxlabel(f"key blocks of {first.block_size} tokens; right of the line: generation", fontsize=8)
    figure.supylabel("query blocks", fontsize=8)
    return figure


def _draw_head(ax: Any, pattern: BlockPattern, batch: int, head: int) -> None:
    mask = head_masks(pattern, batch)[head]
    ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.25, interpolation="nearest", aspect="equal")
    end = pattern.prompt_length / pattern.block_size - 0.5
    if 0 < pattern.prompt_length < pattern.kv_len:
        ax.axvline(end, color=PROMPT_COLOUR, linewidth=1)
        if pattern.q_len == pattern.kv_len:
            ax.axhline(end, color=PROMPT_COLOUR, linewidth=1)
    ax.tick_params(labelsize=8)


def plot_result(result: GenerationResult, row: int) -> Any:
    """`GenerationResult.plot`."""
    check_index("plot", "row", row, len(result.tokens))
    pyplot = _pyplot()
    figure, (order, times) = pyplot.subplots(
        2, 1, figsize=(8, 4.8), height_ratios=(3, 2), layout="constrained", sharex=True
    )
    _draw_order(figure, order, result, row)
    _draw_times(times, result)
    times.set(xlabel="step", xlim=(-0.6, max(len(result.stats), 1) - 0.4))
    for ax in (order, times):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure


def _draw_order(figure: Any, ax: Any, result: GenerationResult, row: int) -> None:
    filled_at, confidence = result.filled_at[row], result.confidence[row]
    filled = np.flatnonzero(filled_at >= 0)
    size = float(np.clip(1800 / max(len(filled_at), len(result.stats), 1), 4, 60))
    look = {"s": size, "marker": "s", "cmap": _CONFIDENCE_MAP, "linewidths": 0, "clip_on": False}
    points = ax.scatter(filled_at[filled], filled, c=confidence[filled], **look)
    ax.set(ylabel="position", ylim=(len(filled_at) - 0.4, -0.6))
    ax.set_title(f"unmasking order: {len(filled)} of {len(filled_at)} tokens in {len(result.stats)} steps", fontsize=10)
    figure.colorbar(points, ax=ax, pad=0.01, aspect=16).set_label("confidence", fontsize=8)


def _draw_times(ax: Any, result: GenerationResult) -> None:
    for phase, colour in PHASE_COLOURS.items():
        steps = [step for step in result.stats if step.phase == phase]
        if steps:
            seconds = [1000 * step.seconds for step in steps]
            label = f"{phase} ({sum(seconds) / 1000:.2f} s)"
            ax.bar([step.step for step in steps], seconds, width=0.9, color=colour, label=label)
    ax.set(ylabel="ms per step")
    if len(result.stats):
        ax.legend(fontsize=8, frameon=False, ncols=len(PHASE_COLOURS), loc="lower left", bbox_to_anchor=(0, 1))
