"""What `generate` returns, and what it hands to `on_step`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..content import ComparedByContent
from ..kernels.drawing import draw
from ..kernels.pattern_cache import PatternCache
from .sampling import FloatArray, IntArray
from .stats import GenerationStats

if TYPE_CHECKING:
    from ..models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class StepInfo(ComparedByContent):
    """A step that has just ended, for `on_step`. Two are equal if everything except `seconds` is.

    Attributes:
        phase: "dense", "select", "sparse", "cached" or "mixed", as in StepStats.
        tokens: (B, l) int64, the sequence after the step (a copy).
        unmasked: per batch row, the positions in `tokens` that the step unmasked.
        confidence: per batch row, the sampler's confidence in the tokens there.
        filled: per batch row, the positions in `tokens` that the step filled behind the end of the text.
    """

    step: int
    phase: str
    seconds: float = field(compare=False)
    density: float
    tokens: IntArray
    unmasked: tuple[IntArray, ...]
    confidence: tuple[FloatArray, ...]
    filled: tuple[IntArray, ...]


@dataclass(frozen=True, eq=False)
class RowGroup(ComparedByContent):
    """Batch rows that ran as one unpadded batch.

    Attributes:
        batch_indices: their indices in the batch.
        padding: tokens stripped from the left of each.
        patterns: their PatternCache; None when dense. With guidance its batch is the rows, then their guiding twins.
    """

    batch_indices: IntArray
    padding: int
    patterns: PatternCache | None


@dataclass(frozen=True, eq=False)
class GenerationResult(ComparedByContent):
    """What `generate` returns.

    Two results are equal if everything except the measured seconds is: tokens, history, steps, patterns, confidence.

    Attributes:
        tokens: (B, l) int64, prompt and generation; padding as it was given.
        history: (S + 1, B, l) int32, the sequence before each of the S steps of `stats` and at the end; None unless
            asked for.
        stats: seconds, phases, densities and tokens per step.
        groups: the rows that ran together, with their patterns.
        prompt_length: p, padding included.
        filled_at: (B, gen_length) int32, the step that unmasked each token, or filled it behind the end of the text;
            -1: still masked.
        confidence: (B, gen_length) float32, the sampler's confidence in it; NaN: still masked, or behind the end.
        interrupted: Ctrl-C ended the generation; positions of `tokens` that are still masked hold the mask token.
    """

    tokens: IntArray
    history: NDArray[np.int32] | None
    stats: GenerationStats
    groups: tuple[RowGroup, ...]
    prompt_length: int
    filled_at: NDArray[np.int32]
    confidence: FloatArray
    interrupted: bool = False

    def __repr__(self) -> str:
        batch, length = self.filled_at.shape
        return (
            f"GenerationResult({batch} x {length} tokens after {self.prompt_length}, {len(self.stats)} steps, "
            f"{self.stats.seconds:.2f} s{', interrupted' if self.interrupted else ''})"
        )

    @property
    def generated(self) -> IntArray:
        """The tokens behind the prompt, (B, gen_length)."""
        return self.tokens[:, self.prompt_length :]

    def require_whole(self) -> GenerationResult:
        """Returns the result itself if the generation was not interrupted.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the generation, or came in its last step.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        return self

    def plot(self, row: int = 0) -> Any:
        """Draws when each token was unmasked and how surely, and the seconds of the steps. Needs matplotlib.

        Args:
            row: The batch row.

        Returns:
            A matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: There is no such row.
        """
        return draw("GenerationResult.plot", self, row)

    def page(self, tokenizer: Tokenizer, *, row: int = 0, title: str = "sparsed") -> str:
        """Returns one self-contained HTML page that plays the denoising step by step and shows the selected patterns.

        Args:
            tokenizer: What the prompt was made with.
            row: The batch row.
            title: The heading.

        Raises:
            ValueError: There is no such row.
        """
        page: str = draw("GenerationResult.page", self, tokenizer, row=row, title=title)
        return page

    def _repr_html_(self) -> str:
        html: str = draw("GenerationResult.html", self)
        return html
