"""Tests the assumptions of the method per head: patterns stay the same over the steps, and hold most attention."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ...content import ComparedByContent
from ...generation.generate import generate
from ...kernels.config import SparseConfig
from ...kernels.pattern_cache import PatternCache
from ...kernels.selection import recall
from ...models import Model
from ...tables import format_table, markdown_table
from .ablation import RHOS
from .earlier import keep_earlier

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadReport(ComparedByContent):
    """Means over the prompts. T steps, N layers, H heads; the pattern is the one that the selection step selects.

    Attributes:
        selected_at: The step that selects the pattern.
        similarity: (T, N, H), Jaccard similarity of the pattern with the one that this step would select.
        neighbours: (T - 1, N, H), Jaccard similarity of the patterns that this step and the next one would select.
        recall: (T, N, H), the share of a query's attention that lies in the pattern, mean over the queries; NaN
            before the selection step.
        rhos: Other shares of kept blocks, R of them.
        recall_of_rho: (R, N, H), the recall in the selection step with each.
    """

    selected_at: int
    similarity: FloatArray
    neighbours: FloatArray
    recall: FloatArray
    rhos: tuple[float, ...]
    recall_of_rho: FloatArray


def head_report(
    model: Model,
    prompts: Sequence[ArrayLike],
    *,
    gen_length: int,
    sparse: SparseConfig,
    rhos: Sequence[float] = RHOS,
    progress: bool = False,
) -> HeadReport:
    """Generates with dense attention, one token a step, then replays each step and selects a pattern in it.

    Args:
        model: What `load_model` returns.
        prompts: Token ids, (p,) or (1, p) each.
        gen_length: Tokens to generate, and steps.
        sparse: The settings to test.
        rhos: The shares of kept blocks for `recall_of_rho`.
        progress: Show a bar on stderr.

    Raises:
        ValueError: There is no prompt, a prompt has another shape, or no step selects.

    Source: arXiv 2509.24014, section 3 (patterns differ between heads and stay over the steps).
    """
    for name, values in (("prompts", prompts), ("rhos", rhos)):
        if isinstance(values, str):
            raise TypeError(f"head_report: {name} is {values!r:.100}, expected a list")
    if not len(prompts):
        raise ValueError("head_report: prompts has none, expected at least one")
    reports = [
        _one(model, prompt, gen_length, sparse, tuple(map(float, rhos)))
        for prompt in tqdm(prompts, unit="prompt", disable=not progress)
    ]
    means = {
        name: np.mean([getattr(report, name) for report in reports], axis=0)
        for name in ("similarity", "neighbours", "recall", "recall_of_rho")
    }
    return dataclasses.replace(reports[0], **means)


def _one(model: Model, prompt: ArrayLike, steps: int, sparse: SparseConfig, rhos: tuple[float, ...]) -> HeadReport:
    result = generate(model, prompt, gen_length=steps, steps=steps, history=True).require_whole()
    if len(result.tokens) != 1:
        raise ValueError(f"head_report: prompts has a batch of {len(result.tokens)} rows, expected (p,) token ids each")
    phases = sparse.phases(steps)
    if "select" not in phases:
        raise ValueError(f"head_report: sparse selects in none of the {steps} steps, expected a smaller skip")
    selected_at = phases.index("select")
    history: NDArray[Any] = np.asarray(result.history)

    def selecting_cache(rho: float = sparse.rho) -> PatternCache:
        config = dataclasses.replace(sparse, skip=0.0, refresh=(), min_length=0, rho=rho)
        cache = PatternCache(config, steps=2, prompt_length=result.prompt_length)
        for step in range(config.phases(2).index("select") + 1):  # the published code never selects in step 0
            cache.begin_step(step)
        return cache

    shape = (model.config.num_layers, model.config.num_heads)
    held = np.full((steps, *shape), np.nan)
    recall_of_rho = np.empty((len(rhos), *shape))
    patterns: dict[int, PatternCache] = {}  # by step: what the step itself selects

    def replay(step: int) -> None:
        patterns[step] = selecting_cache()

        def attend(layer: int, q: Any, k: Any, v: Any, key_mask: Any = None) -> Any:
            out = patterns[step].attend(layer, q, k, v)
            if step < selected_at:
                return out

            def share(cache: PatternCache) -> FloatArray:
                mean: FloatArray = recall(q, k, cache.pattern(layer))[0].mean(axis=-1)
                return mean

            held[step, layer] = share(patterns[selected_at])
            if step == selected_at:
                for i, rho in enumerate(rhos):
                    other = selecting_cache(rho)
                    other.attend(layer, q, k, v)
                    recall_of_rho[i, layer] = share(other)
            return out

        model.forward(history[step], attend=attend, positions=[0])

    def jaccard(a: int, b: int) -> list[NDArray[Any]]:
        return [patterns[a].pattern(layer).jaccard(patterns[b].pattern(layer))[0] for layer in range(shape[0])]

    replay(selected_at)  # first, because the other steps are compared with its pattern
    for step in range(steps):
        if step != selected_at:
            replay(step)
    return HeadReport(
        selected_at,
        np.array([jaccard(selected_at, step) for step in range(steps)]),
        np.array([jaccard(step, step + 1) for step in range(steps - 1)]).reshape(-1, *shape),
        held,
        rhos,
        recall_of_rho,
    )


def heads_table(report: HeadReport) -> str:
    """Returns a row per layer, with means over heads and steps and the lowest head, and a legend."""
    legend = "\n".join(f"{name}: {meaning}" for name, meaning in LEGEND.items())
    return f"{format_table(*_table(report))}\n\n{legend}"


LEGEND = {
    "similarity": "Jaccard similarity of the selected pattern with what a later step would select (1: the same)",
    "least head": "the head of the layer with the lowest mean",
    "neighbours": "Jaccard similarity of what two steps in a row would select",
    "recall": "share of the attention that lies in the selected pattern",
}


def markdown(content: dict[str, Any]) -> str:
    """Returns the table of a heads.json in Markdown, with the settings and the command below it."""
    fields = {field.name: content[field.name] for field in dataclasses.fields(HeadReport)}
    arrays = {
        name: np.array(value, np.float64) for name, value in fields.items() if name not in ("selected_at", "rhos")
    }
    text = markdown_table(*_table(HeadReport(**{**fields, **arrays})))
    legend = "; ".join(f"{name}: {meaning}" for name, meaning in LEGEND.items())
    return f"{text}\n\n{legend}.\n\n{content['prompts']} prompts, {content['settings']}: `{content['command']}`\n"


def _table(report: HeadReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    header = ("layer", "similarity", "least head", "neighbours", "recall", "least head", "recall of the last step")
    lines = []
    for layer in range(report.similarity.shape[1]):
        similarity = report.similarity[report.selected_at + 1 :, layer]
        recall = report.recall[report.selected_at :, layer].mean(axis=0)
        cells = [f"{recall.mean():.3f}", f"{recall.min():.3f}", f"{report.recall[-1, layer].mean():.3f}"]
        heads = similarity.mean(axis=0) if len(similarity) else None  # None: the last step selects
        steady = ["-"] * 2 if heads is None else [f"{heads.mean():.3f}", f"{heads.min():.3f}"]
        neighbours = report.neighbours[:, layer]
        lines.append((str(layer), *steady, f"{neighbours.mean():.3f}" if len(neighbours) else "-", *cells))
    return header, lines


def write_heads(folder: Path | str, report: HeadReport, context: dict[str, Any]) -> list[Path]:
    """Writes heads.json and, if matplotlib is installed, heads.png; returns their paths.

    An earlier report with other values is renamed with a number.

    Args:
        folder: Folder of the files; it is created if it does not exist.
        report: What `head_report` returns.
        context: Command, settings and machine, for the JSON.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        key: _rounded(value.tolist()) if isinstance(value, np.ndarray) else value for key, value in vars(report).items()
    }
    path = folder / "heads.json"
    keep_earlier([path, folder / "heads.png"], settings=context["settings"], **numbers)
    path.write_text(json.dumps({**context, **numbers}) + "\n", encoding="utf-8")
    picture = _picture(folder / "heads.png", report)
    return [path] if picture is None else [path, picture]


def _rounded(value: Any) -> Any:
    """Nested lists for JSON, which has no NaN."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return None if np.isnan(value) else round(value, 4)


def _picture(path: Path, report: HeadReport) -> Path | None:
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[str, str, Any, FloatArray]] = [
        ("similarity with the selected pattern", "step", range(len(report.similarity)), report.similarity),
        ("recall of the selected pattern", "step", range(len(report.recall)), report.recall),
        (f"recall in step {report.selected_at}", "rho", report.rhos, report.recall_of_rho),
    ]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for ax, (title, label, x, values) in zip(axes, panels, strict=True):
        for layer in range(values.shape[1]):
            lines = ax.plot(x, values[:, layer], color=f"C{layer % 10}", linewidth=1)
            lines[0].set_label(f"layer {layer}")
        ax.set(title=title, xlabel=label, ylim=(0, 1.02))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7, title="a line per head")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
