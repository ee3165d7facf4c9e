"""`sparsed bench errors` shows which peers of single operations can run here, and checks results against float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import sparsed
from sparsed.kernels import ops

from .arrays import (
    Accuracy,
    Array,
    Blocks,
    CheckError,
    check_attention,
    check_linear,
    random_array,
    random_blocks,
    random_qkv,
)
from .cases import AttentionCase
from .harness import Contender
from .options import Options
from .peers import PEERS, Peer, SkipError
from .report import ERROR_COLUMNS, Column, Report, Row

COLUMNS: tuple[Column, ...] = (
    ("contender", "contender", str),
    ("version", "version", str),
    ("task", "task", str),
    ("dtype", "dtype", str),
    *ERROR_COLUMNS,
    ("verdict", "verdict", str),
)
_LENGTH, _HEADS, _HEAD_DIM, _BLOCK = 256, 2, 64, 128
_ROWS, _INPUTS, _OUTPUTS = 64, 128, 96


def run(options: Options, report: Report) -> None:
    """Checks every peer on each of its tasks, on small shapes, against float64."""
    rows: list[Row] = []
    for dtype in options.dtypes or ("float32", "bfloat16"):
        rows += _check(_Sparsed(), dtype)
    for key in options.peers:
        peer = PEERS[key]
        reason = peer.why_not()
        if reason is not None:
            report.skip(peer.name, reason)
            rows.append({"contender": peer.name, "verdict": f"skipped: {reason}"})
            continue
        for dtype in options.dtypes or ("float32", "bfloat16"):
            rows += _check(peer, dtype)
    report.section("results against float64", COLUMNS, rows)


class _Sparsed(Peer):
    """sparsed with the interface of a peer."""

    name = "sparsed"

    def why_not(self) -> str | None:
        return None

    def version(self) -> str:
        return f"sparsed {sparsed.__version__}"

    def dense(self, q: Array, k: Array, v: Array) -> Contender:
        return Contender(self.name, partial(sparsed.attention, q, k, v))

    def sparse(self, q: Array, k: Array, v: Array, blocks: Blocks) -> Contender:
        return Contender(self.name, partial(sparsed.attention, q, k, v, blocks.pattern))

    def linear(self, x: Array, weight: Array) -> Contender:
        return Contender(self.name, partial(ops.linear, x, ops.pack_weight(weight)))


def _check(peer: Peer, dtype: str) -> list[Row]:
    q, k, v = random_qkv(AttentionCase(dtype, _HEAD_DIM, _LENGTH, _HEADS, _HEADS))
    blocks = random_blocks(_LENGTH, _HEADS, _BLOCK, 0.5)
    rng = np.random.default_rng(0)
    x, weight = random_array(rng, (_ROWS, _INPUTS), dtype), random_array(rng, (_OUTPUTS, _INPUTS), dtype)
    rows: list[Row] = []

    def task(name: str, make: Callable[[], Contender | None], check: Callable[..., Accuracy]) -> None:
        row: Row = {"contender": peer.name, "version": peer.version(), "task": name, "dtype": dtype}
        try:
            contender = make()
            if contender is None:
                return
            row |= {**check(peer.name, contender.array(contender.run())).fields(), "verdict": "right"}
        except SkipError as skip:
            row["verdict"] = f"skipped: {skip}"
        except CheckError as wrong:
            row["verdict"] = f"wrong: {wrong}"
        rows.append(row)

    task("dense", partial(peer.dense, q, k, v), lambda n, out: check_attention(n, out, q, k, v, None, full=True))
    task(
        "sparse",
        partial(peer.sparse, q, k, v, blocks),
        lambda n, out: check_attention(n, out, q, k, v, blocks, full=True),
    )
    task("linear", partial(peer.linear, x, weight), lambda n, out: check_linear(n, out, x, weight, int8=peer.int8))
    return rows
