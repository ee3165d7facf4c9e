"""Measures limits of the machine: the bandwidth of copies, and the rate of a large matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

import sparsed
from sparsed.kernels import ops

from .arrays import random_array
from .cases import LinearCase
from .harness import time_in_turns

_PRODUCT = LinearCase("product", 2048, 4096, 4096)
_QUICK_PRODUCT = LinearCase("product", 128, 256, 256)
_COPIED, _QUICK_COPIED = 1 << 28, 1 << 22
_ROUNDS = 5


def measure_roofs(dtypes: Sequence[str], quick: bool) -> dict[str, Any]:
    """Returns `bandwidth` and `product`.

    `bandwidth` is bytes read and written per second when all threads copy. `product` is the FLOP/s of `ops.linear` by
    dtype, which is the best rate that this library reaches and not the hardware's limit.
    """
    case = _QUICK_PRODUCT if quick else _PRODUCT
    rng = np.random.default_rng(0)
    products = {}
    for dtype in dtypes:
        if dtype == "float16":
            continue  # linear layers do not support it
        x = random_array(rng, (case.tokens, case.inputs), dtype)
        weight = ops.pack_weight(random_array(rng, (case.outputs, case.inputs), dtype))
        timing = time_in_turns({"product": partial(ops.linear, x, weight)}, _ROUNDS, 0)["product"]
        products[dtype] = case.flops / timing.minimum
    return {"bandwidth": _bandwidth(_QUICK_COPIED if quick else _COPIED), "product": products}


def best_roofs(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Returns the larger of two measurements, from before and after the cases, since a machine has slow moments."""
    products = {dtype: max(value, b["product"][dtype]) for dtype, value in a["product"].items()}
    return {"bandwidth": max(a["bandwidth"], b["bandwidth"]), "product": products}


def _bandwidth(size: int) -> float:
    threads = sparsed.get_num_threads()
    pairs = [(np.zeros(size // threads, np.uint8), np.ones(size // threads, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            for done in [pool.submit(np.copyto, target, source) for target, source in pairs]:
                done.result()

        timing = time_in_turns({"copy": copy}, _ROUNDS, 0)["copy"]
    return 2 * sum(len(target) for target, _ in pairs) / timing.minimum
