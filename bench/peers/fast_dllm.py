"""Fast-dLLM's own code for LLaDA as a peer: its model and its three loops, with torch on the CPU.

The code comes from a checkout of NVlabs/Fast-dLLM that the user names, and none of it is changed. It needs three shims:

- If einops is not installed, a stand-in takes its place. Only a block that LLaDA does not have calls it.
- `use_cache` is set after its config is made, because newer releases of transformers drop it.
- The model is built without memory and gets its weights afterwards, instead of by `from_pretrained` on a GPU.

In a pass over all tokens, its loops compute the logits of every token, and their softmax in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparsed.kernels import ops
from sparsed.models import Transformer
from sparsed.models.safetensors import SafetensorsFile

from ..arrays import CheckError
from ..cases import GENERATED_TOKENS, LayerShape
from ..decoding import CACHE_BLOCK, Generations, Kind, Steps, random_prompt
from .base import SkipError
from .torch_common import load_torch, to_numpy, to_torch

# Its function by the name of our row.
_LOOPS = {
    "Fast-dLLM dense": "generate",
    "Fast-dLLM prefix cache": "generate_with_prefix_cache",
    "Fast-dLLM dual cache": "generate_with_dual_cache",
}
_CHECKED_TOKENS = 512


def fast_dllm_generations(
    checkout: Path | None, checkpoint: Path, shape: LayerShape, ours: Transformer, length: int
) -> list[Generations]:
    """Returns generations by Fast-dLLM's loops, with the weights of the checkpoint.

    Raises:
        SkipError: No checkout was given, torch or transformers is missing, the model is not a LLaDA, or its logits do
            not fit into memory.
        CheckError: Its logits are not ours within the precision of bfloat16.
        ValueError: The folder is not a checkout.
    """
    if checkout is None:
        raise SkipError("no checkout was given (--fast-dllm)")
    if shape.family != "llada":
        raise SkipError("only its code for LLaDA takes part")
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise SkipError(f"{package} is not installed")
    # The logits of all tokens in bfloat16 and float64, and their softmax; and twice a float32 mask of all pairs.
    needed = 18 * length * shape.vocab_size + 8 * (length + GENERATED_TOKENS) ** 2
    needed += (checkpoint / "model.safetensors").stat().st_size
    try:
        ops.require_memory(needed, "Fast-dLLM")
    except MemoryError as error:
        raise SkipError(str(error)) from error
    with _importable(checkout / "llada"):
        loops = importlib.import_module("generate")
        model = _load(checkpoint)
    _check(model, ours, min(length, _CHECKED_TOKENS))
    return [FastDllmGenerations(name, loops, loop, model, length) for name, loop in _LOOPS.items()]


class FastDllmGenerations(Generations):
    """Generations by one of Fast-dLLM's loops.

    Args:
        name: The name in the table.
        loops: The module of its loops.
        loop: The name of the loop.
        model: Its model.
        length: The number of tokens of prompt and generation.
    """

    def __init__(self, name: str, loops: types.ModuleType, loop: str, model: Any, length: int) -> None:
        self.name = name
        self.num_blocks = GENERATED_TOKENS // CACHE_BLOCK
        self._loops = loops
        self._loop = loop
        self._model = model
        self._length = length

    def run(self, steps: int) -> Steps:
        seconds = self._seconds(self._loop, self._length, steps, GENERATED_TOKENS, CACHE_BLOCK)
        kinds = [kind for block in range(self.num_blocks) for kind in self._kinds(block, steps // self.num_blocks)]
        if len(seconds) != len(kinds):
            raise CheckError(f"{self.name}: called the model {len(seconds)} times, expected {len(kinds)}")
        return list(zip(kinds, seconds, strict=True))

    def outside(self, steps: int) -> Steps:
        """Times the loop without a cache on as many rows, since the other loops take no model without layers."""
        found: Steps = []
        with _without_layers(self._model):
            for kind in self.schedule(steps):
                shape = (kind.rows, 3, kind.rows, kind.rows)
                if kind.phase == "dense":
                    shape = (self._length, self.num_blocks, GENERATED_TOKENS, CACHE_BLOCK)
                found += [(kind, seconds) for seconds in self._seconds(_LOOPS["Fast-dLLM dense"], *shape)]
        return found

    def schedule(self, steps: int) -> Counter[Kind]:
        return Counter(
            kind for block in range(self.num_blocks) for kind in self._kinds(block, steps // self.num_blocks)
        )

    def _kinds(self, block: int, steps: int) -> list[Kind]:
        """Returns the kinds of a block's steps: a full pass, then cached ones of the block or of all from it on."""
        if self._loop == _LOOPS["Fast-dLLM dense"]:
            return [Kind("dense")] * steps
        rows = CACHE_BLOCK if "dual" in self._loop else GENERATED_TOKENS - block * CACHE_BLOCK
        return [Kind("dense"), *[Kind("cached", rows)] * (steps - 1)]

    def _seconds(self, loop: str, length: int, steps: int, gen_length: int, block_length: int) -> list[float]:
        """Returns the seconds from each call of the model to the next one, or to the end."""
        began: list[float] = []
        hook = self._model.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
        mask = self._model.config.mask_token_id
        prompt = load_torch().from_numpy(random_prompt(length, self._model.config.vocab_size, gen_length))
        sizes = {"steps": steps, "gen_length": gen_length, "block_length": block_length}
        try:
            tokens, _ = getattr(self._loops, loop)(self._model, prompt, mask_id=mask, **sizes)
        finally:
            hook.remove()
        ends = [*began[1:], time.perf_counter()]
        if (tokens == mask).any():
            raise CheckError(f"{self.name}: a token of the generation is still masked, expected none")
        return [end - begin for begin, end in zip(began, ends, strict=True)]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the modules in the folder be imported, and stands in for einops.

    Raises:
        ValueError: The folder is not that of Fast-dLLM's code.
    """
    if not (folder / "generate.py").is_file() or not (folder / "model" / "modeling_llada.py").is_file():
        raise ValueError(
            f"generate: {folder} has no generate.py and model/modeling_llada.py, expected a checkout of "
            "NVlabs/Fast-dLLM in --fast-dllm"
        )
    stand_in = types.ModuleType("einops")
    stand_in.rearrange = None  # type: ignore[attr-defined]
    missing = importlib.util.find_spec("einops") is None
    sys.path.insert(0, str(folder))
    if missing:
        sys.modules["einops"] = stand_in
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if missing:
            del sys.modules["einops"]


def _load(checkpoint: Path) -> Any:
    """Returns Fast-dLLM's model with the weights of the checkpoint."""
    code = importlib.import_module("model.modeling_llada")
    values = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(code.ModelConfig)}
    config = code.LLaDAConfig(**{key: value for key, value in values.items() if key in known})
    config.use_cache = False
    shape = code.create_model_config_from_pretrained_config(config)
    shape.init_device = "meta"
    model = code.LLaDAModelLM(config, model=code.LLaDAModel(shape, init_params=False))
    file = SafetensorsFile(checkpoint / "model.safetensors")
    model.load_state_dict({name: to_torch(file.array(name)) for name in file.tensors}, assign=True)
    return model.eval()


@contextlib.contextmanager
def _without_layers(model: Any) -> Iterator[None]:
    parts = model.model.transformer
    layers = parts["blocks"]
    parts["blocks"] = type(layers)()
    try:
        yield
    finally:
        parts["blocks"] = layers


def _check(model: Any, ours: Transformer, length: int) -> None:
    """Checks that both compute the same logits within the precision of bfloat16."""
    prompt = random_prompt(length, ours.config.vocab_size)
    masks = np.full((1, GENERATED_TOKENS), ours.config.mask_token_id)
    ids, positions = np.concatenate([prompt, masks], axis=1), np.arange(prompt.shape[1], length)
    with load_torch().inference_mode():
        theirs = to_numpy(model(load_torch().from_numpy(ids)).logits)[0, positions].astype(np.float32)
    expected = ours.forward(ids, positions=positions)[0]
    difference = float(np.sqrt(np.mean((theirs - expected) ** 2) / np.mean(expected**2)))
    if not difference <= 0.05:
        raise CheckError(f"its logits differ from ours by {difference:.2g} of their size, expected at most 0.05")
