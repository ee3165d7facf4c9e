"""Notes for the user: settings that have no effect, and sequences that are too long for the model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from ..checks import SparsedWarning
from ..kernels.config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ..kernels.own_selection import name_of
from ..kernels.pattern import BlockPattern
from .kv_cache import KVCachePolicy
from .stats import GenerationStats

_log = logging.getLogger("sparsed")
_logged: set[str] = set()  # what was noted on; an own rule among the settings need not be hashable


def log_notes(notes: Sequence[str], method: Sparse | KVCachePolicy | None) -> None:
    """Logs notes on `method` as "sparsed": the first time at INFO, later at DEBUG, because one run makes many calls."""
    for note in notes:
        _log.log(logging.DEBUG if repr(method) in _logged else logging.INFO, note)
    if notes:
        _logged.add(repr(method))


def ever_sparse(sparse: Sparse, steps: int) -> bool:
    """Returns whether some step computes less than dense attention, in sequences that are long enough.

    With `refresh="every"` that is a second step that selects: it attends with the pattern that it selects.
    """
    phases = sparse.phases(steps)
    every = isinstance(sparse, SparseConfig) and sparse.refresh == "every"
    return "sparse" in phases or (every and phases.count("select") > 1)


def notes_before(sparse: Sparse | None, steps: int | None, lengths: Sequence[int]) -> list[str]:
    """Returns why `sparse` will have no effect on sequences of these lengths, if the settings show that.

    Args:
        sparse: None: dense attention, which needs no notes.
        steps: None: the number of steps is unknown.
        lengths: Tokens of each row, its padding not counted.
    """
    if sparse is None:
        return []
    name = type(sparse).__name__
    if isinstance(sparse, SparseConfig):
        short = [length for length in lengths if length < sparse.min_length]
        if short:
            reason = f"fewer than min_length {sparse.min_length}, so that attention is dense"
            return [_note(name, short, lengths, reason)]
        if sparse.rho == 1 and not callable(sparse.selection):
            return ["SparseConfig has no effect: rho is 1, which keeps every block"]
        if steps is not None and not ever_sparse(sparse, steps):
            return [
                f"SparseConfig has no effect: none of the {steps} steps comes after the selection "
                f"(skip {sparse.skip}{_refresh(sparse)})"
            ]
        return []
    covered = [length for length in lengths if _covers(sparse, length)]
    sinks = f" with {sparse.sinks} sinks" if isinstance(sparse, StreamingLLM) else ""
    reason = f"and window {sparse.window}{sinks} (block_size {sparse.block_size}) covers them all"
    return [_note(name, covered, lengths, reason)] if covered else []


def notes_after(
    sparse: Sparse | None, kv_cache: KVCachePolicy | None, stats: GenerationStats, was_sparse: bool
) -> list[str]:
    """Returns notes that need a finished generation: which settings had no effect, and why.

    `was_sparse` says whether some pass computed less than dense attention.
    """
    notes = []
    if sparse is not None and not was_sparse:
        notes.append(_why_dense(sparse, kv_cache, stats))
    if kv_cache is not None and not stats.cached_rows:
        notes.append(f"{type(kv_cache).__name__} had no effect: every step computed all tokens")
    return notes


def _why_dense(sparse: Sparse, kv_cache: KVCachePolicy | None, stats: GenerationStats) -> str:
    name = type(sparse).__name__
    if any(step.phase == "sparse" and step.forwards for step in stats):
        if not isinstance(sparse, SparseConfig):
            parts = f"window {sparse.window}"
        else:
            parts = f"selection {name_of(sparse.selection)}" if callable(sparse.selection) else f"rho {sparse.rho}"
        return (
            f"{name} had no effect: the patterns hold all blocks "
            f"({parts}, block_size {sparse.block_size}, generation {sparse.generation}), so that every step was dense"
        )
    skip = f" (skip {sparse.skip}{_refresh(sparse)})" if isinstance(sparse, SparseConfig) else ""
    if kv_cache is not None:
        return f"{name} had no effect: no step after the selection computed all tokens{skip}"
    return f"{name} had no effect: no step after the selection called the model{skip}"


def warn_of_length(config: Any, length: int, stats: GenerationStats) -> None:
    """Warns if a sequence is longer than the model's config.json allows; keeps the warning in `stats`."""
    limit = getattr(config, "max_length", None)
    if limit is not None and length > limit:
        text = (
            f"the sequence has {length} tokens, more than the {limit} that the model is made for "
            "(max_sequence_length or max_position_embeddings in its config.json, or what its rope_scaling makes of "
            "it): the text may be wrong"
        )
        stats.notes.append(text)
        warnings.warn(text, SparsedWarning, stacklevel=3)


def _note(name: str, found: Sequence[int], lengths: Sequence[int], reason: str) -> str:
    if len(lengths) == 1:
        return f"{name} has no effect: the sequence has {found[0]} tokens, {reason}"
    which = f"all {len(lengths)}" if len(found) == len(lengths) else f"{len(found)} of {len(lengths)}"
    return f"{name} has no effect on {which} sequences: they have at most {max(found)} tokens, {reason}"


def _refresh(sparse: SparseConfig) -> str:
    return f", refresh {sparse.refresh}" if sparse.refresh else ""


def _covers(sparse: SlidingWindow | StreamingLLM, length: int) -> bool:
    geometry = {"batch": 1, "heads": 1, "q_len": length, "kv_len": length, "block_size": sparse.block_size}
    if isinstance(sparse, StreamingLLM):
        return BlockPattern.streaming(window=sparse.window, sinks=sparse.sinks, **geometry).density == 1
    return BlockPattern.sliding_window(window=sparse.window, **geometry).density == 1
