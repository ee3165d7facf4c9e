"""The ways to generate that `sparsed bench generate` measures, and the kinds of their steps."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import sparsed
from sparsed import DualCache, SparseConfig, generate, load_model
from sparsed.generation.preset import PRESETS
from sparsed.generation.sampling import SAMPLERS
from sparsed.models import Transformer

from .arrays import CheckError
from .cases import GENERATED_TOKENS, PUBLISHED_BLOCK, PUBLISHED_RHO, PUBLISHED_SKIP, LayerShape
from .checkpoint import write_checkpoint

# The block of Fast-dLLM's published runs.
CACHE_BLOCK = 32


class Kind(NamedTuple):
    """What a step does. Steps of the same kind cost the same.

    Attributes:
        phase: "dense", "select" or "sparse" in a pass over all tokens, "cached" in one over some of them.
        rows: The number of tokens that a cached step computes; 0 in a pass over all.
    """

    phase: str
    rows: int = 0


# The kind and the seconds of each step that called the model, in order.
Steps = list[tuple[Kind, float]]


class Generations(ABC):
    """Generations of one way to generate, from the same prompt.

    Attributes:
        name: The name of the way in the table.
        num_blocks: The number of blocks that it unmasks one after the other, of which the steps must be a multiple.
    """

    name: str
    num_blocks: int

    @abstractmethod
    def run(self, steps: int) -> Steps:
        """Generates in `steps` steps and times them."""

    @abstractmethod
    def outside(self, steps: int) -> Steps:
        """Does the same without the model's layers: what is left is the embedding, the head and the sampler."""

    @abstractmethod
    def schedule(self, steps: int) -> Counter[Kind]:
        """Returns how many steps of each kind a generation has that takes `steps` steps."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A way to generate.

    Attributes:
        name: Its name in the table.
        options: Returns the arguments of `generate`, given the model. A sampler among them is replaced by one that
            unmasks the same number of tokens in each step.
        block_length: The sampler's, if the options have no sampler.
    """

    name: str
    options: Callable[[Transformer], dict[str, Any]]
    block_length: int | None = None


def decodings() -> list[Decoding]:
    """Returns the ways to generate: the parts one by one, then the presets."""
    sparsity: dict[str, Any] = {"rho": PUBLISHED_RHO[PUBLISHED_BLOCK], "block_size": PUBLISHED_BLOCK}
    published = SparseConfig(skip=PUBLISHED_SKIP, generation="sparse", **sparsity)
    dense_rows = SparseConfig(skip=0, generation="dense", **sparsity)

    def preset(name: str) -> Callable[[Transformer], dict[str, Any]]:
        return lambda model: dict(sparsed.preset(name, model))

    found = [
        Decoding("dense", lambda model: {}),
        Decoding("SparseD", lambda model: {"sparse": published}),
        Decoding("dual cache", lambda model: {"kv_cache": DualCache()}, CACHE_BLOCK),
        Decoding("SparseD + dual cache", lambda model: {"sparse": dense_rows, "kv_cache": DualCache()}, CACHE_BLOCK),
        Decoding("one full pass", lambda model: {"kv_cache": DualCache()}),
    ]
    return found + [Decoding(f"preset {name}*", preset(name)) for name in PRESETS]


class OurGenerations(Generations):
    """Generations by `sparsed.generate`.

    Args:
        decoding: The way to generate.
        model: The model with the layers that are measured.
        small: A tiny model of the same family, whose generations have the same schedule.
        length: The number of tokens of prompt and generation.

    Raises:
        TypeError, ValueError: The model or this version of sparsed cannot generate in this way.
    """

    def __init__(self, decoding: Decoding, model: Transformer, small: Transformer, length: int) -> None:
        self.name = decoding.name
        options = decoding.options(model)
        sampler = options.pop("sampler", None)
        block_length = decoding.block_length if sampler is None else sampler.block_length
        self.num_blocks = GENERATED_TOKENS // (block_length or GENERATED_TOKENS)
        self._sampler = SAMPLERS[model.config.family](block_length=block_length)
        if isinstance(options.get("sparse"), SparseConfig):
            # The small model's sequences are short.
            options["sparse"] = dataclasses.replace(options["sparse"], min_length=0)
        self._options = options
        self._model, self._small = model, small
        self._length = length
        self.schedule(self.num_blocks)

    def run(self, steps: int) -> Steps:
        return self._run(self._model, self._length, steps, self._options)

    def outside(self, steps: int) -> Steps:
        bare = copy.copy(self._model)
        bare._layers = ()
        return self._run(bare, self._length, steps, {**self._options, "sparse": None})

    def schedule(self, steps: int) -> Counter[Kind]:
        length = 2 * PUBLISHED_BLOCK + GENERATED_TOKENS
        return Counter(kind for kind, _ in self._run(self._small, length, steps, self._options))

    def _run(self, model: Transformer, length: int, steps: int, options: dict[str, Any]) -> Steps:
        prompt = random_prompt(length, model.config.vocab_size)
        result = generate(model, prompt, gen_length=GENERATED_TOKENS, steps=steps, sampler=self._sampler, **options)
        if (result.generated == model.config.mask_token_id).any():
            raise CheckError(f"{self.name}: a token of the generation is still masked, expected none")
        timed = []
        for step in result.stats:
            if step.forwards:
                rows = round(step.density * length) if step.phase == "cached" else 0
                timed.append((Kind(step.phase, rows), step.seconds))
        return timed


def random_prompt(length: int, vocab_size: int, generated: int = GENERATED_TOKENS) -> NDArray[np.int64]:
    """Returns the token ids (1, p) of a prompt that leaves room for the generation in `length` tokens."""
    return np.random.default_rng(0).integers(2, vocab_size - 1, (1, length - generated))


def small_model(folder: Path, shape: LayerShape) -> Transformer:
    """Returns a tiny model of the shape's family."""
    tiny = dataclasses.replace(
        shape, name=f"{shape.family}-tiny", hidden_size=32, num_heads=1, num_kv_heads=1, intermediate_size=32
    )
    return load_model(write_checkpoint(folder, tiny, 1))


def short_steps(generations: Generations, all_steps: Sequence[int]) -> int:
    """Returns the steps of a short generation that has every phase of those that take `all_steps`.

    Of each kind it has several steps from the beginning of a block to its end, since the sampler's work and the rows of
    the head become fewer there. Cached steps are cheap, so it has more of them.
    """
    wanted = {kind.phase for steps in all_steps for kind in generations.schedule(steps)}
    least = 8 if "cached" in wanted else -(-3 // generations.num_blocks)
    longest = min(all_steps)
    for steps in range(least * generations.num_blocks, longest, generations.num_blocks):
        if {kind.phase for kind in generations.schedule(steps)} >= wanted:
            return steps
    return longest
