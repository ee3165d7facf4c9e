"""`sparsed bench step` times dense, selecting and sparse denoising steps of a random checkpoint by part."""

from __future__ import annotations

from statistics import median

from sparsed import load_model

from .cases import GENERATED_TOKENS, LAYER_SHAPES, PUBLISHED_BLOCK, PUBLISHED_RHO, GenerationCase
from .checkpoint import checkpoint_folder, write_checkpoint
from .harness import Timing
from .options import Options
from .parts import PHASES, DenoisingSteps, StepTime
from .report import TIME_COLUMNS, Column, Report, Row, milliseconds, number, percent, progress

COLUMNS: tuple[Column, ...] = (
    ("phase", "step", str),
    ("density", "density", number(3)),
    *TIME_COLUMNS,
    ("attention_s", "attention", milliseconds),
    ("linear_s", "linear", milliseconds),
    ("rms_norm_s", "norms", milliseconds),
    ("rotary__s", "rotary", milliseconds),
    ("silu_gate__s", "gate", milliseconds),
    ("rest_s", "rest", milliseconds),
    ("other_share", "outside attention and linear", percent),
)
NOTE = (
    "The weights are random, in the published layer shape. Each part is a median, so the parts need not add up to the "
    "median of the step. The vocabulary is small, so embedding and head take almost no time here; `sparsed bench "
    "linear` times the real head."
)


def run(options: Options, report: Report) -> None:
    """Measures each model and length in each dtype (bfloat16 by default)."""
    with checkpoint_folder(options.folder) as folder:
        for case in options.generation_cases():
            for dtype in options.dtypes or ("bfloat16",):
                shape = LAYER_SHAPES[case.model]
                model = load_model(write_checkpoint(folder, shape, case.layers), dtype)
                generated = min(GENERATED_TOKENS, case.length // 4)
                block_size = options.block_sizes[0] if options.block_sizes else PUBLISHED_BLOCK
                steps = DenoisingSteps(
                    model, case.length, generated, rho=PUBLISHED_RHO[block_size], block_size=block_size
                )
                title = f"{case.model}, {case.layers} of {shape.num_layers} layers, {case.length} tokens, {dtype}"
                cycles = measure_cycles(steps, case.repeat, title)
                rows = [step_row(case, dtype, block_size, phase, cycles[phase]) for phase in PHASES]
                report.section(title, COLUMNS, rows)
    report.note(NOTE)


def measure_cycles(steps: DenoisingSteps, repeat: int, title: str) -> dict[str, list[StepTime]]:
    """Runs rounds of dense, selecting and sparse steps, after one round to warm up."""
    measured: dict[str, list[StepTime]] = {phase: [] for phase in PHASES}
    for number_ in range(repeat + 1):
        for phase in PHASES:
            progress(f"{title}: {phase} step, round {number_} of {repeat}")
            result = steps.run(phase)
            if number_:
                measured[phase].append(result)
    progress("")
    return measured


def step_row(case: GenerationCase, dtype: str, block_size: int, phase: str, steps: list[StepTime]) -> Row:
    """Returns the row of one phase of a case."""
    parts = {f"{name}_s": median(step.parts()[name] for step in steps) for name in steps[0].parts()}
    return {
        "model": case.model,
        "layers": case.layers,
        "length": case.length,
        "dtype": dtype,
        "block_size": block_size,
        "phase": phase,
        "density": steps[0].density,
        **Timing(tuple(step.seconds for step in steps)).fields(),
        **parts,
        "other_share": median(step.other / step.seconds for step in steps),
    }
