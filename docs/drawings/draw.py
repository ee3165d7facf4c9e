"""Draws the pictures of the documentation: `python docs/drawings/draw.py [FOLDER]`.

Schedules and patterns are not drawn by hand: they are asked from the package. The arrays that patterns are selected
from are made so that no rounding decides, and every machine draws the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from svg import INK, LINE, PALE, PAPER, Svg

from sparsed import BlockPattern, PatternCache, SparseConfig
from sparsed.apps.pictures.palette import PHASE_COLOURS, PROMPT_COLOUR

HERE = Path(__file__).parent
BLOCK, PROMPT_BLOCKS, BLOCKS = 16, 18, 24
KEPT = "#3f6fd8"


def schedule() -> Svg:
    """What each of 20 steps does, under three settings."""
    steps = 20
    rows = {
        "SparseConfig()": SparseConfig(),
        "SparseConfig(refresh=(0.6,))": SparseConfig(refresh=(0.6,)),
        'SparseConfig(selection="reference")': SparseConfig(selection="reference"),
    }
    svg = Svg(760, 210, "What each denoising step does")
    for i in range(steps):
        svg.text(248 + 25 * i, 28, str(i), anchor="middle", size=11)
    svg.text(226, 28, "step", anchor="end", size=11)
    for row, (name, config) in enumerate(rows.items()):
        cache = PatternCache(config, steps=steps, prompt_length=0)
        svg.text(12, 58 + 40 * row, name, size=11)
        for i in range(steps):
            cache.begin_step(i)
            svg.rect(237 + 25 * i, 40 + 40 * row, 22, 28, PHASE_COLOURS[cache.phase], radius=3)
    texts = {
        "dense": "every block",
        "select": "dense, and keeps the heaviest blocks of each head",
        "sparse": "the kept blocks only",
    }
    for (phase, text), x in zip(texts.items(), (12, 160, 545), strict=True):
        svg.rect(x, 176, 14, 14, PHASE_COLOURS[phase], radius=3)
        svg.text(x + 20, 188, f"{phase}: {text}", size=12)
    return svg


def selected(rho: float, *, isolate: bool) -> BlockPattern:
    """The pattern of two made heads: one looks around itself, one at a few columns; both care little for what is open.

    What a key is worth to a query is set directly: queries are block numbers, one dimension for each.
    """
    block = np.arange(BLOCKS)
    near = 12.0 - 1.5 * np.abs(block[:, None] - block) - 0.1 * block
    columns = np.zeros((BLOCKS, BLOCKS)) - 0.05 * block
    columns[:, [0, 7, 12, 20]] += 8
    worth = np.stack([near, columns]) - 9 * (block >= PROMPT_BLOCKS)  # (heads, query blocks, key blocks)
    k: NDArray[np.float32] = np.zeros((1, 2, BLOCKS, BLOCK, 32), np.float32)
    k[0, :, :, :, :BLOCKS] = worth.transpose(0, 2, 1)[:, :, None]
    q = np.zeros_like(k)
    q[0, :, block, :, block] = 1
    k, q = (array.reshape(1, 2, BLOCKS * BLOCK, 32) for array in (k, q))
    config = SparseConfig(skip=0, rho=rho, block_size=BLOCK, isolate=isolate, min_length=0, generation="sparse")
    cache = PatternCache(config, steps=1, prompt_length=PROMPT_BLOCKS * BLOCK)
    cache.begin_step(0)
    cache.attend(0, q, k, k, scale=1.0)
    return cache.pattern(0)


def pattern() -> Svg:
    """Two heads and their kept blocks, with the two kinds of block apart and together."""
    apart, together = (selected(0.2, isolate=isolate) for isolate in (True, False))
    svg = Svg(760, 310, "Kept blocks of two heads")
    panels = (
        ("a head that looks around itself", apart, 0),
        ("a head that looks at columns", apart, 1),
        ("the same head with isolate=False", together, 1),
    )
    cell, top = 9, 44
    side, prompt = cell * BLOCKS, cell * PROMPT_BLOCKS
    for i, (title, kept, head) in enumerate(panels):
        left = 32 + 244 * i
        svg.text(left + side / 2, 28, title, anchor="middle", size=12, bold=True)
        svg.rect(left, top, side, side, PALE, LINE)
        for row, column in np.argwhere(kept.to_mask()[0, head]):
            svg.rect(left + cell * column + 0.5, top + cell * row + 0.5, cell - 1, cell - 1, KEPT)
        svg.line(left + prompt, top, left + prompt, top + side, PROMPT_COLOUR)
        svg.text(left + prompt / 2, top + side + 18, "prompt keys", anchor="middle", size=12)
        svg.text(left + (prompt + side) / 2 + 4, top + side + 18, "generation", anchor="middle", size=12)
    legend = "Rows: blocks of queries. Columns: blocks of keys. Blue: kept. Red line: the end of the prompt."
    svg.text(32, 302, legend, size=12)
    return svg


def fused() -> Svg:
    """Where the selection comes from: block sums of the probabilities that the dense pass has in its registers."""
    svg = Svg(760, 300, "Selection inside the dense pass")
    mass = (7, 1, 2, 1, 5, 1, 1, 3)
    kept = sorted(mass)[-(int(len(mass) * 0.3) + 1) :]
    svg.text(20, 52, "queries of", size=12)
    svg.text(20, 68, "one block", size=12)
    for i, height in enumerate(mass):
        x = 100 + 62 * i
        svg.rect(x, 34, 58, 52, PALE, LINE, 4)
        svg.text(x + 29, 65, f"P{i}", anchor="middle")
        svg.arrow((x + 29, 88), (x + 29, 106))
        svg.rect(x + 15, 166 - 8 * height, 28, 8 * height, KEPT if height in kept else LINE)
    svg.text(100, 22, "blocks of keys, one chunk after the other: P = exp(scale · q kᵀ - running maximum)", size=12)
    svg.line(100, 166, 592, 166, INK)
    svg.text(20, 146, "sums of P", size=12)
    svg.text(20, 162, "by block", size=12)
    svg.arrow((596, 60), (622, 60))
    svg.box(626, 34, 116, 52, "out = P V / Σ P")
    svg.arrow((596, 146), (622, 146))
    svg.box(626, 116, 116, 60, "· 1 / Σ P", "probability", "mass by block")
    svg.arrow((684, 178), (684, 204))
    svg.box(626, 208, 116, 56, "the k largest", "k = ⌊n rho⌋ + 1")
    svg.arrow((622, 236), (598, 236))
    for i, height in enumerate(mass):
        svg.rect(100 + 62 * i, 222, 58, 28, KEPT if height in kept else PAPER, LINE, 3)
    svg.text(20, 232, "one row of", size=12)
    svg.text(20, 248, "the pattern", size=12)
    svg.text(
        100, 286, "Scores are computed once, chunk by chunk, for output and selection: no L x L matrix exists.", size=12
    )
    return svg


def layers() -> Svg:
    """The layers of the code; each uses those below it."""
    svg = Svg(760, 584, "The layers of the code")
    python, torch, native = "#e8eefc", "#fdf1e0", "#e3f5f1"
    svg.box(20, 20, 350, 54, "command line and tools", "cli, demo, eval, lm_eval, pictures, bench", fill=python)
    svg.box(390, 20, 350, 54, "sparsed.torch", "accelerate, operators, transformers, engine", fill=torch)
    svg.arrow((195, 76), (195, 92))
    svg.box(20, 94, 350, 54, "generate", "sampling, guidance, kv_cache, stats", fill=python)
    svg.arrow((195, 150), (195, 166))
    svg.box(20, 168, 350, 54, "models, loader, tokenizer", "one transformer; families are tables of names", fill=python)
    svg.arrow((565, 76), (565, 240))
    svg.arrow((195, 224), (195, 240))
    svg.box(
        20,
        242,
        720,
        54,
        "attention · pattern · ops",
        "the only modules that import the compiled one; arrays of any library",
        fill=python,
    )
    svg.arrow((380, 298), (380, 318))
    svg.line(20, 308, 370, 308, LINE, "4 4")
    svg.line(390, 308, 740, 308, LINE, "4 4")
    svg.text(740, 304, "Python", anchor="end", size=11)
    svg.text(740, 320, "C++", anchor="end", size=11)
    svg.box(
        20,
        322,
        720,
        42,
        "csrc/bindings",
        "arrays into views, errors into exceptions: sparsed.kernels._core",
        fill=native,
    )
    svg.arrow((380, 366), (380, 382))
    svg.box(20, 384, 720, 42, "csrc/registry", "the ordered table of backends; SPARSED_ISA", fill=native)
    backends = {
        20: (
            "csrc/cpu",
            "attention, linear, ops: templates over an Arch;",
            "only isa_*.cpp have instruction-set flags",
        ),
        390: (
            "csrc/cuda",
            "attention and top-k for sm_80 and sm_90a over prims;",
            "plan, memory and streams on the host",
        ),
    }
    for x, lines in backends.items():
        svg.arrow((x + 175, 428), (x + 175, 444))
        svg.box(x, 446, 350, 60, *lines, fill=native)
        svg.arrow((x + 175, 508), (x + 175, 524))
    svg.box(
        20, 526, 720, 42, "csrc/core", "patterns, selection, schedule, cache, oracle, what a backend is", fill=native
    )
    return svg


def generation() -> Svg:
    """The path of one call of `generate`."""
    svg = Svg(760, 560, "The path of one generate call")
    svg.box(20, 16, 330, 46, "generate(model, prompt_ids, ...)", "checks; rows of equal padding become a group")
    svg.arrow((185, 64), (185, 102))
    svg.rect(8, 80, 354, 412, "none", LINE, 8)
    svg.text(20, 96, "each step, each group", size=11)
    svg.box(20, 104, 330, 44, "PatternCache.begin_step", "the step's phase: dense, select or sparse")
    svg.arrow((185, 150), (185, 164))
    svg.box(20, 166, 330, 44, "sampler.candidates", "the open positions that the step may fill")
    svg.arrow((185, 212), (185, 226))
    svg.box(
        20,
        228,
        330,
        58,
        "guidance.predict → model.forward",
        "attend=cache.attend; twice the rows with guidance;",
        "logits at the candidates alone",
    )
    svg.arrow((185, 288), (185, 302))
    svg.box(20, 304, 330, 44, "sampler.choose", "which positions are filled, with which tokens")
    svg.arrow((185, 350), (185, 364))
    svg.box(20, 366, 330, 44, "tokens, filled_at, confidence", "written in place; history where asked for")
    svg.arrow((185, 412), (185, 426))
    svg.box(20, 428, 330, 52, "stats.add, on_step", "seconds, phase, density, forwards of the step")
    svg.arrow((185, 494), (185, 506))
    svg.box(20, 508, 330, 38, "GenerationResult", fill="#e8eefc")
    svg.arrow((352, 257), (372, 257), (372, 100), (400, 100))
    svg.rect(392, 60, 356, 432, "none", LINE, 8)
    svg.text(404, 76, "each layer", size=11)
    svg.box(404, 84, 332, 44, "ops: RMSNorm, linear, rotary", "q, k, v of all tokens")
    svg.arrow((570, 130), (570, 144))
    svg.box(404, 146, 332, 44, "cache.attend(layer, q, k, v)", "csrc/core/pattern_cache: what this layer does now")
    for i, (phase, lines) in enumerate(
        {
            "dense": ("attention over", "all keys"),
            "select": ("dense; also", "a new pattern"),
            "sparse": ("attention over", "the blocks of", "the pattern"),
        }.items()
    ):
        x = 404 + 114 * i
        svg.arrow((x + 52, 192), (x + 52, 216))
        svg.rect(x, 218, 104, 6, PHASE_COLOURS[phase], radius=2)
        svg.box(x, 226, 104, 76, phase, *lines)
        svg.arrow((x + 52, 304), (x + 52, 326))
    svg.box(
        404,
        328,
        332,
        58,
        "backend (csrc/registry → csrc/cpu, cuda)",
        "the kernels of the instruction set, on all threads;",
        "K and V packed once per call, online softmax",
    )
    svg.arrow((570, 388), (570, 402))
    svg.box(
        404,
        404,
        332,
        76,
        "ops: linear, RMSNorm, SiLU gate",
        "output projection and MLP with their residuals;",
        "after the last layer: norm and output head",
    )
    return svg


DRAWINGS: tuple[Callable[[], Svg], ...] = (schedule, pattern, fused, layers, generation)


def main(folder: Path) -> None:
    """Writes all drawings."""
    for drawing in DRAWINGS:
        (folder / f"{drawing.__name__}.svg").write_text(str(drawing()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
