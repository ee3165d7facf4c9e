"""Converts the attention masks of torch and transformers to key masks.

Each call reads the whole mask again, because nothing shows whether a tensor was changed since the last call (it could
be, through a numpy view, ``.data`` or DLPack).
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["key_mask"]

# Adding this or less to a score makes its probability 0. Models use -inf or the lowest number of a dtype.
_HIDDEN = -1e4
_CHUNK_BYTES = 1 << 20  # the part of a mask that is read at a time; its temporaries fit into the processor's cache


def key_mask(function: str, mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """Returns which keys are real, from a mask that hides the same keys from every query.

    B batch, H heads, L queries, S keys.

    Args:
        function: The name of the function that error messages begin with.
        mask: (B, S) bool, or 4 axes that broadcast to (B, H, L, S). With 4 axes, a bool is True if a query sees a key,
            and a float is 0 if it does and -inf or a very low number if not. Queries that see no key at all are
            padding.
        batch: The batch size B.

    Returns:
        (B, S) bool, or None if every key is real.

    Raises:
        TypeError: The mask has another dtype.
        ValueError: The mask has another number of axes, hides different keys from different queries or heads, or is a
            bias on the scores.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{function}: mask has dtype {mask.dtype}, expected bool or a float that is added to scores")
    if mask.dim() == 2:
        keys = torch.as_tensor(_live(function, mask))
    elif mask.dim() == 4:
        # An axis with stride 0 repeats the same memory, which needs to be read only once.
        once = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride()[:3])]
        key_rows = []
        for sequence_mask in once:
            key_row = _same_for_all(function, sequence_mask)
            if key_row is None:
                raise ValueError(
                    f"{function}: mask {list(mask.shape)} hides different keys from different queries or heads, "
                    "expected a padding mask (a causal model or a KV cache cannot run here)"
                )
            key_rows.append(key_row)
        keys = torch.stack(key_rows)
    else:
        raise ValueError(f"{function}: mask has shape {list(mask.shape)}, expected [batch, keys] or 4 axes")
    return None if bool(keys.all()) else keys.expand(batch, -1)


def _live(function: str, mask: torch.Tensor) -> Any:
    """Returns an array that is True where a query sees a key, and checks that the mask is not a bias."""
    if mask.dtype == torch.bool:
        return _plain(mask)
    scores = _plain(mask.detach())
    live = scores == 0
    if not bool((live | (scores <= _HIDDEN)).all()):
        raise ValueError(f"{function}: mask is a bias on the scores, expected only 0 (seen) and -inf (hidden)")
    return live


def _plain(mask: torch.Tensor) -> Any:
    """Returns a mask on the host as an array of numpy, whose comparisons are faster than torch's."""
    if mask.device.type != "cpu":
        return mask
    return (mask if mask.dtype in (torch.bool, torch.float32, torch.float64) else mask.float()).numpy()


def _same_for_all(function: str, mask: torch.Tensor) -> torch.Tensor | None:
    """Returns the keys (S,) that all queries and heads of one sequence's mask (H or 1, L or 1, S) see.

    Returns None if queries or heads see different keys.
    """
    heads, queries, num_keys = mask.shape
    step = max(1, queries)
    if mask.device.type == "cpu":
        step = max(1, _CHUNK_BYTES // max(1, heads * num_keys * mask.element_size()))
    keys = None
    for begin in range(0, queries, step):
        live = _live(function, mask[:, begin : begin + step])
        by_query = live[0]
        if keys is None:
            seeing = by_query.any(-1)
            if bool(seeing.any()):
                keys = by_query[int((seeing * 1).argmax())]
        # Queries that see no key at all are padding and may differ from the others.
        others = by_query[:0] if keys is None else by_query[~(by_query == keys).all(-1)]
        if bool(others.any()) or not bool((live[1:] == by_query).all()):
            return None
    return mask.new_zeros(num_keys, dtype=torch.bool) if keys is None else torch.as_tensor(keys)
