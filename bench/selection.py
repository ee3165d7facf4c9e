"""`sparsed bench selection` times the selection, including top-k, both fused with a dense pass and separately."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

import sparsed

from .arrays import Blocks, check_attention, check_selection, random_qkv
from .cases import PUBLISHED_RHO, AttentionAxes, AttentionCase
from .harness import median_ratio, time_in_turns
from .options import Options
from .report import TIME_COLUMNS, Column, Report, Row, percent, progress

COLUMNS: tuple[Column, ...] = (
    ("contender", "contender", str),
    ("block_size", "block", str),
    ("rho", "rho", str),
    *TIME_COLUMNS,
    ("overhead", "overhead", percent),
    ("overhead_paired", "paired", percent),
    ("share", "of attention", percent),
)
NOTE = (
    "overhead = (attention_and_select - attention) / attention, of the medians and including top-k. paired is the "
    "median of the overheads of each round, in which load that lasts longer than a round cancels. of attention = "
    "select / attention, where select computes no output."
)
# The fraction of the sequence that is generated.
_GENERATED = 1 / 16
_SMALL = AttentionCase("float32", 64, 1024, 2, 2)


def run(options: Options, report: Report) -> None:
    """Times dense attention, and in turns with it the fused and the separate selection of each block size."""
    axes = options.selection_axes()
    _check_small(axes)
    for case in axes.cases():
        progress(str(case))
        q, k, v = random_qkv(case)
        calls: dict[int, Any] = {
            block_size: partial(sparsed.attention_and_select, q, k, v, **settings(case.length, block_size))
            for block_size in axes.block_sizes
        }
        for block_size, call in calls.items():
            check_attention(f"attention_and_select, b {block_size}", call()[0], q, k, v, None, full=False)
        contenders = {"attention": partial(sparsed.attention, q, k, v)}
        contenders |= {f"select {block_size}": call for block_size, call in calls.items()}
        contenders |= {
            f"select only {block_size}": partial(sparsed.select, q, k, **settings(case.length, block_size))
            for block_size in axes.block_sizes
        }
        timings = time_in_turns(contenders, options.repeat, options.sample_seconds)
        progress("")

        dense = timings["attention"]
        shape: Row = case.fields()
        rows: list[Row] = [{**shape, "contender": "attention", **dense.fields()}]
        for block_size in axes.block_sizes:
            timing, separate = timings[f"select {block_size}"], timings[f"select only {block_size}"]
            common = {"block_size": block_size, "rho": PUBLISHED_RHO[block_size]}
            overhead = {
                "overhead": timing.median / dense.median - 1,
                "overhead_paired": median_ratio(timing, dense) - 1,
            }
            rows.append({**shape, "contender": "attention_and_select", **common, **timing.fields(), **overhead})
            share = {"share": separate.median / dense.median}
            rows.append({**shape, "contender": "select", **common, **separate.fields(), **share})
        report.section(str(case), COLUMNS, rows)
    report.note(NOTE)


def settings(length: int, block_size: int) -> dict[str, Any]:
    """Returns the published settings of the selection."""
    prompt_length = length - int(length * _GENERATED)
    rho = PUBLISHED_RHO[block_size]
    return {"prompt_length": prompt_length, "block_size": block_size, "rho": rho, "generation": "sparse"}


def _check_small(axes: AttentionAxes) -> None:
    """Checks with float64 that the selected blocks hold the most probability mass."""
    q, k, v = random_qkv(_SMALL, seed=3)
    # Larger queries make the scores differ more. With flat scores, every choice would be about as good.
    q = np.asarray(q * np.float32(3), q.dtype)
    for block_size in axes.block_sizes:
        chosen = settings(_SMALL.length, block_size)
        out, pattern = sparsed.attention_and_select(q, k, v, **chosen)
        check_attention("attention_and_select", out, q, k, v, None, full=True)
        blocks = Blocks(pattern.to_mask(), block_size, _SMALL.length)
        check_selection(blocks, q, k, _parts(blocks, chosen["prompt_length"], chosen["rho"]))


def _parts(blocks: Blocks, prompt_length: int, rho: float) -> list[tuple[range, int]]:
    """Returns the prompt blocks and the generation blocks with the number of each that a row keeps.

    Of n blocks it keeps min(n, max(1, int(n rho) + 1)).
    """
    count = blocks.mask.shape[3]
    first = min(-(-prompt_length // blocks.block_size), count - 1)
    parts = [range(first), range(first, count)]
    return [(part, min(len(part), max(1, math.floor(len(part) * rho) + 1))) for part in parts]
