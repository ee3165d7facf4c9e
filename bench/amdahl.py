"""`sparsed bench amdahl` computes SparseD's speed-up from measured denoising steps, and the bound of Amdahl's law.

The steps are dense, selecting and sparse ones of random checkpoints with a few layers of LLaDA-8B's and Dream-7B's
shape. They are timed by part, here and in torch. From these times follow the speed-up of a generation of T steps, and
the bound that Amdahl's law sets for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsed import SparseConfig, load_model

from .arrays import Blocks, CheckError
from .cases import (
    GENERATED_TOKENS,
    LAYER_SHAPES,
    PUBLISHED_BLOCK,
    PUBLISHED_RHO,
    PUBLISHED_SKIP,
    STEP_COUNTS,
    TORCH_STEP_TOKENS,
    GenerationCase,
    published_speedup,
)
from .checkpoint import checkpoint_folder, write_checkpoint
from .harness import Timing
from .options import Options
from .parts import PHASES, DenoisingSteps, StepTime
from .peers import PEERS
from .report import Column, Report, Row, number, percent, progress, ratio
from .step import step_row

MEASURED_COLUMNS: tuple[Column, ...] = (
    ("phase", "measured", str),
    ("median_s", "s per step", number(3)),
    ("min_s", "min", number(3)),
    ("spread", "spread", percent),
    ("density", "density", number(3)),
    ("attention_s", "attention", number(3)),
    ("linear_s", "linear", number(3)),
    ("other_share", "other", percent),
    ("torch_s", "torch s", number(3)),
    ("versus_torch", "torch/this", ratio),
)
COMPUTED_COLUMNS: tuple[Column, ...] = (
    ("steps", "computed, T", str),
    ("speedup", "speed-up", ratio),
    ("bound", "Amdahl's bound", ratio),
    ("of_bound", "of the bound", percent),
    ("dense_s", "dense, s", number(0)),
    ("sparse_s", "SparseD, s", number(0)),
    ("published", "authors' speed-up", ratio),
)
NOTE = """\
Measured are the seconds of a step of a few layers with random weights, by part. torch runs the same layers and weights,
dense with SDPA and sparse with compiled flex_attention on the same blocks; building and compiling masks is not timed.
Computed from the medians: speed-up = T dense / (dense steps before the selection + the selecting step + sparse steps),
with skip 0.2. Amdahl's bound assumes that the selection costs nothing, that the attention of a sparse step takes its
density times the dense time, and that the rest of the step takes the measured time. Seconds are steps x layers of the
whole model x the measured time per layer.
Both leave out the embedding and the head (the checkpoint has a small vocabulary), and the sampler.
The authors' speed-up is that of arXiv 2509.24014 for one A800 GPU, bf16, all layers."""


@dataclass(frozen=True)
class Medians:
    """The medians of a case: seconds by phase, seconds of the dense step's attention, and the sparse density."""

    dense: float
    select: float
    sparse: float
    attention: float
    density: float


def run(options: Options, report: Report) -> None:
    """Measures each model and length."""
    with checkpoint_folder(options.folder) as folder:
        for case in options.generation_cases():
            shape = LAYER_SHAPES[case.model]
            title = f"{case.model}: {case.layers} of {shape.num_layers} layers, {case.length} tokens, bfloat16"
            path = write_checkpoint(folder, shape, case.layers)
            measured, torch_times = _measure(case, path, options, report, title)
            rows = [step_row(case, "bfloat16", PUBLISHED_BLOCK, phase, measured[phase]) for phase in PHASES]
            for row in rows:
                timing = torch_times.get(row["phase"])
                if timing is not None:
                    row |= {"torch_s": timing.median, "torch_runs_s": list(timing.seconds)}
                    row["versus_torch"] = timing.median / row["median_s"]
            report.section(title, MEASURED_COLUMNS, [{"kind": "measured", **row} for row in rows])
            dense, select, sparse = rows
            medians = Medians(
                dense["median_s"], select["median_s"], sparse["median_s"], dense["attention_s"], sparse["density"]
            )
            report.section(f"{title}: whole generations", COMPUTED_COLUMNS, computed_rows(case, medians))
    report.note(NOTE)


def computed_rows(case: GenerationCase, medians: Medians) -> list[Row]:
    """Computes the times of generations of T steps with all layers from the measured steps."""
    whole = LAYER_SHAPES[case.model].num_layers / case.layers
    rows: list[Row] = []
    for steps in STEP_COUNTS:
        before, after = (SparseConfig(skip=PUBLISHED_SKIP).phases(steps).count(phase) for phase in ("dense", "sparse"))
        dense = steps * medians.dense
        sparse = before * medians.dense + medians.select + after * medians.sparse
        ideal_step = medians.dense - medians.attention * (1 - medians.density)
        ideal = (before + 1) * medians.dense + after * ideal_step
        rows.append(
            {
                "kind": "computed",
                "model": case.model,
                "length": case.length,
                "steps": steps,
                "speedup": dense / sparse,
                "bound": dense / ideal,
                "of_bound": ideal / sparse,
                "dense_s": dense * whole,
                "sparse_s": sparse * whole,
                "published": published_speedup(case.model, case.length, steps),
            }
        )
    return rows


def _measure(
    case: GenerationCase, path: Path, options: Options, report: Report, title: str
) -> tuple[dict[str, list[StepTime]], dict[str, Timing]]:
    """Times dense, selecting and sparse steps here and in torch, in turns. The first round warms up.

    The step after torch's is not timed, because it waits for memory and caches that torch has used. Steps of one
    generation do not.
    """
    generated = min(GENERATED_TOKENS, case.length // 4)
    model = load_model(path, "bfloat16")
    rho = PUBLISHED_RHO[PUBLISHED_BLOCK]
    steps = DenoisingSteps(model, case.length, generated, rho=rho, block_size=PUBLISHED_BLOCK)
    measured: dict[str, list[StepTime]] = {phase: [] for phase in PHASES}
    peer: TorchSteps | None = None
    torch_seconds: dict[str, list[float]] = {}
    for round_number in range(case.repeat + 1):
        if peer is not None:
            steps.run(PHASES[0])
        for phase in PHASES:
            progress(f"{title}: {phase}, round {round_number} of {case.repeat}")
            result = steps.run(phase)
            if round_number:
                measured[phase].append(result)
        if round_number == 0:
            peer = _torch_steps(case, path, steps, options, report)
        if peer is not None:
            progress(f"{title}: torch, round {round_number} of {case.repeat}")
            for phase, seconds in peer.run().items():
                if round_number:
                    torch_seconds.setdefault(phase, []).append(seconds)
    progress("")
    return measured, {phase: Timing(tuple(seconds)) for phase, seconds in torch_seconds.items()}


def _torch_steps(
    case: GenerationCase, path: Path, steps: DenoisingSteps, options: Options, report: Report
) -> TorchSteps | None:
    """Returns the same steps in torch, checked against ours, or None if torch cannot take part."""
    reason = "not asked for" if "sdpa" not in options.peers else PEERS["sdpa"].why_not()
    if reason is None and case.length > TORCH_STEP_TOKENS:
        reason = f"{case.length} tokens take minutes a step, compared up to {TORCH_STEP_TOKENS}"
    if reason is not None:
        report.skip("torch layers", reason)
        return None
    flex_reason = "not asked for" if "flex" not in options.peers else PEERS["flex"].why_not()
    if flex_reason is None and case.length % PUBLISHED_BLOCK:
        flex_reason = f"{case.length} tokens are not a multiple of {PUBLISHED_BLOCK}"
    if flex_reason is not None:
        report.skip("torch layers with flex", flex_reason)
    try:
        return TorchSteps(case, path, steps, flex=flex_reason is None)
    except CheckError as wrong:
        report.skip("torch layers", str(wrong))
        return None


class TorchSteps:
    """Steps of the same checkpoint in torch, dense with SDPA and sparse with flex on the blocks that were selected."""

    def __init__(self, case: GenerationCase, path: Path, steps: DenoisingSteps, *, flex: bool) -> None:
        from .peers.torch_layers import Attention, TorchLayers

        self._steps = steps
        self._layers = TorchLayers(path, LAYER_SHAPES[case.model], steps.model.config)
        self._attention: dict[str, Attention] = {"dense": self._layers.sdpa}
        self._check()
        if flex:
            patterns = [steps.cache.pattern(layer) for layer in range(case.layers)]
            blocks = [Blocks(pattern.to_mask(), PUBLISHED_BLOCK, case.length) for pattern in patterns]
            self._attention["sparse"] = self._layers.flex(blocks)

    def run(self) -> dict[str, float]:
        """Runs one step per phase and returns its seconds."""
        seconds = {}
        for phase, attention in self._attention.items():
            began = time.perf_counter()
            self._layers.forward(self._steps.ids, self._steps.positions, attention)
            seconds[phase] = time.perf_counter() - began
        return seconds

    def _check(self) -> None:
        """Checks that both compute the same logits within the precision of bfloat16."""
        ours = self._steps.logits()[0].astype(np.float32)
        theirs = self._layers.logits(self._steps.ids, self._steps.positions).astype(np.float32)
        difference = float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(ours**2)))
        if not difference <= 0.05:
            raise CheckError(f"its logits differ from ours by {difference:.2g} of their size, expected at most 0.05")
