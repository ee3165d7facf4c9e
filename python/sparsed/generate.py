"""Text by denoising: drives a model, a sampler and a pattern cache over the steps."""

from __future__ import annotations

import inspect
import itertools
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import ops
from .config import SlidingWindow, SparseConfig, StreamingLLM
from .guidance import predict
from .kv_cache import CachedRows, KVCache
from .pattern import PatternCache
from .sampling import SAMPLERS, Checker, Choice, FloatArray, IntArray, Plan, Sampler
from .stats import GenerationStats, GroupStep, StepStats

if TYPE_CHECKING:
    from .models import Model
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class StepInfo:
    """A step that just ended, as `on_step` sees it.

    Attributes:
        phase: "dense", "select", "sparse", "cached" or "mixed", as in StepStats.
        tokens: (B, l) int64, the sequence after the step (a copy).
        unmasked: per batch row, the positions in `tokens` that the step filled.
        confidence: per batch row, the sampler's confidence in what it filled there.
    """

    step: int
    phase: str
    seconds: float
    density: float
    tokens: IntArray
    unmasked: tuple[IntArray, ...]
    confidence: tuple[FloatArray, ...]


@dataclass(frozen=True)
class RowGroup:
    """Batch rows that ran as one unpadded batch.

    Attributes:
        rows: their indices in the batch.
        padding: tokens stripped from the left of each.
        cache: their PatternCache; None when dense. With guidance its batch is the rows, then their guiding twins.
    """

    rows: IntArray
    padding: int
    cache: PatternCache | None


@dataclass(frozen=True)
class GenerationResult:
    """What `generate` returns.

    Attributes:
        tokens: (B, l) int64, prompt and generation; padding as it was given.
        history: (T + 1, B, l) int32, the sequence before each step and at the end; None unless asked for.
        stats: seconds, phases, densities and tokens per step.
        groups: the rows that ran together, with their patterns.
        prompt_length: p, padding included.
        filled_at: (B, gen_length) int32, the step that filled each token; -1: still open.
        confidence: (B, gen_length) float32, the sampler's confidence in it; NaN: still open.
        interrupted: Ctrl-C ended the generation early: open positions of `tokens` hold the mask token.
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

    def plot(self, row: int = 0) -> Any:
        """Draws when each token was filled and how surely, and what the steps took. Needs matplotlib.

        Args:
            row: The batch row.

        Returns:
            A matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: There is no such row.
        """
        from .pictures import figures

        return figures.plot_result(self, row)

    def page(self, tokenizer: Tokenizer, *, row: int = 0, title: str = "sparsed") -> str:
        """One HTML page, whole in itself, that plays the denoising step by step and shows the selected patterns.

        Args:
            tokenizer: What the prompt was made with.
            row: The batch row.
            title: The heading.

        Raises:
            ValueError: There is no such row.
        """
        from .pictures import page

        return page.render(self, tokenizer, row=row, title=title)

    def _repr_html_(self) -> str:
        from .pictures import inline

        return inline.result_html(self)


def generate(
    model: Model,
    prompt_ids: ArrayLike,
    *,
    gen_length: int,
    steps: int,
    sparse: SparseConfig | SlidingWindow | StreamingLLM | None = None,
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
    alone (at temperature 0 the same bits), and its blocks are counted from its first real token. A step in which the
    sampler fills nothing (there are more steps than tokens) does not call the model. Ctrl-C (in the main thread, under
    Python's own handler) ends the generation after the step that it falls into and returns what is there; a second one
    raises KeyboardInterrupt at once.

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
        >>> question = "question : what are the magic numbers for ravon ?"
        >>> prompt = tokenizer.chat(f"the magic number for ravon is 1 0 7 3 . {question}")
        >>> result = generate(model, prompt, gen_length=8, steps=8, sparse=SparseConfig())
        >>> tokenizer.text(result.generated[0])
        'ravon is 1 0 7 3 ;'
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
    if sparse is not None and not isinstance(sparse, (SparseConfig, SlidingWindow, StreamingLLM)):
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
    prompt, padding = _checked_prompt(prompt_ids, prompt_mask, model.config.vocab_size)
    plan = Plan(int(gen_length), int(steps), model.config.mask_token_id)
    sampler.check(plan)

    num_steps = sampler.num_steps(plan)
    # Bytes per position: two int64 copies of the tokens, two int32 copies of each state of the history.
    needed = 16 + 8 * (1 + (num_steps or plan.gen_length)) * history
    ops.require_memory(min(needed * len(prompt) * (prompt.shape[1] + plan.gen_length), 2**63), "generate: the tokens")
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
    interrupted = False
    with _SigintLatch() as sigint, _ProgressBar(progress, open_positions.size) as bar:
        for step in itertools.count() if num_steps is None else range(num_steps):
            active = runs if num_steps is not None else [run for run in runs if run.open]
            if not active:
                break
            if sigint.caught:
                interrupted = True
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
    return GenerationResult(
        tokens=tokens,
        history=np.stack(states) if history else None,
        stats=stats,
        groups=tuple(RowGroup(run.rows, run.padding, run.cache) for run in runs),
        prompt_length=prompt.shape[1],
        filled_at=filled_at,
        confidence=confidence,
        interrupted=interrupted,
    )


class _GroupRun:
    """Rows with the same padding, denoised as one unpadded batch. Writes into its rows of `tokens` (B, l)."""

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        plan: Plan,
        sparse: SparseConfig | SlidingWindow | StreamingLLM | None,
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
            self.cache.begin_step(step, unmasked=1 - float(masked.mean()))
        candidates = [
            self.sampler.candidates(self.plan, step, row, rng) for row, rng in zip(masked, self.generators, strict=True)
        ]
        wanted = np.unique(np.concatenate([row.positions for row in candidates]))
        # A step without candidates still has to run where it selects: later steps reuse its pattern.
        forward = bool(len(wanted)) or (self.cache is not None and self.cache.phase == "select")
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


def pad_left(rows: Sequence[ArrayLike]) -> tuple[IntArray, NDArray[np.bool_]]:
    """Prompts of unequal length as the batch that `generate` takes.

    Args:
        rows: Token ids, (n,) each.

    Returns:
        prompt_ids (B, p), zeros at the left of shorter prompts, and prompt_mask (B, p).

    Raises:
        ValueError: No rows, or a row that is not one-dimensional.

    Example:
        >>> ids, mask = pad_left([[5, 6, 7], [8]])
        >>> ids
        array([[5, 6, 7],
               [0, 0, 8]])
        >>> mask
        array([[ True,  True,  True],
               [False, False,  True]])
    """
    arrays = [np.asarray(row, np.int64) for row in rows]
    wrong = [array.shape for array in arrays if array.ndim != 1]
    if wrong or not arrays:
        raise ValueError(f"pad_left: rows has {f'a row of shape {list(wrong[0])}' if wrong else 'none'}, expected [n]")
    width = max(map(len, arrays))
    mask = np.arange(width) >= width - np.array([[len(array)] for array in arrays])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(arrays)
    return ids, mask


def _checked_prompt(prompt_ids: ArrayLike, prompt_mask: ArrayLike | None, vocab_size: int) -> tuple[IntArray, IntArray]:
    """prompt_ids as (B, p) int64 and each row's padding (B,)."""
    try:
        prompt = np.asarray(prompt_ids)
    except ValueError:
        raise ValueError("generate: prompt_ids has rows of unequal length, expected [B, p] (see prompt_mask)") from None
    if prompt.size and prompt.dtype.kind not in "iu":
        raise TypeError(f"generate: prompt_ids has dtype {prompt.dtype}, expected integers")
    if prompt.ndim == 1:
        prompt = prompt[None]
    if prompt.ndim != 2 or 0 in prompt.shape:
        raise ValueError(f"generate: prompt_ids has shape {list(prompt.shape)}, expected [B, p] with B, p >= 1")
    real = np.ones(prompt.shape, np.bool_)
    if prompt_mask is not None:
        mask = np.asarray(prompt_mask)
        if mask.ndim == 1:
            mask = mask[None]
        if mask.shape != prompt.shape:
            raise ValueError(f"generate: prompt_mask has shape {list(mask.shape)}, expected {list(prompt.shape)}")
        if mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
            raise TypeError(f"generate: prompt_mask is {mask.dtype}, expected booleans (or 0 and 1)")
        real = mask.astype(np.bool_)
    padding = np.asarray(prompt.shape[1] - np.count_nonzero(real, axis=1), np.int64)
    for row in range(len(prompt)):
        if padding[row] == prompt.shape[1]:
            raise ValueError(f"generate: prompt_mask row {row} is all False, expected at least one token")
        if not real[row, padding[row] :].all():
            raise ValueError(f"generate: prompt_mask row {row} has a gap, expected False only at the left")
    outside = real & ((prompt < 0) | (prompt >= vocab_size))
    if outside.any():
        row, position = np.argwhere(outside)[0]
        raise ValueError(
            f"generate: prompt_ids[{row}, {position}] is {prompt[row, position]}, expected 0 ... {vocab_size - 1}"
        )
    return prompt.astype(np.int64), padding


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
