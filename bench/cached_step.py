"""`sparsed bench cached-step` times the attention of a cached step: a few rows against the keys of a long text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import sparsed
from sparsed import PackedKeyValues

from .arrays import DTYPES, Array, check_attention, random_qkv
from .cases import LAYER_SHAPES, AttentionCase
from .harness import time_in_turns
from .options import Options
from .peers import Peer, available_peers
from .report import TIME_COLUMNS, Column, Report, Row, number, progress, ratio

COLUMNS: tuple[Column, ...] = (
    ("rows", "rows", str),
    ("contender", "contender", str),
    *TIME_COLUMNS,
    ("bytes_per_s", "GB/s", lambda rate: f"{rate / 1e9:.1f}"),
    ("versus_step", "over step", ratio),
    ("rows_of_dense", "rows of a dense pass", number(0)),
)
STEP, UPDATE, PACKING, DENSE = "step", "update", "packing each time", "dense pass"
NOTE = (
    "step = PackedKeyValues: update of the rows, then their attention; update is its first part. packing each time is "
    "sparsed.attention, which packs all keys and values in each call. GB/s counts all keys and values once. rows of a "
    "dense pass: how many rows a dense pass of this length computes in that time; the pass is timed on one head."
)
# A step computes the rows of a block, or one row.
_ROWS = (1, 32, 128)


def run(options: Options, report: Report) -> None:
    """Measures each dtype (bfloat16 by default), head_dim and length for the heads of LLaDA-8B and Dream-7B."""
    peers, missing = available_peers([name for name in ("sdpa",) if name in options.peers])
    for name, reason in missing.items():
        report.skip(name, reason)
    for dtype in options.dtypes or ("bfloat16",):
        for head_dim in options.head_dims or (128,):
            for length in options.lengths or ((512,) if options.quick else (4096, 16384, 65536)):
                for heads, kv_heads in _heads(options):
                    case = AttentionCase(dtype, head_dim, length, heads, kv_heads)
                    report.section(str(case), COLUMNS, _rows(case, options, peers))
    report.note(NOTE)


def _heads(options: Options) -> list[tuple[int, int]]:
    if options.heads:
        return [(options.heads, options.kv_heads or options.heads)]
    shapes = [LAYER_SHAPES[name] for name in (("demo",) if options.quick else ("llada-8b", "dream-7b"))]
    return [(shape.num_heads, shape.num_kv_heads) for shape in shapes]


def _rows(case: AttentionCase, options: Options, peers: Sequence[Peer]) -> list[Row]:
    """Measures all numbers of rows in turns."""
    progress(str(case))
    q, k, v = random_qkv(case)
    packed = PackedKeyValues(1, case.kv_heads, case.length, case.head_dim, DTYPES[case.dtype])
    packed.update(None, k, v)
    contenders: dict[str, Callable[[], object]] = {
        DENSE: partial(sparsed.attention, q[:, :1], k[:, :1], v[:, :1]),
    }
    counts = [rows for rows in _ROWS if rows <= case.length]
    for rows in counts:
        positions = np.arange(case.length - rows, case.length)
        queries, new_k, new_v = (np.ascontiguousarray(array[:, :, positions]) for array in (q, k, v))
        update = partial(packed.update, positions, new_k, new_v)
        made: dict[str, Callable[[], Any]] = {
            STEP: partial(_step, packed, positions, queries, new_k, new_v),
            UPDATE: update,
            PACKING: partial(sparsed.attention, queries, k, v),
        }
        for name in (STEP, PACKING):
            check_attention(f"{name} of {case}", made[name](), queries, k, v, None, full=False)
        for peer in peers:
            contender = peer.dense(queries, k, v)
            if contender is not None:
                out = contender.array(contender.run())
                check_attention(f"{contender.name} of {case}", out, queries, k, v, None, full=False)
                made[contender.name] = contender.run
        contenders |= {f"{name} {rows}": call for name, call in made.items()}
    timings = time_in_turns(contenders, options.repeat, options.sample_seconds)
    progress("")
    dense_row = timings[DENSE].median * case.heads / case.length
    kv_bytes = k.nbytes + v.nbytes
    found: list[Row] = []
    for rows in counts:
        for name in (STEP, UPDATE, PACKING, *(peer.name for peer in peers)):
            timing = timings[f"{name} {rows}"]
            row: Row = {**case.fields(), "rows": rows, "contender": name, **timing.fields()}
            if name != UPDATE:
                row["bytes_per_s"] = kv_bytes / timing.median
                row["rows_of_dense"] = timing.median / dense_row
            row["versus_step"] = timing.median / timings[f"{STEP} {rows}"].median
            found.append(row)
    return found


def _step(packed: PackedKeyValues, positions: Array, q: Array, k: Array, v: Array) -> Array:
    packed.update(positions, k, v)
    return packed.attention(q)
