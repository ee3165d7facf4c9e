"""The golden cases of tests/data: what the published code computed, and how to ask sparsed for the same."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import sparsed
from paths import DATA
from sparsed import DreamSampler, LLaDASampler, MDLMSampler, SparseConfig

# Those with a dense and a sparse generation, and those with a dense one.
CASES = ("llada_b32", "llada_b128", "dream_b32", "dream_margin", "dream_tail")
DENSE_CASES = ("a2d_qwen3", "a2d_qwen2", "a2d_llama", "open_dcoder")


@dataclass(frozen=True)
class Golden:
    """A case: its checkpoint, its settings, and the arrays of its two generations (tests/data/README.md)."""

    name: str
    meta: dict[str, Any]
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return DATA / self.name

    @property
    def prompt_length(self) -> int:
        return int(self.arrays["prompt"].shape[1])

    @property
    def num_layers(self) -> int:
        return len(self.arrays["pattern"])

    @property
    def has_sparse(self) -> bool:
        return "pattern" in self.arrays

    @property
    def select_step(self) -> int:
        """The step in which the authors' code selects."""
        return int(self.meta["steps"] * self.meta["skip"]) + 1

    def steps(self, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """ids (1, l) and logits (positions, vocabulary) of each step of the "dense" or "sparse" generation."""
        pairs = zip(self.arrays[f"{kind}_x"], self.arrays[f"{kind}_logits"], strict=True)
        return [(ids[None].astype(np.int64), logits) for ids, logits in pairs]

    @property
    def positions(self) -> np.ndarray:
        """The positions whose logits are kept: from the last token of the prompt to the end."""
        return np.arange(self.prompt_length - 1, self.arrays["dense_x"].shape[1])

    def options(self, **sampler: Any) -> dict[str, Any]:
        """What `generate` is given; `sampler` changes settings of the sampler."""
        if self.meta["kind"] in ("llada", "a2d"):
            kind: Any = LLaDASampler if self.meta["kind"] == "llada" else MDLMSampler
            settings = {"block_length": self.meta["block_length"], "remasking": self.meta["remasking"]}
        else:
            kind = DreamSampler
            names = ("alg", "temperature", "top_p", "top_k", "alg_temp", "eps")
            settings = {name: self.meta[name] for name in names}
        return {
            "prompt_ids": self.arrays["prompt"],
            "gen_length": self.meta["gen_length"],
            "steps": self.meta["steps"],
            "sampler": kind(**settings | sampler),
            "stop": (),  # the authors' code goes on behind an end token
            "history": True,
        }

    def sparse(self) -> SparseConfig:
        return SparseConfig(
            skip=self.meta["skip"],
            rho=self.meta["select"],
            block_size=self.meta["block_size"],
            selection="reference",
            generation="sparse",
            # The authors' LLaDA code scales the scores of its selection by the number of heads.
            selection_scale=1 / math.sqrt(self.config["n_heads"]) if self.meta["kind"] == "llada" else None,
            min_length=0,
        )

    def check_patterns(self, cache: sparsed.PatternCache) -> None:
        for layer, expected in enumerate(self.arrays["pattern"]):
            np.testing.assert_array_equal(cache.pattern(layer).to_mask()[0], expected)

    def check_generations(self, model: Any) -> sparsed.GenerationResult:
        """Both generations by `model`: every step, tokens, patterns. Returns the sparse one."""
        dense = sparsed.generate(model, **self.options())
        sparse = sparsed.generate(model, sparse=self.sparse(), **self.options())
        for kind, result in (("dense", dense), ("sparse", sparse)):
            np.testing.assert_array_equal(result.history[:-1, 0], self.arrays[f"{kind}_x"])
            np.testing.assert_array_equal(result.tokens, self.arrays[f"{kind}_tokens"])
        patterns = sparse.groups[0].patterns
        assert patterns is not None
        self.check_patterns(patterns)
        return sparse


@cache
def golden_case(name: str) -> Golden:
    meta, config = (json.loads((DATA / name / f"{part}.json").read_text()) for part in ("meta", "config"))
    with np.load(DATA / name / "goldens.npz") as arrays:
        return Golden(name, meta, config, dict(arrays))
