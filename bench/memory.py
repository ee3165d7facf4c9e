"""`sparsed bench memory` measures the peak memory of one call and compares it with the expected one."""

from __future__ import annotations

import json
import sys
from typing import Literal

import sparsed

from .arrays import DTYPES
from .cases import MEMORY_LENGTHS, MEMORY_QUICK_LENGTHS, PUBLISHED_BLOCK, PUBLISHED_DENSITY, AttentionCase
from .machine import module_output
from .options import Options
from .report import Column, Report, Row, number, progress

Call = Literal["dense", "select", "sparse"]
CALLS: tuple[Call, ...] = ("dense", "select", "sparse")
COLUMNS: tuple[Column, ...] = (
    ("call", "call", str),
    ("inputs", "inputs MB", lambda value: f"{value / 1e6:.1f}"),
    ("extra", "peak above them MB", lambda value: f"{value / 1e6:.1f}"),
    ("expected", "expected MB", lambda value: f"{value / 1e6:.1f}"),
    ("over_expected", "peak/expected", number(2)),
)
NOTE = (
    "Expected are the output, one packed copy of K and V, 2 MB of tiles and one float per key for each thread, and for "
    "a selection the pattern and one float matrix of blocks per head in flight. Each call runs in a separate process."
)
# A generous bound for the tiles, scores and stack of one thread.
_PER_THREAD = 2_000_000


def run(options: Options, report: Report) -> None:
    """Measures each call at each length and dtype, with 4 heads by default."""
    if not sys.platform.startswith("linux"):
        report.skip("memory", "needs Linux: the peak is reset and read through /proc")
        return
    lengths = options.lengths or (MEMORY_QUICK_LENGTHS if options.quick else MEMORY_LENGTHS)
    head_dim = options.head_dims[0] if options.head_dims else 128
    heads = options.heads or 4
    for dtype in options.dtypes or ("bfloat16", "float32"):
        for length in lengths:
            case = AttentionCase(dtype, head_dim, length, heads, options.kv_heads or heads)
            progress(str(case))
            rows = [measure_peak(case, call) for call in CALLS]
            progress("")
            report.section(str(case), COLUMNS, rows)
    report.note(NOTE)


def measure_peak(
    case: AttentionCase, call: Call, block_size: int = PUBLISHED_BLOCK, density: float = PUBLISHED_DENSITY
) -> Row:
    """Returns the bytes of the inputs, of the measured peak above them, and of the expected peak above them.

    Raises:
        RuntimeError: The process failed, for example because the system does not let it reset its peak.
    """
    given = {**case.fields(), "call": call, "block_size": block_size, "density": density}
    measured = json.loads(module_output("memory_worker", [json.dumps(given)]))
    expected = expected_bytes(case, call, block_size)
    row: Row = {**case.fields(), "call": call, "block_size": block_size, **measured, "expected": expected}
    row["over_expected"] = measured["extra"] / expected
    return row


def expected_bytes(case: AttentionCase, call: Call, block_size: int) -> int:
    """Returns the bytes that a call has to hold in addition to its inputs."""
    threads = sparsed.get_num_threads()
    pairs = sparsed.active_backend() in ("amx", "avx512_bf16") and case.dtype == "bfloat16"
    out = case.heads * case.length * case.head_dim * DTYPES[case.dtype].itemsize
    packed = 2 * case.kv_heads * case.length * case.head_dim * (2 if pairs else 4)
    blocks = -(-case.length // block_size)
    total = out + packed + threads * (_PER_THREAD + 4 * case.length)
    if call == "select":
        # The matrices of block scores, and the pattern as bits.
        total += min(threads, case.heads) * blocks**2 * 4 + case.heads * blocks * (-(-blocks // 64) * 8)
    if call == "sparse":
        total += case.heads * blocks**2 * 4  # the pattern as lists
    return total
