"""Independent definitions of the rules of samplers, in float64, and a generation that follows them."""

from __future__ import annotations

from typing import Any

import numpy as np

import reference
import sparsed
from paths import DATA
from sparsed import DreamSampler, LLaDASampler

FAMILIES: dict[str, Any] = {"llada": LLaDASampler, "dream": DreamSampler}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def open_logits(logits: np.ndarray, mask: int) -> np.ndarray:
    """The logits in float64, without the mask token."""
    return np.where(np.arange(logits.shape[1]) == mask, -np.inf, logits.astype(np.float64))


def expected_rows(options: dict[str, float], logits: np.ndarray, mask: int) -> list[int]:
    """The rows that a rule unmasks: the longest admissible run of the surest rows, at least one."""
    ((rule, value),) = options.items()
    probability = reference.softmax(open_logits(logits, mask))[0]
    top = probability.max(axis=1)
    entropy = -(probability * np.log(np.maximum(probability, 1e-300))).sum(axis=1)
    cost = entropy if rule == "entropy_bound" else -top
    # Equal rows of float32 logits are equal here, too.
    order = sorted(range(len(logits)), key=lambda i: (round(cost[i], 12), i))
    best = 1
    for n in range(1, len(order) + 1):
        group = order[:n]
        admissible = {
            "threshold": top[group].min() >= value,
            "factor": (n + 1) * (1 - top[group].min()) <= value,
            "entropy_bound": entropy[group].sum() - entropy[group].max() <= value,
        }[rule]
        best = n if admissible else best
    return sorted(order[:best])


def expected_gap(logits: np.ndarray, mask: int) -> float:
    two = np.sort(open_logits(logits, mask), axis=1)[:, -2:]
    return float((two[:, 1] - two[:, 0]).mean())


def prophet_commits(gap: float, progress: float, gaps: tuple[float, ...]) -> bool:
    if progress < 0.33:
        return gap >= gaps[0]
    return gap >= gaps[1] if progress < 0.67 else gap >= gaps[2]


def own_generation(model, prompt: np.ndarray, length: int, block_length: int | None, choose_rows) -> tuple[Any, ...]:
    """Tokens and the step of each: choose_rows(step, block positions, all masked positions, their logits) at a time."""
    mask, shift = model.config.mask_token_id, int(model.config.shift_logits)
    ids = np.concatenate([prompt, np.full(length, mask)])
    filled_at = np.full(length, -1)
    for step in range(length):
        masked = np.flatnonzero(ids[len(prompt) :] == mask)
        if not len(masked):
            break
        block = block_length or length
        end = (masked[0] // block + 1) * block
        logits = model.forward(ids[None], positions=len(prompt) + masked - shift)[0]
        rows = choose_rows(step, int((masked < end).sum()), logits)
        ids[len(prompt) + masked[rows]] = open_logits(logits, mask).argmax(axis=1)[rows]
        filled_at[masked[rows]] = step
    return ids[len(prompt) :], filled_at


def tiny_model(family) -> Any:
    return sparsed.load_model(DATA / ("llada_b32" if family is LLaDASampler else "dream_b32"), "float32")
