"""`sparsed bench peers` times one bidirectional pass over all tokens: ours, torch and llama.cpp, on the same weights.

The model has a few layers of LLaDA-8B's shape, random weights and a small vocabulary. Every contender computes all rows
of every layer and the logits of every position, so that the seconds per layer are those of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsed import BlockPattern, attention, attention_and_select, load_model
from sparsed.models import ConfigReader, ModelConfig, Transformer, find_architecture

from .arrays import Array, CheckError
from .cases import FULL_PASS, GENERATED_TOKENS, LAYER_SHAPES, PUBLISHED_BLOCK, PUBLISHED_RHO, GenerationCase
from .checkpoint import checkpoint_folder, config_values, write_checkpoint
from .harness import Timing, median_ratio, time_long_runs
from .options import Options
from .peers import llama, torch_passes
from .peers.base import INT8_TOLERANCE, TOLERANCE, Pass, SkipError
from .report import TIME_COLUMNS, Column, Report, Row, number, percent, progress, rate, ratio

OURS = "sparsed"
COLUMNS: tuple[Column, ...] = (
    ("contender", "pass", str),
    ("weights", "weights", str),
    ("attention", "attention", str),
    ("density", "density", number(2)),
    *TIME_COLUMNS,
    ("flops_per_s", "TFLOP/s", rate),
    ("weights_nbytes", "MB", lambda value: f"{value / 1e6:.0f}"),
    ("error", "error", percent),
    ("versus_torch", "over torch bf16", ratio),
    ("versus_llama", "over llama.cpp's best", ratio),
)
NOTE = f"""\
One pass over all tokens in both directions, with the logits of every position. The weights are random. The vocabulary
is small, so that the head takes 1 % of the time. "error" is the distance of the logits from those in float32, relative
to their size, over the first tokens. A sparse pass has none, because it computes something else. Its blocks were
selected before, as in most steps of a generation (rho 0.3, blocks of {PUBLISHED_BLOCK}). TFLOP/s counts what the pass
computes at its density. "over" is the median over the rounds of the ratio of both times."""
# The first tokens, on which every pass is checked.
_CHECKED_TOKENS = 512


def run(options: Options, report: Report) -> None:
    """Measures each model and length."""
    with checkpoint_folder(options.folder) as folder:
        for case in options.generation_cases(FULL_PASS):
            shape = LAYER_SHAPES[case.model]
            title = f"{case.model}: {case.layers} of {shape.num_layers} layers, {case.length} tokens"
            progress(title)
            rows = _rows(case, write_checkpoint(folder, shape, case.layers), options, report)
            report.section(title, COLUMNS, rows)
    report.note(NOTE)


def _rows(case: GenerationCase, checkpoint: Path, options: Options, report: Report) -> list[Row]:
    values = config_values(LAYER_SHAPES[case.model], case.layers)
    architecture = find_architecture(values, "config.json")
    config = architecture.read_config(ConfigReader(values, "config.json"))
    ids = np.random.default_rng(0).integers(2, config.vocab_size - 1, (1, case.length))
    checked = ids[:, :_CHECKED_TOKENS]
    expected = load_model(checkpoint, "float32").forward(checked)[0]
    passes: list[Pass] = []
    makers: dict[str, Callable[[], list[Pass]]] = {
        f"{OURS} bfloat16": lambda: _our_passes(load_model(checkpoint, "bfloat16"), ids),
        f"{OURS} int8": lambda: _our_passes(
            load_model(checkpoint, "bfloat16", weights="int8"), ids, "int8", INT8_TOLERANCE
        ),
        "torch bfloat16": lambda: torch_passes.bfloat16_passes(checkpoint, LAYER_SHAPES[case.model], config),
        "torch int8": lambda: torch_passes.int8_passes(checkpoint, LAYER_SHAPES[case.model], config),
        llama.NAME: lambda: llama.llama_passes(options.llama_cpp, checkpoint, config, architecture.names, ids),
    }
    for name, make in makers.items():
        try:
            passes += make()
        except SkipError as reason:
            report.skip(name, str(reason))
    errors = [logits_error(one, checked, expected) for one in passes]
    timings = time_long_runs([partial(one.run, ids) for one in passes], case.repeat)
    over_torch = _best(passes, timings, torch_passes.NAME, "bfloat16")
    over_llama = _best(passes, timings, llama.NAME)
    rows: list[Row] = []
    for one, timing, error in zip(passes, timings, errors, strict=True):
        report.machine["versions"].update(one.versions)
        rows.append(
            {
                "model": case.model,
                "layers": case.layers,
                "length": case.length,
                "contender": one.contender,
                "weights": one.weights,
                "attention": one.attention,
                "density": one.density,
                **timing.fields(),
                "flops_per_s": pass_flops(config, case.length, one.density) / timing.median,
                "weights_nbytes": one.weights_nbytes,
                "error": error,
                "versus_torch": None if over_torch is None else median_ratio(over_torch, timing),
                "versus_llama": None if over_llama is None else median_ratio(over_llama, timing),
            }
        )
    return rows


def _best(
    passes: Sequence[Pass], timings: Sequence[Timing], contender: str, weights: str | None = None
) -> Timing | None:
    """Returns the timing of the contender's fastest pass, with these weights or any, or None if it has none."""
    found = [
        timing
        for one, timing in zip(passes, timings, strict=True)
        if one.contender == contender and weights in (None, one.weights)
    ]
    return min(found, key=lambda timing: timing.median, default=None)


def _our_passes(
    model: Transformer, ids: NDArray[np.int64], weights: str = "bfloat16", tolerance: float = TOLERANCE
) -> list[Pass]:
    """Returns a dense pass, and a sparse one whose blocks are selected here for these ids."""
    prompt_length = ids.shape[1] - min(GENERATED_TOKENS, ids.shape[1] // 4)
    patterns: list[BlockPattern] = []

    def select(layer: int, q: Array, k: Array, v: Array, key_mask: object = None) -> Array:
        out, pattern = attention_and_select(
            q,
            k,
            v,
            prompt_length=prompt_length,
            block_size=PUBLISHED_BLOCK,
            rho=PUBLISHED_RHO[PUBLISHED_BLOCK],
            generation="sparse",
        )
        patterns.append(pattern)
        return out

    def attend(layer: int, q: Array, k: Array, v: Array, key_mask: object = None) -> Array:
        return attention(q, k, v, patterns[layer])

    model.forward(ids, attend=select, positions=[0])
    return [
        Pass(OURS, weights, "dense", lambda tokens: model.forward(tokens)[0], model.nbytes, tolerance=tolerance),
        Pass(
            OURS,
            weights,
            "sparse",
            lambda tokens: model.forward(tokens, attend=attend)[0],
            model.nbytes,
            density=sum(pattern.density for pattern in patterns) / len(patterns),
            tolerance=None,
        ),
    ]


def logits_error(one: Pass, ids: NDArray[np.int64], expected: Array) -> float | None:
    """Returns the distance of the logits from those in float32, relative to their size.

    Raises:
        CheckError: It is larger than the pass's tolerance.
    """
    if one.tolerance is None:
        return None
    error = float(np.sqrt(np.mean((one.run(ids) - expected) ** 2) / np.mean(expected**2)))
    if not error <= one.tolerance:
        raise CheckError(
            f"peers: the logits of {one.contender} with {one.weights} weights differ by {error:.2g} of their size, "
            f"expected at most {one.tolerance}"
        )
    return error


def pass_flops(config: ModelConfig, length: int, density: float) -> float:
    """Returns the FLOPs of a pass: of the linear layers and the head, and of attention at this density."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    linear = 2 * length * (config.num_layers * layer + config.hidden_size * config.vocab_size)
    return linear + config.num_layers * 4 * queries * length**2 * density
