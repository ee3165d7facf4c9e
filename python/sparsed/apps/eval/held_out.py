"""`sparsed eval --likelihood`: nats per token of a text's last tokens, for each length and method without a cache."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...models.files import read_text, replacing
from ...tables import format_table
from ..environment import machine_info
from .earlier import keep_earlier
from .likelihood import likelihood
from .records import Log, file_identity
from .run_context import Methods, RunContext, command_line
from .scoring import Interval, bootstrap
from .tasks import require_known

_NAME = "likelihood"
_MASKS = "counts spread evenly over the draws, in random order"  # a folder with draws under another rule is refused
_LEGEND = """
nats per token: negative log-likelihood of the text's last tokens, by Monte-Carlo draws (lower is better)
95 %: bootstrap interval of the difference, over the texts or, of one text, over its draws"""


@dataclass(frozen=True)
class TextRecord:
    """The nats per token of each draw, of one method on one text."""

    method: str
    length: int
    text: int
    draws: list[float]

    @property
    def key(self) -> tuple[str, int, int]:
        """Method, length and number of the text."""
        return self.method, self.length, self.text


def score_text(context: RunContext, methods: Methods) -> str:
    """Scores the texts that the folder has no record of, writes likelihood.json and returns the table."""
    args = context.args

    def uncached(length: int) -> list[Any]:
        return [method for method in methods(length) if method.kv_cache is None]

    names = [method.name for method in methods(args.lengths[0]) if method.kv_cache is not None]
    if names and (args.methods or args.preset):
        raise ValueError(
            f"eval: {', '.join(names)} given with --likelihood, expected methods without a cache (whole passes are "
            "scored)"
        )
    ids = context.tokenizer.encode(read_text(args.likelihood))
    for length in args.lengths:
        if len(ids) < length:
            raise ValueError(f"eval: {args.likelihood} has {len(ids)} tokens, expected at least {length}")
    require_known(context.tokenizer, ids, str(args.likelihood))
    source = {"target": args.target, "draws": args.draws, "masks": _MASKS, **file_identity(args.likelihood)}
    log = Log(args.out, context.plan(uncached, args.lengths) | {"text": source}, TextRecord, _NAME)
    done = {record.key for record in log.records}
    todo = [
        (length, i, method)
        for length in args.lengths
        for i in range(min(args.samples, len(ids) // length))
        for method in sorted(uncached(length), key=lambda m: m.name != "dense")
        if (method.name, length, i) not in done
    ]
    for length, i, method in tqdm(todo, unit="text", disable=not sys.stderr.isatty()):
        text = ids[i * length : (i + 1) * length]
        found = likelihood(
            context.model, text, target=args.target, draws=args.draws, sparse=method.sparse, seed=args.seed + i
        )
        log.add(TextRecord(method.name, length, i, found.draws.tolist()))
    rows = [
        row
        for length in args.lengths
        for row in _rows(
            {r.key: r.draws for r in log.records},
            [method.name for method in uncached(length)],
            length,
            min(args.samples, len(ids) // length),
        )
    ]
    path = args.out / f"{_NAME}.json"
    keep_earlier([path], rows=rows)
    content = {"command": command_line(), "machine": machine_info(), "rows": rows}
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return _table(rows)


def _rows(
    draws: dict[tuple[str, int, int], list[float]], names: Sequence[str], length: int, texts: int
) -> list[dict[str, Any]]:
    """A row per method. Intervals are over the texts or, for one text, over its draws; one value has no interval."""

    def values(name: str) -> NDArray[np.float64]:
        table = np.array([draws[(name, length, i)] for i in range(texts)], np.float64)
        return np.asarray(table[0] if texts == 1 else table.mean(axis=1))

    rows = []
    for name in names:
        row: dict[str, Any] = {"method": name, "length": length, "texts": texts, "nats": _interval(values(name))}
        if name != "dense" and all(("dense", length, i) in draws for i in range(texts)):
            row["minus_dense"] = _interval(values(name) - values("dense"))
        rows.append(row)
    return rows


def _interval(values: NDArray[np.float64]) -> dict[str, Any]:
    if len(values) == 1:
        return {"mean": float(values[0]), "low": None, "high": None}
    return dataclasses.asdict(bootstrap(values))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    def bounds(interval: dict[str, Any]) -> str:
        return "-" if interval["low"] is None else Interval(**interval).bounds(4, sign="+")

    lines = []
    for row in rows:
        difference = row.get("minus_dense")
        cells = ("", "") if difference is None else (f"{difference['mean']:+.4f}", bounds(difference))
        lines.append((row["method"], str(row["length"]), str(row["texts"]), f"{row['nats']['mean']:.4f}", *cells))
    table = format_table(("method", "length", "texts", "nats per token", "minus dense", "95 %"), lines)
    return f"{table}\n{_LEGEND}"
