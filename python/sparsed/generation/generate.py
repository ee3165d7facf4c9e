"""Text by denoising: drives a model, a sampler and a pattern cache over the steps."""

from __future__ import annotations

import inspect
import itertools
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import Checker
from ..config import Sparse, SparseConfig
from ..kernels import ops
from ..kernels.pattern import PatternCache
from .kv_cache import CachedRows, KVCache
from .notebook import stop_queued_cells
from .predict import predict
from .prompts import checked_prompt
from .result import GenerationResult, RowGroup, StepInfo
from .sampling import SAMPLERS, Choice, FloatArray, IntArray, Plan, Sampler
from .stats import GenerationStats, GroupStep, StepStats

if TYPE_CHECKING:
    from ..models import Model


def generate(
    model: Model,
    prompt_ids: ArrayLike,
    *,
    gen_length: int,
    steps: int,
    sparse: Sparse | None = None,
    cache: KVCache | None = None,
    sampler: Sampler | None = None,
    prompt_mask: ArrayLike | None = None,
    seed: int | None = None,
    on_step: Callable[[StepInfo], Any] | None = None,
    progress: bool = False,
    history: bool = False,
) -> GenerationResult:
    """Appends gen_length tokens to each prompt by `steps` steps of denoising.

    B batch rows, p prompt length, l = p + gen_length, T steps. Rows are independent: each gets the text that it gets
    alone (at temperature 0 the same bits; with engine="torch" up to its rounding, which depends on the batch), and its
    blocks are counted from its first real token. A step in which the sampler fills nothing (there are more steps than
    tokens) does not call the model, unless it selects for later steps. Ctrl-C (in the main thread, under Python's own
    handler) ends the generation after the step that it falls into and returns what is there; a second one raises
    KeyboardInterrupt at once. In a Jupyter kernel the cell ends as interrupted, so that queued cells do not run.

    Args:
        model: What `load_model` returns.
        prompt_ids: (B, p) token ids, or (p,) for one row. They are never changed, not even mask tokens among them.
        gen_length: Tokens to generate.
        steps: How many, T. With a threshold in the sampler it is not used.
        sparse: None: dense attention.
        cache: PrefixCache, DualCache or DelayedCache: steps compute a part of the tokens and reuse the keys and values
            of the others. Not together with sparse.
        sampler: None: LLaDASampler() or DreamSampler(), by the model's family.
        prompt_mask: (B, p), False (or 0) at the left padding of shorter prompts, True (or 1) elsewhere.
        seed: Row i draws from child i of np.random.SeedSequence(seed); a seed repeats a run bit for bit.
        on_step: Called after each step; what it raises ends the generation.
        progress: Show a bar on stderr.
        history: Keep the sequence before each step and at the end.

    Returns:
        The tokens, with history, statistics and patterns.

    Raises:
        TypeError: An argument of another type or dtype.
        ValueError: A shape or value that does not fit; the message names it.
        MemoryError: The tokens, their history or the logits cannot fit into memory.

    Example:
        >>> from sparsed.demo import demo_model_folder
        >>> model, tokenizer = load_model(demo_model_folder()), load_tokenizer(demo_model_folder())
        >>> question = "question : what are the magic numbers for zileba ?"
        >>> prompt = tokenizer.chat(f"the magic number for zileba is 107 . {question}")
        >>> result = generate(model, prompt, gen_length=8, steps=8, sparse=SparseConfig())
        >>> tokenizer.text(result.generated[0])
        'zileba is 107 ;'
    """
    check = Checker("generate")
    check.integer("gen_length", gen_length, low=1)
    check.integer("steps", steps, low=1)
    if not hasattr(model, "config") or not hasattr(model, "forward"):
        raise TypeError(f"generate: model is {type(model).__name__}, expected what load_model returns")
    if sampler is None:
        sampler = SAMPLERS[model.config.family]()
    if not isinstance(sampler, Sampler):
        raise TypeError(f"generate: sampler is {type(sampler).__name__}, expected a LLaDASampler, DreamSampler or None")
    if sparse is not None and not isinstance(sparse, Sparse):
        raise TypeError(
            f"generate: sparse is {type(sparse).__name__}, expected SparseConfig, SlidingWindow, StreamingLLM or None"
        )
    if cache is not None and not isinstance(cache, KVCache):
        raise TypeError(
            f"generate: cache is {type(cache).__name__}, expected PrefixCache, DualCache, DelayedCache or None"
        )
    if cache is not None and "key_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"generate: cache is given with a {type(model).__name__}, expected a model that keeps keys and values "
            '(load_model with engine="native")'
        )
    if cache is not None and sparse is not None:
        raise ValueError("generate: sparse and cache are both given, expected at most one of them")
    if seed is not None:
        check.integer("seed", seed, low=0)
    if on_step is not None and not callable(on_step):
        raise TypeError(f"generate: on_step is {on_step!r}, expected a function or None")
    prompt, padding = checked_prompt(prompt_ids, prompt_mask, model.config.vocab_size)
    plan = Plan(int(gen_length), int(steps), model.config.mask_token_id)
    sampler.check(plan)

    num_steps = sampler.num_steps(plan)
    # Bytes per position: two int64 copies of the tokens, two int32 copies of each state of the history.
    needed = 16 + 8 * (1 + (num_steps or plan.gen_length)) * history
    ops.require_memory(needed * len(prompt) * (prompt.shape[1] + plan.gen_length), "generate: the tokens")
    open_positions = np.full((len(prompt), plan.gen_length), plan.mask_token_id, np.int64)
    tokens = np.concatenate([prompt, open_positions], axis=1)
    seeds = np.random.SeedSequence(seed).spawn(len(prompt))
    generators = [np.random.Generator(np.random.PCG64(child)) for child in seeds]
    runs = [
        _GroupRun(
            model, sampler, plan, sparse, cache, tokens, rows, int(padding[rows[0]]), [generators[row] for row in rows]
        )
        for rows in _group_rows(padding, alone=num_steps is None or cache is not None)
    ]

    stats = GenerationStats()
    filled_at = np.full(open_positions.shape, -1, np.int32)
    confidence = np.full(open_positions.shape, np.nan, np.float32)
    states = [tokens.astype(np.int32)] if history else []
    with _SigintLatch() as sigint, _ProgressBar(progress, open_positions.size) as bar:
        for step in itertools.count() if num_steps is None else range(num_steps):
            active = runs if num_steps is not None else [run for run in runs if run.open]
            if not active:
                break
            if sigint.caught:
                break
            outcomes = [run.step(step) for run in active]
            record = stats.add(step, outcomes)
            bar.advance(record)
            for run, outcome in zip(active, outcomes, strict=True):
                for row, positions, values in zip(run.rows, outcome.unmasked, outcome.confidence, strict=True):
                    filled_at[row, positions - prompt.shape[1]] = step
                    confidence[row, positions - prompt.shape[1]] = values
            if history:
                states.append(tokens.astype(np.int32))
            if on_step is not None:
                on_step(_step_info(record, tokens, active, outcomes))
    if sigint.caught:
        stop_queued_cells()
    return GenerationResult(
        tokens=tokens,
        history=np.stack(states) if history else None,
        stats=stats,
        groups=tuple(RowGroup(run.rows, run.padding, run.cache) for run in runs),
        prompt_length=prompt.shape[1],
        filled_at=filled_at,
        confidence=confidence,
        interrupted=sigint.caught,
    )


class _GroupRun:
    """Rows with the same padding, denoised as one unpadded batch. Writes into its rows of `tokens` (B, l)."""

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        plan: Plan,
        sparse: Sparse | None,
        cache: KVCache | None,
        tokens: IntArray,
        rows: IntArray,
        padding: int,
        generators: list[np.random.Generator],
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.plan = plan
        self.tokens = tokens
        self.rows = rows
        self.padding = padding
        self.generators = generators
        self.start = tokens.shape[1] - plan.gen_length
        self.reselects = isinstance(sparse, SparseConfig) and sparse.refresh == "every"
        self.has_selected = False
        self.cache = None
        if sparse is not None:
            self.cache = PatternCache(sparse, steps=sampler.num_steps(plan), prompt_length=self.start - padding)
        self.cached_rows = None
        if cache is not None:
            self.cached_rows = CachedRows(cache, tokens.shape[1] - padding, int(model.config.shift_logits))

    @property
    def masked(self) -> NDArray[np.bool_]:
        """(rows, gen_length): the positions that are still open."""
        masked: NDArray[np.bool_] = self.tokens[self.rows, self.start :] == self.plan.mask_token_id
        return masked

    @property
    def open(self) -> bool:
        return bool(self.masked.any())

    def step(self, step: int) -> GroupStep:
        began = time.perf_counter()
        masked = self.masked
        if self.cache is not None:
            self.cache.begin_step(step, unmasked=np.count_nonzero(~masked) / masked.size)
        candidates = [
            self.sampler.candidates(self.plan, step, row, rng) for row, rng in zip(masked, self.generators, strict=True)
        ]
        wanted = np.unique(np.concatenate([row.positions for row in candidates]))
        # A step without candidates still has to run where later steps reuse the pattern that it selects.
        selects = self.cache is not None and self.cache.phase == "select"
        awaited = selects and bool(masked.any()) and not (self.reselects and self.has_selected)
        forward = bool(len(wanted)) or awaited
        self.has_selected = self.has_selected or (selects and forward)
        rows = self._rows(step, masked, wanted) if forward else None
        logits = self._logits(wanted, rows) if forward else None

        unmasked, confidence = [], []
        for i, row in enumerate(candidates):
            choice = Choice(row.positions[:0], row.positions[:0], np.empty(0, np.float32))
            if logits is not None and row.count:
                every = len(row.positions) == len(wanted)
                own = logits[i] if every else logits[i, np.searchsorted(wanted, row.positions)]
                choice = self.sampler.choose(self.plan, row, own, self.generators[i])
            positions = self.start + row.positions[choice.index]
            self.tokens[self.rows[i], positions] = choice.tokens
            filled = choice.tokens != self.plan.mask_token_id
            unmasked.append(positions[filled])
            confidence.append(choice.confidence[filled])
        phase: str = self.cache.phase if self.cache is not None else "dense"
        density = self._density() if forward else 0.0
        length = self.tokens.shape[1] - self.padding
        if rows is not None and len(rows) < length:
            phase, density = "cached", len(rows) / length
        return GroupStep(phase, time.perf_counter() - began, density, int(forward), unmasked, confidence)

    def _rows(self, step: int, masked: NDArray[np.bool_], wanted: IntArray) -> IntArray | None:
        """The positions to compute; None where nothing is cached."""
        if self.cached_rows is None:
            return None
        first = self.start - self.padding
        begin, end = self.sampler.block(self.plan, step, masked[0])
        needed = first + wanted - int(self.model.config.shift_logits)
        return self.cached_rows.next_rows((first + begin, first + end), first + np.flatnonzero(masked[0]), needed)

    def _logits(self, wanted: IntArray, rows: IntArray | None) -> FloatArray:
        """(rows, len(wanted), V) float32: what predicts the tokens at `wanted`, guided and shifted where due."""
        ids = self.tokens[self.rows, self.padding :]
        attend = None if self.cache is None else self.cache.attend
        cached: dict[str, Any] = {}
        if self.cached_rows is not None:
            cached = {"key_values": self.cached_rows.key_values, "rows": rows}
        return predict(self.model, ids, self.start - self.padding, wanted, self.sampler.cfg_scale, attend, **cached)

    def _density(self) -> float:
        if self.cache is None:
            return 1.0
        layers = range(self.model.config.num_layers)
        return sum(self.cache.density(layer) for layer in layers) / len(layers)


def _group_rows(padding: IntArray, *, alone: bool) -> list[IntArray]:
    """Row indices of the batches that run together: equal padding, or each row alone."""
    if alone:
        return [np.array([row]) for row in range(len(padding))]
    return [np.flatnonzero(padding == value) for value in np.unique(padding)]


def _step_info(record: StepStats, tokens: IntArray, runs: list[_GroupRun], outcomes: list[GroupStep]) -> StepInfo:
    unmasked: list[IntArray] = [np.empty(0, np.int64)] * len(tokens)
    confidence: list[FloatArray] = [np.empty(0, np.float32)] * len(tokens)
    for run, outcome in zip(runs, outcomes, strict=True):
        for i, row in enumerate(run.rows):
            unmasked[row], confidence[row] = outcome.unmasked[i], outcome.confidence[i]
    return StepInfo(
        record.step,
        record.phase,
        record.seconds,
        record.density,
        tokens.copy(),
        tuple(unmasked),
        tuple(confidence),
    )


class _SigintLatch:
    """Turns the first Ctrl-C into a flag. Only in the main thread and in place of Python's own handler."""

    def __init__(self) -> None:
        self.caught = False
        self._installed = False

    def __enter__(self) -> _SigintLatch:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = True


class _ProgressBar:
    """Tokens filled so far and the current phase, on stderr; nothing when not shown."""

    def __init__(self, shown: bool, total: int) -> None:
        self._bar = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="tok", dynamic_ncols=True)

    def __enter__(self) -> _ProgressBar:
        return self

    def advance(self, record: StepStats) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(record.phase, refresh=False)
            self._bar.update(record.unmasked)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
