"""The machine's limits as they can be measured from here: copying memory, and a large matrix product."""

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
    """bandwidth: bytes read and written per second by copies of all threads; product: FLOP/s of `ops.linear` by dtype.

    The product is the best rate that this library reaches, not the hardware's limit.
    """
    case = _QUICK_PRODUCT if quick else _PRODUCT
    rng = np.random.default_rng(0)
    products = {}
    for dtype in dtypes:
        if dtype == "float16":
            continue  # no linear layer of the models has it
        x = random_array(rng, (case.rows, case.inputs), dtype)
        weight = ops.pack_weight(random_array(rng, (case.outputs, case.inputs), dtype))
        timing = time_in_turns({"product": partial(ops.linear, x, weight)}, _ROUNDS, 0)["product"]
        products[dtype] = case.flops / timing.minimum
    return {"bandwidth": _bandwidth(_QUICK_COPIED if quick else _COPIED), "product": products}


def best_roofs(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The larger of two measurements, before and after the cases: a machine has slow moments."""
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
