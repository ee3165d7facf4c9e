"""Runs the steps of batch rows that are denoised together: plan, forward, choose, commit, record.

B batch rows, l tokens, T steps. Positions count from the first generated token, unless a name says otherwise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.config import Sparse
from ..kernels.pattern_cache import PatternCache
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
    """

    candidates: list[Candidates]
    wanted: IntArray
    forward: bool
    computed: IntArray | None


class BatchRun:
    """Batch rows with the same padding, denoised as one unpadded batch.

    Args:
        model: What `load_model` returns.
        sampler: Chooses which positions a step unmasks, and with which tokens.
        request: What the generation asks of its sampler.
        sparse: None: dense attention.
        kv_cache: None: every step computes all tokens.
        tokens: (B, l) int64, all rows of the generation. The run writes into its rows.
        batch_indices: (rows,) the rows of `tokens` that run together.
        padding: Tokens of padding on the left of each of these rows.
        generators: The random generator of each row.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        request: Request,
        sparse: Sparse | None,
        kv_cache: KVCachePolicy | None,
        tokens: IntArray,
        batch_indices: IntArray,
        padding: int,
        generators: list[np.random.Generator],
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.request = request
        self.tokens = tokens
        self.batch_indices = batch_indices
        self.padding = padding
        self.generators = generators
        self.start = tokens.shape[1] - request.gen_length
        self.prompt_length = self.start - padding
        self.shift = int(model.config.shift_logits)
        self.patterns = None
        if sparse is not None:
            self.patterns = PatternCache(sparse, steps=sampler.num_steps(request), prompt_length=self.prompt_length)
        self.kv_schedule = None
        if kv_cache is not None:
            key_values = model.new_key_values()  # type: ignore[attr-defined]  # an optional part of a model
            self.kv_schedule = KVCacheSchedule(kv_cache, tokens.shape[1] - padding, self.shift, key_values)

    @property
    def masked(self) -> NDArray[np.bool_]:
        """(rows, gen_length): the positions that are still masked."""
        masked: NDArray[np.bool_] = self.tokens[self.batch_indices, self.start :] == self.request.mask_token_id
        return masked

    @property
    def finished(self) -> bool:
        """Whether no position is masked any more."""
        return not self.masked.any()

    def step(self, step: int) -> GroupStep:
        """Runs step `step`; returns its statistics."""
        began = time.perf_counter()
        plan = self._plan(step)
        logits = self._forward(plan)
        choices = self._choose(plan, logits)
        positions = self._commit(plan, choices)
        return self._record(plan, choices, positions, began)

    def _plan(self, step: int) -> StepPlan:
        masked = self.masked
        if self.patterns is not None:
            self.patterns.begin_step(step, unmasked=np.count_nonzero(~masked) / masked.size)
        candidates = [
            self.sampler.candidates(self.request, step, row, rng)
            for row, rng in zip(masked, self.generators, strict=True)
        ]
        wanted = np.unique(np.concatenate([row.positions for row in candidates]))
        # A step without candidates still runs if later steps reuse the pattern that it selects.
        selects = self.patterns is not None and self.patterns.needs_forward and bool(masked.any())
        forward = bool(len(wanted)) or selects
        computed = self._computed(step, masked, wanted) if forward else None
        return StepPlan(candidates, wanted, forward, computed)

    def _computed(self, step: int, masked: NDArray[np.bool_], wanted: IntArray) -> IntArray | None:
        """The positions in the unpadded sequence that the model computes; None: all."""
        if self.kv_schedule is None:
            return None
        begin, end = self.sampler.block(self.request, step, masked[0])
        block = (self.prompt_length + begin, self.prompt_length + end)
        needed = self.prompt_length + wanted - self.shift
        return self.kv_schedule.next_positions(block, self.prompt_length + np.flatnonzero(masked[0]), needed)

    def _forward(self, plan: StepPlan) -> FloatArray | None:
        """(rows, n, V) float32, the logits that predict the tokens at `plan.wanted`; None without a forward pass."""
        if not plan.forward:
            return None
        ids = self.tokens[self.batch_indices, self.padding :]
        attend = None if self.patterns is None else self.patterns.attend
        cached: dict[str, Any] = {}
        if self.kv_schedule is not None:
            cached = {"key_values": self.kv_schedule.key_values, "computed": plan.computed}
        return predict(self.model, ids, self.prompt_length, plan.wanted, self.sampler.cfg_scale, attend, **cached)

    def _choose(self, plan: StepPlan, logits: FloatArray | None) -> list[Choice]:
        """What the sampler unmasks in each row."""
        choices = []
        for i, (row, rng) in enumerate(zip(plan.candidates, self.generators, strict=True)):
            if logits is None or not row.count:
                choices.append(_NO_CHOICE)
                continue
            # The logits cover the candidates of all rows; the sampler gets those of this row.
            whole = len(row.positions) == len(plan.wanted)
            row_logits = logits[i] if whole else logits[i, np.searchsorted(plan.wanted, row.positions)]
            choices.append(self.sampler.choose(self.request, row, row_logits, rng))
        return choices

    def _commit(self, plan: StepPlan, choices: list[Choice]) -> list[IntArray]:
        """Writes the chosen tokens; returns their positions in `tokens`."""
        positions = []
        for index, row, choice in zip(self.batch_indices, plan.candidates, choices, strict=True):
            positions.append(self.start + row.positions[choice.index])
            self.tokens[index, positions[-1]] = choice.tokens
        return positions

    def _record(self, plan: StepPlan, choices: list[Choice], positions: list[IntArray], began: float) -> GroupStep:
        length = self.tokens.shape[1] - self.padding
        phase, density = "dense", float(plan.forward)
        if self.patterns is not None:
            phase, density = self.patterns.phase, self.patterns.density() if plan.forward else 0.0
        if plan.computed is not None and len(plan.computed) < length:
            phase, density = "cached", len(plan.computed) / length
        # A sampler may choose the mask token itself: such a position stays masked.
        unmasked = [choice.tokens != self.request.mask_token_id for choice in choices]
        return GroupStep(
            phase,
            time.perf_counter() - began,
            density,
            int(plan.forward),
            [row[kept] for row, kept in zip(positions, unmasked, strict=True)],
            [choice.confidence[kept] for choice, kept in zip(choices, unmasked, strict=True)],
        )
