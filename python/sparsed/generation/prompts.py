"""Pads prompts to one length, and checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import even_array, id_array
from .sampling import IntArray


def pad_left(rows: Sequence[ArrayLike]) -> tuple[IntArray, NDArray[np.bool_]]:
    """Pads prompts of unequal length on the left, to the batch that `generate` takes.

    Args:
        rows: Token ids, (n,) each.

    Returns:
        prompt_ids (B, p), zeros at the left of shorter prompts, and prompt_mask (B, p).

    Raises:
        TypeError: A row that holds no integers.
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
    if rows is None or isinstance(rows, (str, bytes, Mapping)):
        id_array("pad_left", "rows", rows)  # raises
    arrays = [id_array("pad_left", f"rows[{i}]", row).astype(np.int64) for i, row in enumerate(rows)]
    wrong = [array.shape for array in arrays if array.ndim != 1]
    if wrong or not arrays:
        raise ValueError(f"pad_left: rows has {f'a row of shape {list(wrong[0])}' if wrong else 'none'}, expected [n]")
    width = max(map(len, arrays))
    mask = np.arange(width) >= width - np.array([[len(array)] for array in arrays])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(arrays)
    return ids, mask


def checked_prompt(prompt_ids: ArrayLike, prompt_mask: ArrayLike | None, vocab_size: int) -> tuple[IntArray, IntArray]:
    """Returns prompt_ids as (B, p) int64 and the padding of each row, (B,)."""
    prompt = id_array(
        "generate", "prompt_ids", prompt_ids, "[B, p] (sparsed.pad_left makes prompt_ids and prompt_mask)"
    )
    if prompt.ndim == 1:
        prompt = prompt[None]
    if prompt.ndim != 2 or 0 in prompt.shape:
        empty = " (the prompt is empty)" if prompt.size == 0 else ""
        raise ValueError(f"generate: prompt_ids has shape {list(prompt.shape)}{empty}, expected [B, p] with B, p >= 1")
    real = np.ones(prompt.shape, np.bool_)
    if prompt_mask is not None:
        mask = even_array("generate", "prompt_mask", prompt_mask, str(list(prompt.shape)))
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
