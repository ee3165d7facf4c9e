"""Calls the public functions at random with arguments that are almost valid, or hostile: shapes, dtypes, strides,
negative strides, overlapping and read-only memory, zero sizes, huge sizes, NaN and infinity, objects of other types.

    python tests/fuzz/hostile_calls.py --calls 10000 --seed 0

A call may return, or raise ValueError, TypeError or MemoryError with a message that begins with the function's name.
Anything else, such as a crash, ends the run with the seed of the call. The program prints how the calls ended, and how
much memory the process gained in the second half of the calls.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import sparsed
from sparsed import BlockPattern, PackedKeyValues, PatternCache, SparseConfig, ops

Array = NDArray[Any]
Random = np.random.Generator
DTYPES: list[Any] = [np.float32] * 6 + [np.float16, ml_dtypes.bfloat16] * 2
WRONG_DTYPES: list[Any] = [np.float64, np.int32, np.uint8, np.complex64, bool, ">f4", object]
EDGES = [0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 100]
NUMBERS: list[Any] = [0, -1, 0.5, 1.0, 1.5, -0.0, 1e-40, 1e30, float("nan"), float("inf"), 2**31, 2**63, 2**70, True]
OBJECTS: list[Any] = [None, "x", b"x", [], [[1.0]], {}, object(), 3, np.float32(1), np.array(1.0), np.array("text")]
BLOCK_SIZES = [16, 32, 64, 128, 256]


def choose(rng: Random, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def array(rng: Random, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of the shape, perhaps with unusual memory or contents."""
    kind = int(rng.integers(40))
    if kind == 0:
        return choose(rng, OBJECTS)
    if kind == 1:
        dtype = choose(rng, WRONG_DTYPES)
    if kind == 2:  # never touched: an array without memory behind it
        return np.broadcast_to(np.zeros((), dtype), (*shape[:-2], 2 ** int(rng.integers(20, 40)), shape[-1]))
    if dtype is object:
        return np.full(shape, None)
    values = rng.standard_normal(shape).astype(np.float32).astype(dtype)
    if kind == 3 and values.size:
        with np.errstate(over="ignore"):  # 3e38 is more than float16 holds
            values.flat[int(rng.integers(values.size))] = choose(rng, [np.nan, np.inf, -np.inf, 3e38])
    if kind == 4:
        return np.asfortranarray(values)
    if kind == 5:
        return values[..., ::-1]
    if kind == 6:
        return np.flip(values, -2) if values.ndim > 1 else values[::-1]
    if kind == 7:
        return np.lib.stride_tricks.as_strided(values, shape, (0,) * len(shape), writeable=False)
    if kind == 8:
        values.flags.writeable = False
    if kind == 9 and values.size:
        raw = np.zeros(values.nbytes + 1, np.uint8)
        return raw[1:].view(values.dtype).reshape(shape) if values.dtype.kind != "V" else values
    if kind == 10 and values.ndim > 2:
        return np.ascontiguousarray(values.swapaxes(1, 2)).swapaxes(1, 2)
    return values


def qkv(rng: Random) -> tuple[Any, Any, Any, int, int, int, int]:
    batch, kv_heads = choose(rng, [1, 1, 2, 3, 0]), choose(rng, [1, 2, 3, 2, 0])
    heads = kv_heads * choose(rng, [1, 1, 2, 3, 0])
    kv_len = choose(rng, EDGES)
    q_len = kv_len if rng.random() < 0.7 else choose(rng, EDGES)
    head_dim = choose(rng, [16, 24, 40, 64, 64, 64, 96, 128, 128, 256, 256, 0, 8, 20, 264])
    dtype = choose(rng, DTYPES)
    shapes = [[batch, heads, q_len, head_dim], [batch, kv_heads, kv_len, head_dim], [batch, kv_heads, kv_len, head_dim]]
    if rng.random() < 0.25:
        shape = choose(rng, shapes)
        shape[int(rng.integers(4))] = choose(rng, EDGES)
    if rng.random() < 0.05:
        choose(rng, shapes).pop()
    q, k, v = (array(rng, tuple(shape), dtype) for shape in shapes)
    return q, k, v, batch, heads, q_len, kv_len


def pattern(rng: Random, batch: int, heads: int, q_len: int, kv_len: int) -> Any:
    if rng.random() < 0.1:
        return choose(rng, OBJECTS)
    block = choose(rng, BLOCK_SIZES)
    q_len, kv_len = (max(1, n + choose(rng, [0, 0, 0, 0, 1, -1])) for n in (q_len, kv_len))
    shape = (max(1, batch), max(1, heads), -(-q_len // block), -(-kv_len // block))
    return BlockPattern.from_mask(rng.random(shape) < rng.random(), block_size=block, q_len=q_len, kv_len=kv_len)


def key_mask(rng: Random, batch: int, kv_len: int) -> Any:
    kind = int(rng.integers(10))
    if kind < 5:
        return None
    if kind == 5:
        return choose(rng, OBJECTS)
    mask = rng.random((batch, kv_len + (kind == 6))) < rng.random()
    return mask.astype(np.int8) if kind == 7 else mask[:, ::-1] if kind == 8 else mask


def number(rng: Random, usual: Any) -> Any:
    kind = int(rng.integers(20))
    return choose(rng, NUMBERS) if kind == 0 else choose(rng, OBJECTS) if kind == 1 else usual


def call_attention(rng: Random) -> Any:
    q, k, v, batch, heads, q_len, kv_len = qkv(rng)
    blocks = pattern(rng, batch, heads, q_len, kv_len) if rng.random() < 0.5 else None
    options = {"scale": number(rng, None), "key_mask": key_mask(rng, batch, kv_len)}
    return sparsed.attention(q, k, v, blocks, return_lse=bool(rng.integers(2)), **options)


def own_rule(rng: Random) -> Callable[..., Any]:
    """A rule of the user's own; some return what they may not."""
    result = choose(rng, [None, None, None, *OBJECTS, rng.random((1, 2, 3, 3)) < 0.5])
    return lambda scores, geometry: scores >= scores.mean() if result is None else result


def selection_options(rng: Random, batch: int, length: int) -> dict[str, Any]:
    return {
        "prompt_length": number(rng, int(rng.integers(length + 1))),
        "block_size": number(rng, choose(rng, BLOCK_SIZES)),
        "rho": number(rng, float(rng.random())),
        "selection": choose(rng, ["paper", "paper", "reference", own_rule(rng), "other", None, 3]),
        "selection_scale": number(rng, None),
        "key_mask": key_mask(rng, batch, length),
    }


def call_select(rng: Random) -> Any:
    q, k, v, batch, _, _, kv_len = qkv(rng)
    options = selection_options(rng, batch, kv_len)
    if rng.integers(2):
        return sparsed.select(q, k, **options)
    return sparsed.attention_and_select(q, k, v, return_scores=bool(rng.integers(2)), **options)


def call_config(rng: Random) -> Any:
    return SparseConfig(
        skip=number(rng, float(rng.random())),
        rho=number(rng, float(rng.random())),
        block_size=number(rng, choose(rng, BLOCK_SIZES)),
        refresh=choose(rng, [(), (), "every", (0.5,), (2.0,), ("x",), "none", 3, None]),
        min_length=number(rng, 0),
    )


def call_cache(rng: Random) -> Any:
    config = SparseConfig(skip=0.0, block_size=choose(rng, BLOCK_SIZES), min_length=0)
    steps, prompt = number(rng, 3), number(rng, int(rng.integers(20)))
    cache = PatternCache(config if rng.random() < 0.9 else choose(rng, OBJECTS), steps=steps, prompt_length=prompt)
    q, k, v, batch, _, _, kv_len = qkv(rng)
    for step in range(2):
        cache.begin_step(number(rng, step))
        cache.attend(number(rng, 0), q, k, v, key_mask(rng, batch, kv_len))
    return cache.pattern(number(rng, 0))


def call_sets(rng: Random) -> Any:
    first, second = call_pattern(rng), call_pattern(rng) if rng.random() < 0.5 else None
    part = first[choose(rng, [0, -1, [0, 0], slice(None), 5, 1.5, None])]
    indptr, indices = part.to_bsr()
    sizes = {"batch": part.batch, "heads": number(rng, part.heads), "q_len": part.q_len, "kv_len": part.kv_len}
    given = choose(rng, [indices, indices + 1, indices[:-1], indices.astype(float), None])
    back = BlockPattern.from_bsr(indptr, given, block_size=number(rng, part.block_size), **sizes)
    return back | (part if second is None else second)


def call_recall(rng: Random) -> Any:
    q, k, _, batch, heads, q_len, kv_len = qkv(rng)
    blocks = pattern(rng, batch, heads, q_len, kv_len) if rng.random() < 0.9 else None
    return sparsed.recall(q, k, blocks, scale=number(rng, None), key_mask=key_mask(rng, batch, kv_len))


def call_packed(rng: Random) -> Any:
    q, k, v, batch, _, _, kv_len = qkv(rng)
    sizes = [number(rng, size) for size in np.shape(k)] if np.ndim(k) == 4 and rng.random() < 0.9 else [1, 1, 16, 16]
    dtype = k.dtype if rng.random() < 0.9 and isinstance(k, np.ndarray) else choose(rng, WRONG_DTYPES + OBJECTS)
    packed = PackedKeyValues(*sizes, dtype, key_mask(rng, batch, kv_len))
    if rng.random() < 0.9:
        packed.update(None, k, v)
    positions = np.flatnonzero(rng.random(kv_len + choose(rng, [0, 0, 0, 1])) < rng.random())
    given = (
        positions if rng.random() < 0.9 else choose(rng, [*OBJECTS, positions[::-1], -positions, positions.tolist()])
    )
    if np.ndim(k) == np.ndim(v) == 4 and positions.max(initial=-1) < min(k.shape[2], v.shape[2]):
        packed.update(given, k[:, :, positions], v[:, :, positions])
    return packed.attention(q, scale=number(rng, None), return_lse=bool(rng.integers(2)))


def call_pattern(rng: Random) -> Any:
    which = choose(rng, ["from_mask", "full", "sliding_window", "streaming"])
    lengths = {"q_len": number(rng, choose(rng, EDGES)), "kv_len": number(rng, choose(rng, EDGES))}
    block = number(rng, choose(rng, BLOCK_SIZES))
    if which == "from_mask":
        mask = rng.random(tuple(choose(rng, [0, 1, 2, 3]) for _ in range(4))) < 0.5
        given = mask if rng.random() < 0.8 else choose(rng, OBJECTS)
        return BlockPattern.from_mask(given, block_size=block, **lengths)
    sizes: dict[str, Any] = {"batch": number(rng, 1), "heads": number(rng, 2), "block_size": block, **lengths}
    if which != "full":
        sizes["window"] = number(rng, 10)
    if which == "streaming":
        sizes["sinks"] = number(rng, 3)
    return getattr(BlockPattern, which)(**sizes)


def call_ops(rng: Random) -> Any:
    n, k, rows = (choose(rng, EDGES) for _ in range(3))
    dtype = choose(rng, DTYPES)
    weight: Any = array(rng, (n, k), dtype)
    if n and k:
        weight = ops.pack_weight(weight, dtype=choose(rng, [None, None, "int8"]))
    x = array(rng, (rows, k + choose(rng, [0, 0, 0, 1])), dtype)
    return choose(rng, [ops.linear, ops.linears])(x, choose(rng, [weight, weight, [weight, weight]]))


CALLS: dict[str, Callable[[Random], Any]] = {
    "attention": call_attention,
    "select": call_select,
    "config": call_config,
    "cache": call_cache,
    "packed": call_packed,
    "pattern": call_pattern,
    "sets": call_sets,
    "recall": call_recall,
    "ops": call_ops,
}
# "attention: k has head_dim 64, ...", "SparseConfig: rho is 2.0, ...", "BlockPattern.full: ..."
NAMED = re.compile(r"^[A-Za-z_][\w.]*: \S.*", re.DOTALL)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def run(calls: int, seed: int) -> dict[str, Any]:
    """Makes the calls; RuntimeError at the first wrong answer."""
    outcomes: collections.Counter[str] = collections.Counter()
    began, halfway = time.monotonic(), 0
    for number_ in range(calls):
        if number_ == calls // 2:
            halfway = resident()
        rng = np.random.default_rng([seed, number_])
        name = choose(rng, list(CALLS))
        try:
            CALLS[name](rng)
            outcomes["returned"] += 1
        except (ValueError, TypeError, MemoryError, IndexError) as error:
            if not NAMED.match(str(error)):
                raise RuntimeError(f"call {number_} of seed {seed} ({name}): unnamed error {error!r}") from error
            outcomes[type(error).__name__] += 1
        except Exception as error:
            raise RuntimeError(f"call {number_} of seed {seed} ({name}): {error!r}") from error
    return {
        "calls": calls,
        "seed": seed,
        "outcomes": dict(sorted(outcomes.items())),
        "seconds": round(time.monotonic() - began, 1),
        "gained_bytes": resident() - halfway,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.calls, arguments.seed), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
