"""`python -m bench.quality`: what presets, and the parts that they are made of, cost in answers.

Each prompt is a text with eight facts that asks for four of them. The answer has 32 tokens. There are two test beds:
`shipped` is the model of the package, and `digits FOLDER` is a model of the same kind whose numbers are spelled in
digits, such as one that was trained with dense attention only. Every method answers the same prompts; the difference to
dense attention is paired. With `--weights` the models are loaded in several precisions, and the difference is to the
same method with the weights as they are stored. A file of results that exists is extended: prompts that a method has
answered are not asked again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sparsed
from sparsed import DualCache, LLaDASampler, PrefixCache, SparseConfig
from sparsed.apps.environment import machine_info
from sparsed.apps.eval.scoring import accuracy, paired_difference
from sparsed.apps.eval.styles import SmallStyle
from sparsed.apps.eval.tasks import TaskSet
from sparsed.generation.preset import PRESETS
from sparsed.models.files import demo_model_folder, replacing
from sparsed.tables import format_table, markdown_table

from .int8_models import STORED, VARIANTS, Models

GEN_LENGTH, FACTS, ASKED = 32, 8, 4
DENSE = "dense"
_WITH = "; weights "  # between a method and its weights, where these are not the stored ones
_CALIBRATION_TEXTS = 16


@dataclass(frozen=True)
class Prompt:
    """A prompt and the texts that a right answer contains."""

    ids: list[int]
    answers: tuple[str, ...]


def shipped_prompt(tokenizer: sparsed.Tokenizer, length: int, index: int, seed: int) -> Prompt:
    """Makes a prompt of RULER's task niah_multiquery in the sentences of the shipped model."""
    sample = TaskSet(tokenizer, SmallStyle.of(tokenizer), length, seed=seed).sample("niah_multiquery", index)
    return Prompt(sample.prompt_ids(tokenizer), tuple(sample.outputs))


def digits_prompt(tokenizer: sparsed.Tokenizer, length: int, index: int, seed: int) -> Prompt:
    """Makes the same task for a vocabulary of names and single digits; a number has four of them."""
    rng = np.random.default_rng([seed, length, index])
    style = SmallStyle(_names(tokenizer))
    keys = style.names(rng, "words", FACTS)
    values = [" ".join(map(str, rng.integers(0, 10, 4))) for _ in keys]
    facts = [style.needle("numbers", key, value) for key, value in zip(keys, values, strict=True)]
    asked = [int(i) for i in rng.choice(FACTS, ASKED, replace=False)]
    frame = style.niah_frame("numbers", [keys[i] for i in asked], single=False)
    room = length - GEN_LENGTH - len(tokenizer.chat(" ".join([*facts, frame.after])))
    sentences: list[str] = []
    while room > 0:
        sentences += style.hay(rng, "noise", 1)
        room -= len(sentences[-1].split())
    for fact in facts:
        sentences.insert(int(rng.integers(len(sentences))), fact)
    answers = tuple(f"{keys[i]} is {values[i]} ;" for i in asked)
    return Prompt([int(token) for token in tokenizer.chat(" ".join(sentences[:-1]) + frame.after)], answers)


def _names(tokenizer: sparsed.Tokenizer) -> list[str]:
    first, last = tokenizer.token_id("9"), tokenizer.token_id("one")
    if first is None or last is None:
        raise ValueError("bench.quality: the tokenizer has not the digits and the word 'one', expected both")
    return [tokenizer.decode([token]) for token in range(first + 1, last)]


BEDS: dict[str, Callable[[sparsed.Tokenizer, int, int, int], Prompt]] = {
    "shipped": shipped_prompt,
    "digits": digits_prompt,
}


def calibration_text(bed: str, tokenizer: sparsed.Tokenizer, length: int, seed: int) -> str:
    """Returns prompts of a test bed with their answers, which are none of those that are asked."""
    prompts = [BEDS[bed](tokenizer, length, index, seed + 1) for index in range(_CALIBRATION_TEXTS)]
    return " ".join(tokenizer.decode(prompt.ids) + " " + " ".join(prompt.answers) for prompt in prompts)


def models_of(bed: str, folder: Path, tokenizer: sparsed.Tokenizer, args: argparse.Namespace) -> Models:
    """Returns the checkpoint in all precisions."""
    return Models(folder, lambda: calibration_text(bed, tokenizer, max(args.lengths), args.seed), args.dtype)


def methods(model: Any) -> dict[str, dict[str, Any]]:
    """Returns the arguments of `generate` by name. Decoding blocks have 8 tokens, key blocks 32: an answer is short."""
    published = SparseConfig(skip=0.2, rho=0.3, block_size=32, min_length=0, generation="sparse")
    rows_dense = SparseConfig(skip=0.2, rho=0.3, block_size=32, min_length=0, generation="dense")
    early = SparseConfig(skip=0, rho=0.3, block_size=32, min_length=0, generation="dense")
    few = SparseConfig(skip=0, rho=0.1, block_size=32, min_length=0, generation="dense")
    blocks = LLaDASampler(8, threshold=0.95)
    cached = {"sampler": blocks, "kv_cache": DualCache()}
    other_rules: dict[str, Any] = {
        "threshold 0.9": {"threshold": 0.9},
        "factor 1": {"factor": 1.0},
        "entropy bound 0.1": {"entropy_bound": 0.1},
        "threshold 0.95, early commit": {"threshold": 0.95, "early_commit": True},
    }
    return {
        DENSE: {},
        "SparseD as published": {"sparse": published},
        "SparseD, generation rows dense": {"sparse": rows_dense},
        "SparseD, rho .1, skip 0, generation rows dense": {"sparse": few},
        "threshold 0.95": {"sampler": blocks},
        "threshold 0.95, dual cache": cached,
        "threshold 0.95, prefix cache": {"sampler": blocks, "kv_cache": PrefixCache()},
        "threshold 0.95, dual cache, one full pass": {**cached, "kv_cache": DualCache(refresh_every=None)},
        "threshold 0.95, dual cache, SparseD as published": {**cached, "sparse": published},
        "threshold 0.95, dual cache, SparseD, generation rows dense": {**cached, "sparse": early},
        "threshold 0.95, dual cache, SparseD, rho .1, generation rows dense": {**cached, "sparse": few},
        **{f"{name}, dual cache": {**cached, "sampler": LLaDASampler(8, **rule)} for name, rule in other_rules.items()},
        **{f"preset {name}": sparsed.preset(name, model) for name in PRESETS},
    }


def run(bed: str, folder: Path, args: argparse.Namespace) -> None:
    """Answers what is not answered yet, and prints the table of the bed."""
    tokenizer = sparsed.load_tokenizer(folder)
    models = models_of(bed, folder, tokenizer, args)
    results = _Results(args.json)
    known = methods(models[STORED])
    chosen = {
        name if weights == STORED else f"{name}{_WITH}{weights}": (weights, known[name])
        for name in args.methods or known
        for weights in args.weights
    }
    for length in args.lengths:
        for index in range(args.prompts):
            open_methods = [name for name in chosen if not results.has(bed, length, name, index)]
            if not open_methods:
                continue
            prompt = BEDS[bed](tokenizer, length, index, args.seed)
            for name in open_methods:
                weights, settings = chosen[name]
                result = sparsed.generate(
                    models[weights],
                    prompt.ids,
                    gen_length=GEN_LENGTH,
                    seed=index,
                    **{"steps": args.steps, **settings},
                ).require_whole()
                text = tokenizer.text(result.generated[0])
                right = [int(answer in text) for answer in prompt.answers]
                results.add(bed, length, name, right, result.stats)
            results.write(args)
        cells = results.cells[f"{bed} {length}"]
        table = format_table(header_of(cells), rows_of(cells))
        print(f"\n{bed}, {length} tokens\n{table}", flush=True)


class _Results:
    """The answers by bed, length and method, kept in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cells: dict[str, dict[str, dict[str, Any]]] = {}
        if path.exists():
            self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]

    def _cell(self, bed: str, length: int, method: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"right": [], "forwards": 0, "full_passes": 0, "cached_rows": 0, "seconds": 0.0}
        return self.cells.setdefault(f"{bed} {length}", {}).setdefault(method, empty)

    def has(self, bed: str, length: int, method: str, index: int) -> bool:
        return len(self._cell(bed, length, method)["right"]) > index

    def add(self, bed: str, length: int, method: str, right: Sequence[int], stats: sparsed.GenerationStats) -> None:
        cell = self._cell(bed, length, method)
        cell["right"].append(list(right))
        cell["forwards"] += stats.forwards
        cell["full_passes"] += stats.full_passes
        cell["cached_rows"] += stats.cached_rows
        cell["seconds"] = round(cell["seconds"] + stats.seconds, 3)

    def write(self, args: argparse.Namespace) -> None:
        settings = {name: str(value) for name, value in vars(args).items() if name not in ("json", "folder")}
        content = {"settings": settings, "machine": machine_info(), "cells": self.cells}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as new:
            new.write_text(json.dumps(content) + "\n", encoding="utf-8")


def header_of(cells: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Returns the names of the columns of `rows_of`."""
    baseline = STORED if _has_weights(cells) else DENSE
    return ("method", "answers", "right, %", f"minus {baseline}", "forwards", "full passes")


def _has_weights(cells: dict[str, dict[str, Any]]) -> bool:
    return any(_WITH in name for name in cells)


def rows_of(cells: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a row per method: its accuracy in points, a paired difference, and its passes.

    The difference is to dense attention or, in a table with several weights, to the same method with the stored ones.
    """
    rows = []
    for name, cell in cells.items():
        right = np.array(cell["right"], float)
        prompts = len(right)
        difference = "-"
        baseline = name.partition(_WITH)[0] if _has_weights(cells) else DENSE
        base = np.array(cells[baseline]["right"], float) if baseline in cells else None
        if base is not None and name != baseline and prompts <= len(base):
            found = paired_difference((right - base[:prompts]).ravel()).scaled(100)
            difference = f"{found.mean:+.1f} ({found.bounds(1, '+')})"
        mean = accuracy(right.ravel()).scaled(100)
        passes = (f"{cell[key] / prompts:.1f}" for key in ("forwards", "full_passes"))
        rows.append((name, str(right.size), f"{mean.mean:.1f}", difference, *passes))
    return rows


def markdown(content: dict[str, Any]) -> str:
    """Returns the tables of a file of results for the documentation."""
    parts = []
    for name, cells in content["cells"].items():
        bed, length = name.split()
        parts.append(f"{bed}, {int(length):,} tokens:\n\n{markdown_table(header_of(cells), rows_of(cells))}\n")
    machine, settings = content["machine"], content["settings"]
    flags = " --weights ..." if any(map(_has_weights, content["cells"].values())) else ""
    parts.append(
        f"{machine['cpu']}, {settings['dtype']}. `python -m bench.quality shipped{flags}`, and `digits FOLDER`.\n"
    )
    return "\n".join(parts)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("bed", choices=tuple(BEDS))
    parser.add_argument("folder", type=Path, nargs="?", help="the model (default: the shipped one)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--prompts", type=int, default=128, help=f"each asks for {ASKED} facts")
    parser.add_argument("--steps", type=int, default=16, help="of methods without a threshold")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="(all)")
    parser.add_argument("--weights", nargs="+", metavar="NAME", choices=VARIANTS, default=[STORED])
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path, default=Path("bench/results/quality/presets.json"))
    args = parser.parse_args()
    run(args.bed, args.folder or demo_model_folder(), args)


if __name__ == "__main__":
    main()
