"""`sparsed bench generate` measures whole generations: dense, with SparseD, with caches, with both, and the presets.

The models have a few layers of LLaDA-8B's or Dream-7B's shape, the whole vocabulary and random weights. The seconds of
a generation are found in one of two ways, and every row says in which.

- "steps": steps of the same kind (see `Kind`) cost the same whenever they come. A short generation of the same
  settings, with fewer steps, is run several times and gives the median seconds of each kind. A generation on a tiny
  model, which has the same schedule, gives the number of steps of each kind. The sum of their products is the seconds.
- "whole": the generation ran to its end (--whole, where it takes a few minutes). The seconds are those of its steps.

Seconds of all layers: the same short generation runs without any layer, which leaves the embedding, the head and the
sampler. A step of the whole model takes these seconds, and those of the layers here times the share of layers.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sparsed import load_model
from sparsed.models import Transformer

from .arrays import CheckError
from .cases import GENERATED_TOKENS, LAYER_SHAPES, WHOLE_GENERATION, GenerationCase
from .checkpoint import checkpoint_folder, write_checkpoint
from .decoding import Generations, Kind, OurGenerations, Steps, decodings, random_prompt, short_steps, small_model
from .harness import PAUSE
from .options import Options
from .peers.base import SkipError
from .peers.fast_dllm import fast_dllm_generations
from .report import Column, Report, Row, number, progress, ratio

# Tokens that each step unmasks.
TOKENS_PER_STEP = (1, 2)
# --whole runs generations that take at most so many seconds.
_WHOLE_SECONDS = 180.0
_PHASES = ("dense", "select", "sparse", "cached")

COLUMNS: tuple[Column, ...] = (
    ("contender", "generation", str),
    ("tokens_per_step", "tokens a step", str),
    *((f"{phase}_steps", phase, str) for phase in _PHASES),
    *((f"{phase}_s", f"{phase} s", number(3)) for phase in _PHASES),
    ("how", "measured", str),
    ("seconds", "s", number(1)),
    ("speedup", "speed-up", ratio),
    ("all_layers_s", "all layers: s", number(0)),
    ("all_layers_speedup", "speed-up", ratio),
)
NOTE = f"""\
Generations of {GENERATED_TOKENS} tokens with random weights in bfloat16. By phase, the table has the number of steps
and the median seconds of one. Generations marked "whole" ran to their end. Of those marked "steps", each kind of step
was measured in a shorter generation, and s adds up the number of steps times their seconds. "all layers" is the time
of the layers here, times the model's layers by those here, plus that of embedding, head and sampler, which was
measured without layers. All speed-ups are over our dense generation with one token a step
and bfloat16 weights. "int8" has int8 weights and activations in the linear layers.
SparseD has skip 0.2, rho 0.3 and blocks of 128. "dual cache" has blocks of 32. "SparseD + dual cache" makes the full
passes of the cache sparse, with skip 0 and dense rows of the generation. "one full pass" computes all tokens once, and
then those of the generation.
* No confidence of random weights reaches a threshold. A fixed number of tokens a step replaces the rule of the preset;
its other settings are as they are."""


@dataclass
class Measured:
    """What short generations took, by kind of step.

    Attributes:
        steps: Their number of steps.
        seconds: The seconds of each step.
        outside: The same without the model's layers.
    """

    steps: int
    seconds: dict[Kind, list[float]] = field(default_factory=dict)
    outside: dict[Kind, list[float]] = field(default_factory=dict)


def run(options: Options, report: Report) -> None:
    """Measures each model and length."""
    with checkpoint_folder(options.folder) as folder:
        for case in options.generation_cases(WHOLE_GENERATION):
            if case.length <= GENERATED_TOKENS:
                raise ValueError(f"generate: length is {case.length}, expected more than {GENERATED_TOKENS}")
            shape = LAYER_SHAPES[case.model]
            title = f"{case.model}: {case.layers} of {shape.num_layers} layers, {case.length} tokens, bfloat16"
            progress(title)
            path = write_checkpoint(folder, shape, case.layers, vocab_size=shape.vocab_size)
            model, small = load_model(path, "bfloat16"), small_model(folder, shape)
            contenders = _ours(case, model, small, report)
            if options.int8:
                contenders += _ours(case, load_model(path, "bfloat16", weights="int8"), small, report, ", int8")
            try:
                contenders += fast_dllm_generations(options.fast_dllm, path, shape, model, case.length)
            except (CheckError, SkipError) as reason:
                report.skip("Fast-dLLM", str(reason), model=case.model, length=case.length)
            measured = _measure(contenders, case.repeat, title)
            rows = _rows(case, contenders, measured, whole=options.whole)
            report.section(title, COLUMNS, rows)
    report.note(NOTE)


def _ours(
    case: GenerationCase, model: Transformer, small: Transformer, report: Report, suffix: str = ""
) -> list[Generations]:
    """Returns the ways to generate that this model and this version have. Their weights are in memory then."""
    found: list[Generations] = []
    for decoding in decodings():
        try:
            named = dataclasses.replace(decoding, name=f"{decoding.name}{suffix}")
            found.append(OurGenerations(named, model, small, case.length))
        except (TypeError, ValueError) as refused:
            report.skip(decoding.name, str(refused))
    model.forward(random_prompt(min(case.length, 2 * GENERATED_TOKENS), model.config.vocab_size))
    return found


def _measure(contenders: Sequence[Generations], repeat: int, title: str) -> list[Measured]:
    """Runs short generations in turns."""
    measured = [Measured(short_steps(contender, all_steps())) for contender in contenders]
    for round_number in range(repeat):
        for contender, result in zip(contenders, measured, strict=True):
            progress(f"{title}: {contender.name}, round {round_number + 1} of {repeat}")
            time.sleep(PAUSE)
            _collect(result.seconds, contender.run(result.steps))
            _collect(result.outside, contender.outside(result.steps))
    progress("")
    return measured


def all_steps() -> list[int]:
    """Returns the steps of the generations, in the order of TOKENS_PER_STEP."""
    return [GENERATED_TOKENS // tokens for tokens in TOKENS_PER_STEP]


def _collect(seconds: dict[Kind, list[float]], steps: Steps) -> None:
    for kind, taken in steps:
        seconds.setdefault(kind, []).append(taken)


def _rows(
    case: GenerationCase, contenders: Sequence[Generations], measured: Sequence[Measured], *, whole: bool
) -> list[Row]:
    layers = LAYER_SHAPES[case.model].num_layers / case.layers
    rows: list[Row] = []
    for contender, result in zip(contenders, measured, strict=True):
        for tokens, steps in zip(TOKENS_PER_STEP, all_steps(), strict=True):
            row = generation_row(contender.schedule(steps), result, layers)
            if whole and row["seconds"] <= _WHOLE_SECONDS:
                progress(f"{contender.name}, {tokens} tokens a step, to its end")
                row |= {"how": "whole", "steps_s": row["seconds"]}
                row["seconds"] = sum(seconds for _, seconds in contender.run(steps))
            shape = {"model": case.model, "layers": case.layers, "length": case.length, "dtype": "bfloat16"}
            rows.append({**shape, "contender": contender.name, "tokens_per_step": tokens, "steps": steps, **row})
    progress("")
    dense = next(row for row in rows if row["contender"] == "dense")
    for row in rows:
        row["speedup"] = dense["seconds"] / row["seconds"]
        row["all_layers_speedup"] = dense["all_layers_s"] / row["all_layers_s"]
    return rows


def generation_row(schedule: Counter[Kind], measured: Measured, layers: float) -> Row:
    """Returns the figures of a generation with this schedule.

    Args:
        schedule: The number of steps of each kind.
        measured: The seconds of steps of each kind.
        layers: The number of layers of the whole model divided by that of the layers that were measured.
    """
    row: Row = {"how": "steps", "seconds": 0.0, "all_layers_s": 0.0, "kinds": []}
    by_phase: dict[str, list[tuple[int, float]]] = {}
    for kind, count in sorted(schedule.items()):
        runs = measured.seconds[_nearest(kind, measured.seconds)]
        without = measured.outside[_nearest(kind._replace(phase=_bare(kind.phase)), measured.outside)]
        step, outside = median(runs), median(without)
        row["seconds"] += count * step
        row["all_layers_s"] += count * (outside + (step - outside) * layers)
        by_phase.setdefault(kind.phase, []).append((count, step))
        figures: dict[str, Any] = {"median_s": step, "runs_s": runs, "outside_layers_s": outside}
        row["kinds"].append({**kind._asdict(), "count": count, **figures})
    for phase, steps in by_phase.items():
        row[f"{phase}_steps"] = sum(count for count, _ in steps)
        row[f"{phase}_s"] = sum(count * seconds for count, seconds in steps) / row[f"{phase}_steps"]
    return row


def _bare(phase: str) -> str:
    """Returns the phase of the same step without layers, which has no attention that could be sparse."""
    return phase if phase == "cached" else "dense"


def _nearest(kind: Kind, known: dict[Kind, list[float]]) -> Kind:
    """Returns the kind of the same phase with the nearest number of rows: Dream's blocks have 32 or 33."""
    return min((one for one in known if one.phase == kind.phase), key=lambda one: abs(one.rows - kind.rows))
