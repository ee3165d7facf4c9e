"""The cost of a generation, per step and in total."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..content import ComparedByContent
from ..tables import format_table

PHASES = ("dense", "select", "sparse", "cached")
LEGEND = (
    "forwards: model calls; full: those that computed all tokens; tokens: those that were unmasked; "
    "density: share of the attention that was computed, mean over the steps that called the model (1: dense)"
)


@dataclass(frozen=True)
class StepStats:
    """One denoising step over all batch rows. Two are equal if everything except `seconds` is.

    Attributes:
        phase: "dense", "select" or "sparse", "cached" where only some tokens were computed; "mixed" where rows of
            different length are in different phases.
        density: Share of the attention that was computed: of its key blocks or, "cached", of its rows; mean over
            layers and the rows that called the model, 1 when dense, 0 where none did.
        unmasked: Tokens that the step unmasked.
        forwards: Model calls; 0 if there was nothing to unmask, nor to select for later steps.
        full_passes: Those of them that computed every token.
        cached_rows: Tokens that the others computed.
    """

    step: int
    phase: str
    seconds: float = field(compare=False)
    density: float
    unmasked: int
    forwards: int
    full_passes: int
    cached_rows: int


@dataclass(frozen=True, eq=False)
class GroupStep(ComparedByContent):
    """One step of one group of rows; positions that it unmasked, or filled behind the end, are per row of the group."""

    phase: str
    seconds: float = field(compare=False)
    density: float
    forwards: int
    full_passes: int
    cached_rows: int
    unmasked: list[NDArray[np.int64]]
    confidence: list[NDArray[np.float32]]
    filled: list[NDArray[np.int64]]


@dataclass
class GenerationStats(Sequence[StepStats]):
    """The steps of a generation in order, and their sums. Two are equal if everything except the seconds is.

    Attributes:
        phase_seconds: Seconds by phase ("dense", "select", "sparse", "cached").
        notes: Settings that had no effect, such as sparse attention for a sequence below `min_length`.
        dtype: The dtype of the model's activations and attention; empty if the model does not say it.
        weights: The dtype of its linear layers' weights; empty if the model does not say it.
    """

    steps: list[StepStats] = field(default_factory=list)
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0), compare=False)
    notes: list[str] = field(default_factory=list)
    dtype: str = ""
    weights: str = ""

    @overload
    def __getitem__(self, index: int) -> StepStats: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepStats]: ...
    def __getitem__(self, index: int | slice) -> StepStats | list[StepStats]:
        return self.steps[index]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[StepStats]:
        return iter(self.steps)

    def add(self, step: int, groups: Sequence[GroupStep]) -> StepStats:
        """Merges the groups of rows of a step, and appends it."""
        for group in groups:
            self.phase_seconds[group.phase] += group.seconds
        phases = {group.phase for group in groups}
        merged = StepStats(
            step=step,
            phase=phases.pop() if len(phases) == 1 else "mixed",
            seconds=sum(group.seconds for group in groups),
            density=_mean_density([group for group in groups if group.forwards]),
            unmasked=sum(len(positions) for group in groups for positions in group.unmasked),
            forwards=sum(group.forwards for group in groups),
            full_passes=sum(group.full_passes for group in groups),
            cached_rows=sum(group.cached_rows for group in groups),
        )
        self.steps.append(merged)
        return merged

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def forwards(self) -> int:
        """Model calls."""
        return sum(step.forwards for step in self.steps)

    @property
    def full_passes(self) -> int:
        """Model calls that computed every token."""
        return sum(step.full_passes for step in self.steps)

    @property
    def cached_rows(self) -> int:
        """Tokens that the other model calls computed: 32 in each step that computes a block of 32."""
        return sum(step.cached_rows for step in self.steps)

    @property
    def unmasked(self) -> int:
        """Tokens that were unmasked."""
        return sum(step.unmasked for step in self.steps)

    @property
    def tokens_per_second(self) -> float:
        """Unmasked tokens per second."""
        return self.unmasked / self.seconds if self.seconds else 0.0

    @property
    def density(self) -> float:
        """Mean density of the steps that called the model."""
        dense = [step.density for step in self.steps if step.forwards]
        return sum(dense) / len(dense) if dense else 0.0

    def table(self) -> str:
        """Returns the sums as text, a line per phase and one for all, with a legend and the notes."""
        rows: list[tuple[str, ...]] = []
        for phase in (*PHASES, "mixed"):
            steps = [step for step in self.steps if step.phase == phase]
            if steps:
                rows.append((phase, *_sums(steps)))
        rows.append(("all", *_sums(self.steps)))
        table = format_table(("phase", "steps", "forwards", "full", "seconds", "density", "tokens"), rows)
        notes = "".join(f"note: {note}\n" for note in self.notes)
        kinds = f"; {self.dtype}, {self.weights} weights" if self.dtype and self.weights else ""
        return f"{table}\n{LEGEND}\n{notes}{self.tokens_per_second:.1f} tokens/s{kinds}"


def _mean_density(groups: Sequence[GroupStep]) -> float:
    """The mean over the rows of groups that called the model."""
    if not groups:
        return 0.0
    return float(np.average([group.density for group in groups], weights=[len(group.unmasked) for group in groups]))


def _sums(steps: Sequence[StepStats]) -> tuple[str, ...]:
    stats = GenerationStats(list(steps))
    return (
        str(len(stats)),
        str(stats.forwards),
        str(stats.full_passes),
        f"{stats.seconds:.2f}",
        f"{stats.density:.2f}",
        str(stats.unmasked),
    )
