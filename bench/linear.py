"""`sparsed bench linear` times packed linear layers at model shapes against torch."""

from __future__ import annotations

from functools import partial

import numpy as np

from sparsed.kernels import ops

from .arrays import CheckError, check_linear, random_array
from .cases import LinearCase
from .harness import Contender, time_in_turns
from .options import Options
from .peers import Peer, SkipError, available_peers
from .report import ERROR_COLUMNS, TIME_COLUMNS, Column, Report, Row, milliseconds, progress, rate, ratio
from .roofs import best_roofs, measure_roofs

COLUMNS: tuple[Column, ...] = (
    ("contender", "contender", str),
    ("dtype", "dtype", str),
    *TIME_COLUMNS,
    ("flops_per_s", "TFLOP/s", rate),
    ("versus_torch", "torch/this", ratio),
    ("versus_bfloat16", "bfloat16/this", ratio),
    ("pack_s", "packing ms", milliseconds),
    *ERROR_COLUMNS,
)
NOTE = (
    "sparsed packs weights once, when a model is loaded. Packing has its own column and is not part of the times. "
    "torch int8 takes and returns float32."
)
SPARSED, TORCH = "sparsed", "torch linear"
# Contenders that multiply int8. They run beside those that multiply bfloat16, and ours takes bfloat16 too.
SPARSED_INT8, TORCH_INT8 = "sparsed int8", "torch int8"


def run(options: Options, report: Report) -> None:
    """Measures each shape in each dtype, which is that of weights and activations."""
    peers, missing = available_peers([name for name in ("linear", "int8", "numpy") if name in options.peers])
    for name, reason in missing.items():
        report.skip(name, reason)
    report.roofs = measure_roofs(options.linear_dtypes(), options.quick)
    for case in options.linear_cases():
        rows: list[Row] = []
        for dtype in options.linear_dtypes():
            progress(f"{case.name} {dtype}")
            rows += _rows(case, dtype, peers, options, report)
        progress("")
        report.section(f"{case.name}: {case.tokens} x {case.inputs} -> {case.outputs}", COLUMNS, rows)
    report.roofs = best_roofs(report.roofs, measure_roofs(options.linear_dtypes(), options.quick))
    report.note(NOTE)


def _rows(case: LinearCase, dtype: str, peers: list[Peer], options: Options, report: Report) -> list[Row]:
    rng = np.random.default_rng(0)
    x = random_array(rng, (case.tokens, case.inputs), dtype)
    weight = random_array(rng, (case.outputs, case.inputs), dtype)
    packing: dict[str, float] = {}
    contenders = []
    for name in (SPARSED, SPARSED_INT8)[: 2 if dtype == "bfloat16" else 1]:
        pack = partial(ops.pack_weight, weight, dtype="int8" if name == SPARSED_INT8 else None)
        packing[name] = time_in_turns({"pack": pack}, 1, min_seconds=0)["pack"].median
        contenders.append(Contender(name, partial(ops.linear, x, pack())))
    for peer in peers:
        try:
            contender = peer.linear(x, weight)
        except SkipError as skip:
            report.skip(peer.name, str(skip))
            continue
        if contender is not None:
            contenders.append(contender)

    accuracies = {}
    for contender in contenders:
        try:
            accuracies[contender.name] = check_linear(
                contender.name, contender.array(contender.run()), x, weight, int8=_int8(contender.name)
            )
        except CheckError as wrong:
            if contender.name in packing:
                raise
            report.skip(contender.name, str(wrong), case=case.name)
    right = {one.name: one.run for one in contenders if one.name in accuracies}
    timings = time_in_turns(right, options.repeat, options.sample_seconds)
    rows: list[Row] = []
    for name, timing in timings.items():
        row: Row = {
            "case": case.name,
            "tokens": case.tokens,
            "outputs": case.outputs,
            "inputs": case.inputs,
            "dtype": "int8" if _int8(name) else dtype,
            "contender": name,
            **timing.fields(),
            "flops_per_s": case.flops / timing.median,
            **accuracies[name].fields(),
        }
        if name in packing:
            row["pack_s"] = packing[name]
            if TORCH in timings:
                row["versus_torch"] = timings[TORCH].median / timing.median
        if name == SPARSED_INT8:
            row["versus_bfloat16"] = timings[SPARSED].median / timing.median
        rows.append(row)
    return rows


def _int8(contender: str) -> bool:
    return contender in (SPARSED_INT8, TORCH_INT8)
