"""Runs the steps of batch rows that are denoised together: plan, forward, choose, commit, record.

B batch rows, l tokens, T steps. Positions count from the first generated token, unless a name says otherwise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .given_patterns import Places, SparseOrGiven, new_cache
from .interrupt import SigintLatch
from .kv_cache import KVCachePolicy, KVCacheSchedule
from .predict import predict
from .sampling import Candidates, Choice, FloatArray, IntArray, Request, Sampler
from .stats import GroupStep

if TYPE_CHECKING:
    from ..models import Model

_NO_CHOICE = Choice(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True)
class StepPlan:
    """The plan of one step.

    Attributes:
        candidates: per row, the positions that the sampler may unmask.
        wanted: (n,) ascending, the positions whose logits some row needs.
        forward: whether the model is called.
        computed: (m,) ascending, the positions in the unpadded sequence that the model computes; None: all of them.
        rows: (k,) ascending, the rows that the model computes.
    """

    candidates: list[Candidates]
    wanted: IntArray
    forward: bool
    computed: IntArray | None
    rows: IntArray


@dataclass(frozen=True)
class Decoding:
    """What all rows of a generation share.

    Attributes:
        model: What `load_model` returns.
        sampler: Chooses which positions a step unmasks, and with which tokens.
        request: What the generation asks of its sampler.
        sparse: None: dense attention.
        kv_cache: None: every step computes all tokens.
        stop: (n,) token ids. A row ends where one of them is set and no position before it is masked.
        fill_behind_end: Whether the positions behind the first of them are filled as soon as it is set.
    """

    model: Model
    sampler: Sampler
    request: Request
    sparse: SparseOrGiven | None
    kv_cache: KVCachePolicy | None
    stop: IntArray
    fill_behind_end: bool


class BatchRun:
    """Batch rows with the same padding, denoised as one unpadded batch.

    Args:
        decoding: What all rows share.
        tokens: (B, l) int64, all rows of the generation. The run writes into its rows.
        batch_indices: (rows,) the rows of `tokens` that run together.
        padding: Tokens of padding on the left of each of these rows.
        generators: The random generator of each row.
    """

    def __init__(
        self,
        decoding: Decoding,
        tokens: IntArray,
        batch_indices: IntArray,
        padding: int,
        generators: list[np.random.Generator],
    ) -> None:
        self.decoding = decoding
        self.sampler = decoding.sampler
        self.request = decoding.request
        self.tokens = tokens
        self.batch_indices = batch_indices
        self.padding = padding
        self.generators = generators
        self.length = tokens.shape[1] - padding
        self.start = tokens.shape[1] - self.request.gen_length
        self.prompt_length = self.start - padding
        self.shift = int(decoding.model.config.shift_logits)
        self.patterns = None
        if decoding.sparse is not None:
            # With a cache it is unknown which steps compute all tokens; only those are steps of the patterns.
            steps = None if decoding.kv_cache is not None else self.sampler.num_steps(self.request)
            self.patterns = new_cache(decoding.sparse, steps, self._places())
        self.was_sparse = False  # whether some pass computed less than dense attention
        self.ended = False  # whether some row came to its end before all its positions were unmasked
        self._kv_schedule: KVCacheSchedule | None = None

    @property
    def masked(self) -> NDArray[np.bool_]:
        """(rows, gen_length): the positions that are still masked."""
        masked: NDArray[np.bool_] = self.tokens[self.batch_indices, self.start :] == self.request.mask_token_id
        return masked

    @property
    def finished(self) -> bool:
        """Whether no position is masked any more."""
        return not self.masked.any()

    def _places(self) -> Places:
        return Places(
            model=self.decoding.model,
            length=self.length,
            prompt_length=self.prompt_length,
            rows=self.batch_indices,
            num_rows=len(self.tokens),
            guided=self.sampler.cfg_scale > 0,
        )

    @property
    def key_values_nbytes(self) -> int:
        """The host memory that the run's keys and values take from `begin` to `end`."""
        devices = getattr(self.decoding.model, "devices", ())  # of the torch engine
        if self.decoding.kv_cache is None or any(getattr(device, "type", "cpu") != "cpu" for device in devices):
            return 0
        rows = len(self.batch_indices) * (2 if self.sampler.cfg_scale > 0 else 1)
        return int(self.decoding.model.key_values_nbytes(self.length, batch=rows))

    def begin(self) -> None:
        """Gets ready for the first step."""
        if self.decoding.kv_cache is not None:
            key_values = self.decoding.model.new_key_values()
            self._kv_schedule = KVCacheSchedule(self.decoding.kv_cache, key_values, self.length, self.shift)

    def end(self) -> None:
        """Frees the keys and values, which no later step needs."""
        self._kv_schedule = None

    def step(self, step: int, sigint: SigintLatch) -> GroupStep:
        """Runs step `step`; returns its statistics.

        Raises:
            WorkAbandoned: Ctrl-C came before the step had its logits; the tokens are as before.
        """
        began = time.perf_counter()
        with sigint.abandonable():
            plan = self._plan(step)
            logits = self._forward(plan)
            choices = self._choose(plan, logits)
        positions = self._commit(plan, choices)
        return self._record(plan, choices, positions, self._end_rows(), began)

    def _plan(self, step: int) -> StepPlan:
        masked = self.masked
        candidates = [
            self.sampler.candidates(self.request, step, row, rng)
            for row, rng in zip(masked, self.generators, strict=True)
        ]
        wanted = np.unique(np.concatenate([row.positions for row in candidates]))
        rows = np.arange(len(masked))
        if self._kv_schedule is None:
            self._begin_pattern_step(masked)
            if self.patterns is None:  # a row that has ended need not be computed; a pattern belongs to all rows
                rows = np.flatnonzero(masked.any(axis=1))
            return StepPlan(candidates, wanted, bool(len(wanted)) or self._selects(masked), None, rows)
        if not len(wanted):
            return StepPlan(candidates, wanted, False, None, rows)
        begin, end = self.sampler.block(self.request, step, masked[0])
        computed = self._kv_schedule.next_positions(
            (self.prompt_length + begin, self.prompt_length + end),
            self.prompt_length + np.flatnonzero(masked[0]),
            self.prompt_length + wanted - self.shift,
        )
        if len(computed) < self.length:
            return StepPlan(candidates, wanted, True, computed, rows)
        self._begin_pattern_step(masked)
        return StepPlan(candidates, wanted, True, None, rows)

    def _selects(self, masked: NDArray[np.bool_]) -> bool:
        """Whether a step without candidates still runs because later steps reuse the pattern that it selects."""
        long_enough = self.length >= getattr(self.decoding.sparse, "min_length", 0)
        return self.patterns is not None and long_enough and self.patterns.needs_forward and bool(masked.any())

    def _begin_pattern_step(self, masked: NDArray[np.bool_]) -> None:
        if self.patterns is not None:
            self.patterns.begin_step(self.patterns.step + 1, unmasked=np.count_nonzero(~masked) / masked.size)

    def _forward(self, plan: StepPlan) -> FloatArray | None:
        """(k, n, V) float32, the logits of `plan.rows` at `plan.wanted`; None without a forward pass."""
        if not plan.forward:
            return None
        ids = self.tokens[self.batch_indices[plan.rows], self.padding :]
        # Cached passes are dense: patterns for their rows would look where the answer was expected before it was known.
        attend = None if self.patterns is None or plan.computed is not None else self.patterns.attend
        cached: dict[str, Any] = {}
        if self._kv_schedule is not None:
            cached = {"key_values": self._kv_schedule.key_values, "computed": plan.computed}
        model = self.decoding.model
        return predict(model, ids, self.prompt_length, plan.wanted, self.sampler.cfg_scale, attend, **cached)

    def _choose(self, plan: StepPlan, logits: FloatArray | None) -> list[Choice]:
        """What the sampler unmasks in each row."""
        choices = []
        for i, (row, rng) in enumerate(zip(plan.candidates, self.generators, strict=True)):
            if logits is None or not row.count:
                choices.append(_NO_CHOICE)
                continue
            # The logits cover the candidates of all rows; the sampler gets those of this row.
            whole = len(row.positions) == len(plan.wanted)
            of_row = logits[np.searchsorted(plan.rows, i)]
            row_logits = of_row if whole else of_row[np.searchsorted(plan.wanted, row.positions)]
            choices.append(self.sampler.choose(self.request, row, row_logits, rng))
        return choices

    def _commit(self, plan: StepPlan, choices: list[Choice]) -> list[IntArray]:
        """Writes the chosen tokens; returns their positions in `tokens`."""
        positions = []
        for index, row, choice in zip(self.batch_indices, plan.candidates, choices, strict=True):
            positions.append(self.start + row.positions[choice.index])
            self.tokens[index, positions[-1]] = choice.tokens
        return positions

    def _end_rows(self) -> list[IntArray]:
        """Fills what is masked behind the first end token of a row, if nothing before it is masked.

        Returns the positions in `tokens` that it filled, for each row.
        """
        filled = []
        for index, masked in zip(self.batch_indices, self.masked, strict=True):
            generated = self.tokens[index, self.start :]
            ends = np.flatnonzero(np.isin(generated, self.decoding.stop))
            behind = np.empty(0, np.int64)
            if ends.size and (self.decoding.fill_behind_end or not masked[: ends[0]].any()):
                behind = ends[0] + np.flatnonzero(masked[ends[0] :])
                generated[behind] = generated[ends[0]]
                self.ended = self.ended or behind.size > 0
            filled.append(self.start + behind)
        return filled

    def _record(
        self,
        plan: StepPlan,
        choices: list[Choice],
        positions: list[IntArray],
        filled: list[IntArray],
        began: float,
    ) -> GroupStep:
        phase, density, rows = "dense", float(plan.forward), 0
        if plan.computed is not None:
            rows = len(plan.computed) * len(self.batch_indices)
            phase, density = "cached", len(plan.computed) / self.length
        elif self.patterns is not None and self.patterns.step >= 0:
            phase, density = self.patterns.phase, self.patterns.density() if plan.forward else 0.0
            self.was_sparse = self.was_sparse or (plan.forward and density < 1)
        # A sampler may choose the mask token itself: such a position stays masked.
        unmasked = [choice.tokens != self.request.mask_token_id for choice in choices]
        return GroupStep(
            phase,
            time.perf_counter() - began,
            density,
            int(plan.forward),
            int(plan.forward and plan.computed is None),
            rows,
            [row[kept] for row, kept in zip(positions, unmasked, strict=True)],
            [choice.confidence[kept] for choice, kept in zip(choices, unmasked, strict=True)],
            filled,
        )
