"""`sparsed bench gqa` compares grouped key/value heads (Dream's 28 / 4) with one key/value head per query head."""

from __future__ import annotations

from functools import partial

import sparsed

from .arrays import check_attention, random_blocks, random_qkv
from .cases import GQA_HEADS, GQA_QUICK_HEADS, PUBLISHED_BLOCK, PUBLISHED_DENSITY, AttentionCase
from .harness import time_in_turns
from .options import Options
from .report import TIME_COLUMNS, Column, Report, Row, number, progress

COLUMNS: tuple[Column, ...] = (
    ("kind", "attention", str),
    ("heads", "heads", str),
    ("kv_heads", "kv heads", str),
    *TIME_COLUMNS,
    ("per_head_s", "ms per query head", lambda seconds: f"{1e3 * seconds:.3f}"),
    ("versus_mha", "over MHA", number(3)),
)


def run(options: Options, report: Report) -> None:
    """Measures each dtype (bfloat16 by default), head_dim and length, with both kinds of heads in turns."""
    default_heads, default_kv_heads = GQA_QUICK_HEADS if options.quick else GQA_HEADS
    heads, kv_heads = options.heads or default_heads, options.kv_heads or default_kv_heads
    for dtype in options.dtypes or ("bfloat16",):
        for head_dim in options.head_dims or (128,):
            for length in options.lengths or (512 if options.quick else 4096,):
                cases = [AttentionCase(dtype, head_dim, length, heads, few) for few in (kv_heads, heads)]
                title = f"{dtype} hd {head_dim}, {length} tokens"
                report.section(title, COLUMNS, _rows(cases, options, title))


def _rows(cases: list[AttentionCase], options: Options, title: str) -> list[Row]:
    """Measures all cases in turns. The last one has as many key/value heads as query heads."""
    contenders = {}
    for case in cases:
        q, k, v = random_qkv(case)
        blocks = random_blocks(case.length, case.heads, PUBLISHED_BLOCK, PUBLISHED_DENSITY)
        for kind, chosen in (("dense", None), ("sparse", blocks)):
            call = partial(sparsed.attention, q, k, v, None if chosen is None else chosen.pattern)
            check_attention(f"{kind} attention of {case}", call(), q, k, v, chosen, full=False)
            contenders[f"{case} {kind}"] = call
    progress(title)
    timings = time_in_turns(contenders, options.repeat, options.sample_seconds)
    progress("")
    rows: list[Row] = []
    for kind in ("dense", "sparse"):
        for case in cases:
            timing = timings[f"{case} {kind}"]
            rows.append(
                {
                    "kind": kind,
                    **case.fields(),
                    **timing.fields(),
                    "per_head_s": timing.median / case.heads,
                    "versus_mha": timing.median / timings[f"{cases[-1]} {kind}"].median,
                }
            )
    return rows
