"""Applies the options of the command line to the default cases."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cases
from .cases import AttentionAxes, GenerationCase, LinearCase

_DEFAULT_REPEAT = 7
_QUICK_REPEAT = 3
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Options:
    """The options that benchmarks share. None or an empty tuple means that an option was not given."""

    quick: bool = False
    repeats: int | None = None
    dtypes: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    block_sizes: tuple[int, ...] = ()
    densities: tuple[float, ...] = ()
    heads: int | None = None
    kv_heads: int | None = None
    models: tuple[str, ...] = ()
    layers: int | None = None
    peers: tuple[str, ...] = ("sdpa", "flex", "linear", "int8", "numpy")
    json: Path | None = None
    folder: Path | None = None
    baseline: Path | None = None
    whole: bool = False
    int8: bool = False
    fast_dllm: Path | None = None
    llama_cpp: Path | None = None

    @classmethod
    def parse(cls, args: argparse.Namespace) -> Options:
        """Makes options of those arguments that have the name of a field."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = getattr(args, field.name, None)
            if value is not None:
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @property
    def repeat(self) -> int:
        """The number of rounds of benchmarks whose cases do not set one."""
        return self.repeats or (_QUICK_REPEAT if self.quick else _DEFAULT_REPEAT)

    @property
    def sample_seconds(self) -> float:
        """The shortest duration of a sample. Shorter runs are repeated."""
        return 0.0 if self.quick else _SAMPLE_SECONDS

    def attention_axes(self) -> AttentionAxes:
        return self._over(cases.ATTENTION_QUICK if self.quick else cases.ATTENTION)

    def selection_axes(self) -> AttentionAxes:
        return self._over(cases.SELECTION_QUICK if self.quick else cases.SELECTION)

    def linear_cases(self) -> tuple[LinearCase, ...]:
        models = self.models or (cases.LINEAR_QUICK_MODELS if self.quick else cases.LINEAR_MODELS)
        tokens = cases.LINEAR_QUICK_TOKENS if self.quick else cases.LINEAR_TOKENS
        return tuple(case for model in models for case in cases.LAYER_SHAPES[model].linear_cases(tokens))

    def linear_dtypes(self) -> tuple[str, ...]:
        return self.dtypes or cases.ATTENTION.dtypes

    def generation_cases(self, usual: tuple[GenerationCase, ...] = cases.GENERATION) -> tuple[GenerationCase, ...]:
        """Returns one case per model and length, by default those of `usual`.

        A length without a case gets the settings of the nearest one.
        """
        found = cases.GENERATION_QUICK if self.quick and not self.models else usual
        models = self.models or tuple(dict.fromkeys(case.model for case in found))
        result = []
        for model in models:
            defaults = [case for case in found if case.model == model] or list(cases.GENERATION_QUICK)
            lengths = self.lengths or tuple(case.length for case in defaults)
            for length in lengths:
                nearest = min(defaults, key=lambda case: abs(case.length - length))
                layers = nearest.layers if self.layers is None else self.layers
                result.append(GenerationCase(model, layers, length, self.repeats or nearest.repeat))
        return tuple(result)

    def _over(self, axes: AttentionAxes) -> AttentionAxes:
        """Replaces axes by the given ones. All block sizes and densities are measured at given lengths."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("dtypes", "head_dims", "lengths", "block_sizes", "densities")
            if getattr(self, name)
        }
        heads = axes.heads[0] if self.heads is None else self.heads
        kv_heads = (axes.heads[1] if self.heads is None else heads) if self.kv_heads is None else self.kv_heads
        if self.lengths:
            given["sweep_lengths"] = self.lengths
        return dataclasses.replace(axes, heads=(heads, kv_heads), **given)
