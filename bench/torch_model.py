"""`sparsed bench torch` times a denoising step of a torch model with the attention of SDPA, flex and sparsed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sparsed
from sparsed.models import ConfigReader, find_architecture

from .arrays import Array, Blocks, CheckError
from .cases import GENERATED_TOKENS, LAYER_SHAPES, PUBLISHED_BLOCK, PUBLISHED_RHO, TORCH_LENGTHS, GenerationCase
from .checkpoint import checkpoint_folder, config_values, write_checkpoint
from .harness import median_ratio, time_in_turns
from .options import Options
from .peers import PEERS
from .report import TIME_COLUMNS, Column, Report, Row, number, progress, ratio

COLUMNS: tuple[Column, ...] = (
    ("contender", "attention", str),
    ("phase", "step", str),
    ("density", "density", number(3)),
    *TIME_COLUMNS,
    ("versus_sdpa", "over SDPA, paired", ratio),
)
NOTE = (
    "One torch model with the same weights, in which only the attention differs. The published code runs its sparse "
    "steps with compiled flex_attention, which gets the blocks that sparsed selected. paired is the median over the "
    "rounds."
)
_DENSE = ("torch SDPA", "dense")


def run(options: Options, report: Report) -> None:
    """Measures each model and length in bfloat16."""
    reason = PEERS["sdpa"].why_not()
    if reason is not None:
        report.skip("torch model", reason)
        return
    if not options.lengths and not options.quick:
        options = dataclasses.replace(options, lengths=TORCH_LENGTHS)
    with checkpoint_folder(options.folder) as folder:
        for case in options.generation_cases():
            layers = LAYER_SHAPES[case.model].num_layers
            title = f"{case.model}: {case.layers} of {layers} layers, {case.length} tokens, bfloat16"
            progress(title)
            rows = _rows(case, write_checkpoint(folder, LAYER_SHAPES[case.model], case.layers), options, report)
            report.section(title, COLUMNS, rows)
    report.note(NOTE)


def _rows(case: GenerationCase, path: Path, options: Options, report: Report) -> list[Row]:
    model = _TorchModel(case, path)
    steps: dict[tuple[str, str], Callable[[], Any]] = {
        _DENSE: model.step(model.layers.sdpa),
        ("sparsed", "dense"): model.step(model.dense),
        ("sparsed", "select"): model.step(model.select),
        ("sparsed", "sparse"): model.step(model.sparse),
    }
    model.step(model.select)()  # selects the blocks that the sparse steps use
    reason = "not asked for" if "flex" not in options.peers else PEERS["flex"].why_not()
    if reason is None and case.length % PUBLISHED_BLOCK:
        reason = f"{case.length} tokens are not a multiple of {PUBLISHED_BLOCK}"
    if reason is None:
        steps["torch flex", "sparse"] = model.step(model.layers.flex(model.blocks()))
        _check(model, steps["torch flex", "sparse"], steps["sparsed", "sparse"], "torch flex")
    else:
        report.skip("torch flex", reason)
    _check(model, steps["sparsed", "dense"], steps[_DENSE], "sparsed")
    timings = time_in_turns({" ".join(key): step for key, step in steps.items()}, case.repeat, 0.0)
    rows = []
    for contender, phase in steps:
        timing = timings[f"{contender} {phase}"]
        rows.append(
            {
                "model": case.model,
                "layers": case.layers,
                "length": case.length,
                "dtype": "bfloat16",
                "block_size": PUBLISHED_BLOCK,
                "contender": contender,
                "phase": phase,
                "density": model.density() if phase == "sparse" else 1.0,
                **timing.fields(),
                "versus_sdpa": median_ratio(timings[" ".join(_DENSE)], timing),
            }
        )
    return rows


def _check(model: _TorchModel, step: Callable[[], Any], other: Callable[[], Any], name: str) -> None:
    """Checks that both compute the same logits within the precision of bfloat16."""
    found, expected = (model.array(one()).astype(np.float32) for one in (step, other))
    difference = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
    if not difference <= 0.05:
        raise CheckError(f"{name}: logits differ by {difference:.2g} of their size, expected at most 0.05")


class _TorchModel:
    """A random checkpoint in torch, and functions that compute its attention with sparsed."""

    def __init__(self, case: GenerationCase, path: Path) -> None:
        from .peers.torch_common import to_numpy
        from .peers.torch_layers import TorchLayers

        shape = LAYER_SHAPES[case.model]
        values = config_values(shape, case.layers)
        config = find_architecture(values, "config.json").read_config(ConfigReader(values, "config.json"))
        self.layers = TorchLayers(path, shape, config)
        generated = min(GENERATED_TOKENS, case.length // 4)
        self._ids = np.random.default_rng(0).integers(2, config.vocab_size - 1, (1, case.length))
        self._ids[:, case.length - generated :] = config.mask_token_id
        self._positions = np.arange(case.length - generated, case.length)
        self._patterns: dict[int, sparsed.BlockPattern] = {}
        self._to_numpy = to_numpy

    def step(self, attention: Callable[[int, Any, Any, Any], Any]) -> Callable[[], Any]:
        """Returns a function that runs a forward pass and returns the logits of the generation."""
        return lambda: self.layers.forward(self._ids, self._positions, attention)

    def array(self, logits: Any) -> Array:
        return self._to_numpy(logits)

    def dense(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        return sparsed.attention(q, k, v)

    def select(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        out, self._patterns[layer] = sparsed.attention_and_select(
            q,
            k,
            v,
            prompt_length=int(self._positions[0]),
            block_size=PUBLISHED_BLOCK,
            rho=PUBLISHED_RHO[PUBLISHED_BLOCK],
            generation="sparse",
        )
        return out

    def sparse(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        return sparsed.attention(q, k, v, self._patterns[layer])

    def blocks(self) -> list[Blocks]:
        return [Blocks(one.to_mask(), PUBLISHED_BLOCK, one.q_len) for _, one in sorted(self._patterns.items())]

    def density(self) -> float:
        return sum(one.density for one in self._patterns.values()) / len(self._patterns)
