"""Times steps of the demo model. It prints "ready", waits for a line, and then prints the times as JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
import time

import numpy as np

_MODULE = "sparsed.kernels._core"
# At least this many steps run, so that there is a median even if a step takes long.
_LEAST_STEPS = 5


def main(text: str) -> None:
    """Runs the steps that `text` describes.

    It is JSON with `length`, `dtype`, `seconds`, `torch` (whether to load torch first), and `module` (the path of a
    compiled module to use, or null).
    """
    given = json.loads(text)
    if given["torch"]:
        import torch

        torch.ones(512, 512) @ torch.ones(512, 512)  # this starts the threads of torch's OpenMP
    if given["module"] is not None:
        _load_instead(given["module"])
    import sparsed
    from sparsed.demo import demo_model_folder

    model = sparsed.load_model(demo_model_folder(), given["dtype"])
    tokens = np.arange(given["length"])[None] % model.config.vocab_size
    for _ in range(2):
        model.forward(tokens)
    print("ready", flush=True)
    sys.stdin.readline()
    steps: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while len(steps) < _LEAST_STEPS or time.perf_counter() - began < given["seconds"]:
        before = time.perf_counter()
        model.forward(tokens)
        steps.append(time.perf_counter() - before)
    print(json.dumps({"steps_s": steps, "cpu_s": (time.process_time() - cpu) / len(steps)}))


def _load_instead(path: str) -> None:
    """Makes the package use this file as its compiled module."""
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a compiled module of sparsed")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main(sys.argv[1])
