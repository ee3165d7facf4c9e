"""`sparsed bench scaling` times the sparse attention of one head from 4k to 256k tokens."""

from __future__ import annotations

from functools import partial

import sparsed

from .arrays import check_attention, random_blocks, random_qkv
from .cases import PUBLISHED_BLOCK, SCALING_LENGTHS, SCALING_QUICK_LENGTHS, AttentionCase
from .harness import time_in_turns
from .options import Options
from .report import TIME_COLUMNS, Column, Report, Row, number, percent, progress, rate

COLUMNS: tuple[Column, ...] = (
    ("length", "tokens", str),
    ("density", "density", number(4)),
    *TIME_COLUMNS,
    ("per_token_s", "us per token", lambda seconds: f"{1e6 * seconds:.2f}"),
    ("per_pair_s", "ns per pair", lambda seconds: f"{1e9 * seconds:.4f}"),
    ("over_linear", "over linear", percent),
    ("flops_per_s", "TFLOP/s", rate),
)
NOTE = (
    "A pair is a query and a selected key; there are density x tokens pairs per token. over linear: the time per pair "
    "compared with that of the shortest sequence."
)
_DENSITY = 0.1


def run(options: Options, report: Report) -> None:
    """Measures each dtype at one density, with the lengths in turns."""
    lengths = options.lengths or (SCALING_QUICK_LENGTHS if options.quick else SCALING_LENGTHS)
    head_dim = options.head_dims[0] if options.head_dims else 128
    density = options.densities[0] if options.densities else _DENSITY
    block_size = options.block_sizes[0] if options.block_sizes else PUBLISHED_BLOCK
    heads, kv_heads = options.heads or 1, options.kv_heads or options.heads or 1
    for dtype in options.dtypes or ("bfloat16",):
        cases = {length: AttentionCase(dtype, head_dim, length, heads, kv_heads) for length in lengths}
        blocks = {length: random_blocks(length, heads, block_size, density) for length in lengths}
        contenders = {}
        for length, case in cases.items():
            progress(str(case))
            q, k, v = random_qkv(case)
            call = partial(sparsed.attention, q, k, v, blocks[length].pattern)
            check_attention(f"attention of {length} tokens", call(), q, k, v, blocks[length], full=False)
            contenders[str(length)] = call
        timings = time_in_turns(contenders, options.repeat, options.sample_seconds)
        progress("")
        rows: list[Row] = []
        for length, case in cases.items():
            timing = timings[str(length)]
            pairs = heads * case.dense_pairs * blocks[length].density
            row: Row = {
                "dtype": dtype,
                "head_dim": head_dim,
                "heads": heads,
                "length": length,
                "block_size": block_size,
                "density": blocks[length].density,
                **timing.fields(),
                "per_token_s": timing.median / length,
                "per_pair_s": timing.median / pairs,
                "flops_per_s": 4 * head_dim * pairs / timing.median,
            }
            row["over_linear"] = row["per_pair_s"] / (rows[0] if rows else row)["per_pair_s"] - 1
            rows.append(row)
        title = f"{dtype} hd {head_dim}, {heads} head{'s' * (heads > 1)}, blocks of {block_size}"
        report.section(title, COLUMNS, rows)
    report.note(NOTE)
