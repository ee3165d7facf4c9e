"""The cases of the benchmarks as data: shapes, dtypes, densities, block sizes, and published figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

DENSITIES = (0.05, 0.1, 0.2, 0.31, 0.5, 0.7, 1.0)
# The density and the block size of the published settings (rho 0.3).
PUBLISHED_DENSITY = 0.31
PUBLISHED_BLOCK = 128


@dataclass(frozen=True)
class AttentionCase:
    """One set of arrays: q (1, heads, length, head_dim), k and v (1, kv_heads, length, head_dim)."""

    dtype: str
    head_dim: int
    length: int
    heads: int
    kv_heads: int

    @property
    def dense_pairs(self) -> int:
        """The number of (query, key) pairs of one head."""
        return self.length**2

    @property
    def flops_per_pair(self) -> int:
        """The FLOPs of all heads: a multiply and an add per dimension, in q k^T and again in p v."""
        return 4 * self.heads * self.head_dim

    def fields(self) -> dict[str, Any]:
        """Returns the fields for a row of results."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.dtype} hd {self.head_dim} {self.length} x {self.heads}/{self.kv_heads} heads"


@dataclass(frozen=True)
class AttentionAxes:
    """The cases of a benchmark, which are all combinations of its axes.

    Attributes:
        heads: The numbers of query heads and of key/value heads.
        sweep_lengths: The lengths at which all block sizes and densities are measured. Other lengths are measured only
            with the published block size and density.
    """

    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    head_dims: tuple[int, ...] = (128, 64)
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    heads: tuple[int, int] = (4, 4)
    block_sizes: tuple[int, ...] = (128, 64, 32)
    densities: tuple[float, ...] = DENSITIES
    sweep_lengths: tuple[int, ...] = (8192, 16384)

    def cases(self) -> Iterator[AttentionCase]:
        """Yields the cases in the order in which they run."""
        for dtype in self.dtypes:
            for head_dim in self.head_dims:
                for length in self.lengths:
                    yield AttentionCase(dtype, head_dim, length, *self.heads)

    def sparsities(self, length: int) -> list[tuple[int, float]]:
        """Returns (block size, density) pairs for a length. Of densities that keep equally many blocks, one remains."""
        if length in self.sweep_lengths:
            found: dict[tuple[int, int], float] = {}
            for block in self.block_sizes:
                for density in self.densities:
                    found.setdefault((block, kept_blocks(length, block, density)), density)
            return [(block, density) for (block, _), density in found.items()]
        block = PUBLISHED_BLOCK if PUBLISHED_BLOCK in self.block_sizes else self.block_sizes[0]
        return [(block, PUBLISHED_DENSITY if PUBLISHED_DENSITY in self.densities else self.densities[0])]


ATTENTION = AttentionAxes()
ATTENTION_QUICK = AttentionAxes(lengths=(1024,), densities=(0.31, 1.0), block_sizes=(128, 32), sweep_lengths=(1024,))
SELECTION = AttentionAxes(lengths=(4096, 8192, 16384, 32768), block_sizes=(128, 64, 32))
SELECTION_QUICK = AttentionAxes(lengths=(1024,), block_sizes=(128, 32))

# Dream's numbers of query heads and of key/value heads, and a small version.
GQA_HEADS = (28, 4)
GQA_QUICK_HEADS = (7, 1)

GENERATED_TOKENS = 128
LINEAR_MODELS = ("llada-8b", "demo")
LINEAR_TOKENS = (32, 512, 2048)
LINEAR_QUICK_MODELS = ("demo",)
LINEAR_QUICK_TOKENS = (256,)

# The published values of rho by block size: 0.5 for short contexts (block size 32) and 0.3 for long ones.
PUBLISHED_RHO = {16: 0.5, 32: 0.5, 64: 0.3, 128: 0.3, 256: 0.3}


@dataclass(frozen=True)
class LinearCase:
    """The product y (tokens, outputs) = x (tokens, inputs) w^T."""

    name: str
    tokens: int
    outputs: int
    inputs: int

    @property
    def flops(self) -> int:
        """The FLOPs: a multiply and an add per weight and token."""
        return 2 * self.tokens * self.outputs * self.inputs


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a model's layers, from which a random checkpoint with a few layers is made."""

    name: str
    family: Literal["llada", "dream"]
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def linear_cases(self, tokens: tuple[int, ...]) -> Iterator[LinearCase]:
        """Yields the linear layers for each number of tokens, and the head for the tokens of one generation."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sizes = {
            "qkv": (queries + 2 * keys, self.hidden_size),
            "out": (self.hidden_size, queries),
            "gate": (self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }
        for name, (outputs, inputs) in sizes.items():
            for count in tokens:
                yield LinearCase(f"{self.name} {name}", count, outputs, inputs)
        yield LinearCase(f"{self.name} head", min(min(tokens), GENERATED_TOKENS), self.vocab_size, self.hidden_size)


LAYER_SHAPES = {
    shape.name: shape
    for shape in (
        LayerShape("llada-8b", "llada", 32, 4096, 32, 32, 12288, 126464, 500000.0, 1e-5),
        LayerShape("dream-7b", "dream", 28, 3584, 28, 4, 18944, 152064, 1000000.0, 1e-6),
        LayerShape("demo", "llada", 4, 256, 4, 4, 768, 1579, 500000.0, 1e-5),
    )
}


@dataclass(frozen=True)
class GenerationCase:
    """The steps of a random checkpoint with `layers` layers of a model's shape, for a sequence of `length` tokens."""

    model: str
    layers: int
    length: int
    repeat: int


GENERATION = tuple(
    GenerationCase(model, layers, length, repeat)
    for model in ("llada-8b", "dream-7b")
    for layers, length, repeat in ((2, 4096, 5), (1, 8192, 5), (1, 16384, 3), (1, 32768, 2), (1, 65536, 1))
)
# A pass of all tokens at 16k takes half a minute, and every way to generate needs several.
WHOLE_GENERATION = tuple(
    GenerationCase(model, 2, length, repeat)
    for model in ("llada-8b", "dream-7b")
    for length, repeat in ((4096, 3), (16384, 1))
)
FULL_PASS = tuple(GenerationCase("llada-8b", 2, length, repeat) for length, repeat in ((512, 7), (2048, 5), (4096, 3)))
# Torch would need minutes for a step that is longer.
TORCH_STEP_TOKENS = 16384
GENERATION_QUICK = (GenerationCase("demo", 2, 512, 2),)
TORCH_LENGTHS = (2048, 4096, 8192, 16384)
# The vocabulary size of the random checkpoints of steps, in which the head would take most of the time.
RANDOM_VOCABULARY = 1024
STEP_COUNTS = (128, 256, 1024)
PUBLISHED_SKIP = 0.2

# Published times of dense attention divided by those of SparseD, by length (arXiv 2509.24014, one A800, bf16, T = 128).
PUBLISHED_SPEEDUP = {
    "llada-8b": {4096: 0.93, 8192: 0.99, 16384: 1.07, 32768: 1.16, 65536: 1.25},
    "dream-7b": {4096: 0.92, 8192: 0.96, 16384: 1.06, 32768: 1.14, 65536: 1.24},
}
# The same at T = 1024, which is published only for 64k.
PUBLISHED_SPEEDUP_1024 = {"llada-8b": {65536: 1.48}, "dream-7b": {65536: 1.50}}

SCALING_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
SCALING_QUICK_LENGTHS = (1024, 2048)
MEMORY_LENGTHS = (16384, 65536)
MEMORY_QUICK_LENGTHS = (2048,)
SHARED_CORES_LENGTHS = (530, 4096)
SHARED_CORES_QUICK_LENGTHS = (64,)


def kept_blocks(length: int, block_size: int, density: float) -> int:
    """Returns how many blocks of a row make up a density, at least one."""
    count = -(-length // block_size)
    return min(count, max(1, round(density * count)))


def published_speedup(model: str, length: int, steps: int) -> float | None:
    """Returns the authors' ratio of dense to SparseD time, or None if they did not publish one."""
    table = {128: PUBLISHED_SPEEDUP, 1024: PUBLISHED_SPEEDUP_1024}.get(steps, {})
    return table.get(model, {}).get(length)
