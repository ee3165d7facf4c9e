"""Times dense, selecting and sparse steps of a few layers of LLaDA-8B's shape with the torch engine."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsed
from sparsed import PatternCache, SparseConfig

from ..cases import GENERATED_TOKENS, LAYER_SHAPES, RANDOM_VOCABULARY
from ..checkpoint import write_checkpoint
from .measure import describe

PHASES = ("dense", "select", "sparse")


def step_seconds(model: Any, length: int, rounds: int) -> dict[str, list[float]]:
    """Times the step of each phase in turns, in seconds. The first round warms up and does not count."""
    ids = np.random.default_rng(0).integers(0, RANDOM_VOCABULARY - 1, (1, length))
    positions = np.arange(length - GENERATED_TOKENS, length)
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for number in range(rounds + 1):
        # With skip 2/3, the first of three steps is dense, the second selects and the third is sparse.
        cache = PatternCache(SparseConfig(skip=2 / 3, min_length=0), steps=3, prompt_length=length - GENERATED_TOKENS)
        for step, phase in enumerate(PHASES):
            cache.begin_step(step)
            assert cache.phase == phase
            begun = time.perf_counter()
            model.forward(ids, attend=cache.attend, positions=positions)  # returns when the logits are on the host
            if number:
                times[phase].append(time.perf_counter() - begun)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("stack.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sparsed-bench-") as folder:
        path = write_checkpoint(Path(folder), LAYER_SHAPES["llada-8b"], args.layers)
        model = sparsed.load_model(path, engine="torch", device=args.device, dtype="bfloat16")
        for length in args.length:
            for phase, seconds in step_seconds(model, length, args.rounds).items():
                median = statistics.median(seconds)
                records.append({"length": length, "phase": phase, "seconds": median, "runs": seconds})
                print(f"{args.layers} layers, {length} tokens, {phase}: {median * 1e3:.1f} ms")
            machine = describe() if torch.cuda.is_available() else {}
            args.json.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
