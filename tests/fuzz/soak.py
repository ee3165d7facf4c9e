"""Runs many generations in one process, with changing shapes, settings and thread counts. Memory must not grow.

    python tests/fuzz/soak.py --generations 1000

It prints the resident memory every hundred generations, and how much the second half gained. More than 2 % fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import sparsed
from sparsed.demo import demo_model_folder

_FLAT = 0.02


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def settings(rng: np.random.Generator, length: int) -> Any:
    """Returns random settings: dense, sparse or a baseline."""
    block_size = int(rng.choice([16, 32, 64]))
    kinds = (
        None,
        sparsed.SparseConfig(skip=float(rng.random()) / 2, block_size=block_size, min_length=0),
        sparsed.SparseConfig(block_size=block_size, min_length=0, selection="reference", refresh=(0.5,)),
        sparsed.SlidingWindow(window=max(1, length // 4), block_size=block_size),
        sparsed.StreamingLLM(window=max(1, length // 4), sinks=4, block_size=block_size),
    )
    return kinds[int(rng.integers(len(kinds)))]


def run(generations: int, seed: int, longest: int) -> dict[str, Any]:
    """Resident bytes over the generations."""
    rng = np.random.default_rng(seed)
    models = [sparsed.load_model(demo_model_folder(), dtype) for dtype in ("float32", "bfloat16")]
    every = max(1, generations // 10)
    memory = []
    for number in range(generations):
        batch, length = int(rng.integers(1, 4)), int(rng.integers(1, longest))
        model = models[int(rng.integers(2))]
        prompt = rng.integers(0, 200, (batch, length))
        mask = np.arange(length) >= rng.integers(0, length, (batch, 1))
        sparsed.set_num_threads(int(rng.integers(1, 4)))
        sparsed.generate(
            model,
            prompt,
            gen_length=8,
            steps=int(rng.integers(1, 9)),
            sparse=settings(rng, length),
            prompt_mask=mask,
            history=bool(rng.integers(2)),
            seed=number,
        )
        if (number + 1) % every == 0:
            gc.collect()
            memory.append(resident())
    half = memory[len(memory) // 2]
    return {"generations": generations, "resident_bytes": memory, "gained": memory[-1] / half - 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--longest", type=int, default=1000, help="tokens of the longest prompt")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = run(arguments.generations, arguments.seed, arguments.longest)
    print(json.dumps(found, indent=2))
    return int(found["gained"] > _FLAT)


if __name__ == "__main__":
    sys.exit(main())
