"""`generate`: drives a model, a sampler and a pattern cache over the denoising steps."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Checker, token_row
from ..kernels import ops
from ..kernels.config import Sparse
from ..progress import progress_bar
from .given_patterns import SparseOrGiven
from .interrupt import SigintLatch, WorkAbandoned
from .kv_cache import KVCachePolicy
from .notebook import stop_queued_cells
from .notes import log_notes, notes_after, notes_before, warn_of_length
from .prompts import checked_prompt
from .result import GenerationResult, RowGroup, StepInfo
from .run import BatchRun, Decoding
from .sampling import SAMPLERS, FloatArray, IntArray, Request, Sampler
from .stats import GenerationStats, GroupStep, StepStats

if TYPE_CHECKING:
    from ..models import Model


def generate(
    model: Model,
    prompt_ids: ArrayLike,
    *,
    gen_length: int,
    steps: int,
    sparse: SparseOrGiven | None = None,
    kv_cache: KVCachePolicy | None = None,
    sampler: Sampler | None = None,
    stop: ArrayLike | None = None,
    fill_behind_end: bool = False,
    prompt_mask: ArrayLike | None = None,
    seed: int | None = None,
    on_step: Callable[[StepInfo], Any] | None = None,
    progress: bool = False,
    history: bool = False,
    cache: KVCachePolicy | None = None,
) -> GenerationResult:
    """Appends gen_length tokens to each prompt by `steps` steps of denoising.

    B batch rows, p prompt length, l = p + gen_length, T steps. Rows are independent: each gets the text that it
    would get without the others (at temperature 0 the same bits; with engine="torch" up to its rounding, which depends
    on the batch), and its blocks are counted from its first real token. A step in which the sampler unmasks nothing
    (there are more steps than tokens) does not call the model, unless it selects the pattern of later steps. Ctrl-C (in
    the main thread, under Python's default handler) gives up the current step, even in the middle of a forward pass,
    and returns the text so far; a second one raises KeyboardInterrupt at once. In a Jupyter kernel the cell ends as
    interrupted, so that queued cells do not run.

    With both `sparse` and `kv_cache`, the passes that compute all tokens are the steps of the pattern: they are dense,
    select or are sparse, `skip` counts the share of the generation that is unmasked, and the other steps attend
    densely from the tokens that they compute to the keys and values that the last such pass has left. Rows whose keys
    and values do not fit into memory together are generated one after the other; the statistics list their steps in
    that order.

    Args:
        model: What `load_model` returns.
        prompt_ids: (B, p) token ids, or (p,) for one row. They are never changed, not even mask tokens among them.
        gen_length: Tokens to generate.
        steps: How many, T. With a threshold, factor or entropy_bound in the sampler it is not used.
        sparse: None: dense attention. A PatternCache (of an earlier result, or from `PatternCache.load`): each layer
            uses the pattern that the cache holds for it, in every step. Nothing is selected, the settings and the step
            of the cache do not count, and it does not change. A BlockPattern: all layers use it. In a PatternCache
            made with a BlockPattern, the layers that hold no other pattern use that one. Such patterns are for rows
            with the same number of tokens (padding not counted) and the same prompt_length, or 0, and every query block
            keeps at least one key block. Their heads are the query heads of the model, in a group those of this
            process. Their batch is all rows, then their guiding twins if there is guidance; patterns with batch 1 serve
            every row.
        kv_cache: PrefixCache, DualCache or DelayedCache: steps compute a part of the tokens and reuse the keys and
            values of the others. The model has to keep them: those of `load_model` do.
        sampler: None: LLaDASampler(), DreamSampler() or MDLMSampler(), by the model's family.
        stop: (n,) token ids. A row ends as soon as one of them is set and no position before it is masked: the text up
            to it can change no more. What is still masked behind it becomes that token. None: the model's end tokens
            if the sampler works in blocks, else none, because then the end is rarely reached early. () never stops.
            With sparse attention the rows of a batch then run one by one.
        fill_behind_end: Fill the masked positions behind the first token of `stop` as soon as it is set, although
            positions before it are masked. This saves steps, and it can change the text before the end.
        prompt_mask: (B, p), False (or 0) at the left padding of shorter prompts, True (or 1) elsewhere.
        seed: Row i draws from child i of np.random.SeedSequence(seed); a seed repeats a run bit for bit.
        on_step: Called after each step; an exception that it raises ends the generation.
        progress: Show a bar on stderr.
        history: Keep the sequence before each step and at the end.
        cache: The old name of kv_cache.

    Returns:
        The tokens, with history, statistics and patterns.

    Raises:
        TypeError: An argument of another type or dtype.
        ValueError: A shape or value that does not fit; the message names it.
        MemoryError: The tokens, their history, the keys and values of one row or the logits cannot fit into memory.

    Warns:
        SparsedWarning: The sequence is longer than the model allows. Sparse settings that have no effect, as for a
            sequence below `min_length`, are not warnings: they are in `stats.notes`, and logged as "sparsed" (INFO the
            first time, then DEBUG).

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
        raise TypeError(
            f"generate: sampler is {type(sampler).__name__}, expected a LLaDASampler, DreamSampler, MDLMSampler or None"
        )
    if sparse is not None and not isinstance(sparse, SparseOrGiven):
        raise TypeError(
            f"generate: sparse is {type(sparse).__name__}, expected SparseConfig, SlidingWindow, StreamingLLM, "
            "PatternCache, BlockPattern or None"
        )
    settings = sparse if isinstance(sparse, Sparse) else None
    if cache is not None:
        if kv_cache is not None:
            raise TypeError("generate: cache and kv_cache are both given, expected kv_cache (cache is its old name)")
        warnings.warn("generate: cache is the old name of kv_cache", DeprecationWarning, stacklevel=2)
        kv_cache = cache
    if kv_cache is not None and not isinstance(kv_cache, KVCachePolicy):
        raise TypeError(
            f"generate: kv_cache is {type(kv_cache).__name__}, expected PrefixCache, DualCache, DelayedCache or None"
        )
    if kv_cache is not None and not (hasattr(model, "new_key_values") and hasattr(model, "key_values_nbytes")):
        raise ValueError(
            f"generate: kv_cache is given with a {type(model).__name__}, expected a model that keeps keys and values "
            "(those of load_model do)"
        )
    if seed is not None:
        check.integer("seed", seed, low=0)
    if on_step is not None and not callable(on_step):
        raise TypeError(f"generate: on_step is {on_step!r}, expected a function or None")
    prompt, padding = checked_prompt(prompt_ids, prompt_mask, model.config.vocab_size)
    request = Request(int(gen_length), int(steps), model.config.mask_token_id, model.config.end_token_ids)
    sampler.check(request)

    num_steps = sampler.num_steps(request)
    # Bytes per position: two int64 copies of the tokens, two int32 copies of each state of the history.
    state_bytes = 8 * (1 + (num_steps or request.gen_length)) * history
    num_tokens = len(prompt) * (prompt.shape[1] + request.gen_length)
    ops.require_memory((16 + state_bytes) * num_tokens, "generate: the tokens")
    stop_ids = _stop_ids(stop, fill_behind_end, model, sampler, request)
    masked_tokens = np.full((len(prompt), request.gen_length), request.mask_token_id, np.int64)
    tokens = np.concatenate([prompt, masked_tokens], axis=1)
    seeds = np.random.SeedSequence(seed).spawn(len(prompt))
    generators = [np.random.Generator(np.random.PCG64(child)) for child in seeds]
    decoding = Decoding(model, sampler, request, sparse, kv_cache, stop_ids, bool(fill_behind_end))
    # Rows whose steps depend on their tokens run one by one, and those that end apart if a pattern ties them together.
    one_by_one = num_steps is None or kv_cache is not None or (stop_ids.size > 0 and sparse is not None)
    runs = [
        BatchRun(decoding, tokens, indices, int(padding[indices[0]]), [generators[row] for row in indices])
        for indices in _batches(padding, one_by_one=one_by_one)
    ]

    turns = _turns(runs)
    ops.require_memory(state_bytes * len(turns) * num_tokens, "generate: the history")

    stats = GenerationStats(dtype=getattr(model, "dtype", ""), weights=getattr(model, "weights", ""))
    lengths = [int(length) for length in tokens.shape[1] - padding]
    foreseen = notes_before(settings, None if kv_cache is not None else num_steps, lengths)
    stats.notes += foreseen
    log_notes(foreseen, settings)
    warn_of_length(model.config, max(lengths), stats)
    filled_at = np.full(masked_tokens.shape, -1, np.int32)
    confidence = np.full(masked_tokens.shape, np.nan, np.float32)
    states = [tokens.astype(np.int32)] if history else []
    with SigintLatch() as sigint, progress_bar(progress, total=masked_tokens.size, unit="tok") as bar:
        for turn in turns:
            for run in turn:
                run.begin()
            for step in itertools.count() if num_steps is None else range(num_steps):
                active = turn if num_steps is not None else [run for run in turn if not run.finished]
                outcomes = _step(active, step, sigint)
                if not outcomes:
                    break
                active = active[: len(outcomes)]
                record = stats.add(len(stats), outcomes)
                of_all = "" if num_steps is None else f"/{num_steps}"
                bar.set_postfix_str(f"step {step + 1}{of_all}, {record.phase}", False)
                bar.update(int(np.count_nonzero(tokens[:, prompt.shape[1] :] != request.mask_token_id)) - bar.n)
                for run, outcome in zip(active, outcomes, strict=True):
                    for i, row in enumerate(run.batch_indices):
                        filled_at[row, outcome.filled[i] - prompt.shape[1]] = record.step
                        filled_at[row, outcome.unmasked[i] - prompt.shape[1]] = record.step
                        confidence[row, outcome.unmasked[i] - prompt.shape[1]] = outcome.confidence[i]
                if history:
                    states.append(tokens.astype(np.int32))
                if on_step is not None:
                    on_step(_step_info(record, tokens, active, outcomes))
                if any(run.ended for run in turn) and all(run.finished for run in turn):
                    break
            for run in turn:
                run.end()
            if sigint.caught:
                break
    if not foreseen and not sigint.caught:
        seen = notes_after(settings, kv_cache, stats, any(run.was_sparse for run in runs))
        stats.notes += seen
        log_notes(seen, settings or kv_cache)
    if sigint.caught:
        stop_queued_cells()
    return GenerationResult(
        tokens=tokens,
        history=np.stack(states) if history else None,
        stats=stats,
        groups=tuple(RowGroup(run.batch_indices, run.padding, run.patterns) for run in runs),
        prompt_length=prompt.shape[1],
        filled_at=filled_at,
        confidence=confidence,
        interrupted=sigint.caught,
    )


def _stop_ids(
    stop: ArrayLike | None, fill_behind_end: bool, model: Model, sampler: Sampler, request: Request
) -> IntArray:
    """The tokens that end a row, (n,)."""
    if not isinstance(fill_behind_end, (bool, np.bool_)):
        raise TypeError(f"generate: fill_behind_end is {fill_behind_end!r}, expected True or False")
    if stop is None:
        block_end = sampler.block(request, 0, np.ones(request.gen_length, np.bool_))[1]
        wanted = fill_behind_end or block_end < request.gen_length
        stop = request.end_token_ids if wanted else ()
    given = np.empty(0, np.int64) if np.size(stop) == 0 else stop
    ids = token_row("generate", "stop", given, model.config.vocab_size)
    if (ids == request.mask_token_id).any():
        raise ValueError(
            f"generate: stop holds the mask token {request.mask_token_id}, expected tokens that end a text"
        )
    if fill_behind_end and not ids.size:
        raise ValueError("generate: fill_behind_end is True and stop holds no token, expected at least one")
    return ids


def _turns(runs: list[BatchRun]) -> list[list[BatchRun]]:
    """The runs in turns whose keys and values fit into memory together."""
    largest = max(run.key_values_nbytes for run in runs)
    fits = len(runs)
    while True:
        try:
            ops.require_memory(fits * largest, "generate: the keys and values")
        except MemoryError:
            if fits == 1:
                raise
            fits = (fits + 1) // 2
        else:
            return [runs[begin : begin + fits] for begin in range(0, len(runs), fits)]


def _step(runs: list[BatchRun], step: int, sigint: SigintLatch) -> list[GroupStep]:
    """The outcomes of step `step`, of the runs that came to an end before Ctrl-C."""
    outcomes = []
    for run in runs:
        if sigint.caught:
            break
        try:
            outcomes.append(run.step(step, sigint))
        except WorkAbandoned:
            break
    return outcomes


def _batches(padding: IntArray, *, one_by_one: bool) -> list[IntArray]:
    """Batch indices of the rows that run together: those of equal padding, or each row by itself."""
    if one_by_one:
        return [np.array([row]) for row in range(len(padding))]
    return [np.flatnonzero(padding == value) for value in np.unique(padding)]


def _step_info(record: StepStats, tokens: IntArray, runs: list[BatchRun], outcomes: list[GroupStep]) -> StepInfo:
    unmasked: list[IntArray] = [np.empty(0, np.int64)] * len(tokens)
    filled: list[IntArray] = [np.empty(0, np.int64)] * len(tokens)
    confidence: list[FloatArray] = [np.empty(0, np.float32)] * len(tokens)
    for run, outcome in zip(runs, outcomes, strict=True):
        for i, row in enumerate(run.batch_indices):
            unmasked[row], confidence[row] = outcome.unmasked[i], outcome.confidence[i]
            filled[row] = outcome.filled[i]
    return StepInfo(
        record.step,
        record.phase,
        record.seconds,
        record.density,
        tokens.copy(),
        tuple(unmasked),
        tuple(confidence),
        tuple(filled),
    )
