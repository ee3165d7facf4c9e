"""The attention masks of torch and transformers as key masks.

A mask is read anew in every call: nothing tells whether a tensor was written to since, through a numpy view, ``.data``
or DLPack. That is one pass over its bytes.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["key_mask"]

# Added to a score, this leaves nothing of it after the softmax; models write -inf or the least number of a dtype.
_HIDDEN = -1e4
_CHUNK_BYTES = 1 << 20  # of the mask, read at a time: its temporaries stay in the processor's cache


def key_mask(function: str, mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """Which keys are real, out of a mask that hides the same keys from every query.

    B batch, H heads, L queries, S keys.

    Args:
        function: Opens the messages.
        mask: (B, S) bool; or 4 axes that broadcast to (B, H, L, S): bool, True where a query sees a key, or float, 0
            there and -inf or a very low number elsewhere. A query that sees no key at all is padding.
        batch: B.

    Returns:
        (B, S) bool; None where every key is real.

    Raises:
        TypeError: Another dtype.
        ValueError: Another number of axes, different keys for different queries or heads, a bias that is no mask.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{function}: mask has dtype {mask.dtype}, expected bool or a float that is added to scores")
    if mask.dim() == 2:
        keys = torch.as_tensor(_live(function, mask))
    elif mask.dim() == 4:
        # What a mask repeats by a stride of 0 is read once.
        once = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride()[:3])]
        rows = []
        for part in once:
            row = _same_for_all(function, part)
            if row is None:
                raise ValueError(
                    f"{function}: mask {list(mask.shape)} hides different keys from different queries or heads, "
                    "expected a padding mask (a causal model or a KV cache cannot run here)"
                )
            rows.append(row)
        keys = torch.stack(rows)
    else:
        raise ValueError(f"{function}: mask has shape {list(mask.shape)}, expected [batch, keys] or 4 axes")
    return None if bool(keys.all()) else keys.expand(batch, -1)


def _live(function: str, mask: torch.Tensor) -> Any:
    """Where a mask is open, in an array as `_plain` makes it."""
    if mask.dtype == torch.bool:
        return _plain(mask)
    scores = _plain(mask.detach())
    live = scores == 0
    if not bool((live | (scores <= _HIDDEN)).all()):
        raise ValueError(f"{function}: mask is a bias on the scores, expected only 0 (seen) and -inf (hidden)")
    return live


def _plain(mask: torch.Tensor) -> Any:
    """On the host an array of numpy, whose comparisons are the faster ones."""
    if mask.device.type != "cpu":
        return mask
    return (mask if mask.dtype in (torch.bool, torch.float32, torch.float64) else mask.float()).numpy()


def _same_for_all(function: str, mask: torch.Tensor) -> torch.Tensor | None:
    """(S,) out of (H or 1, L or 1, S), one row of the batch; None where queries or heads see different keys."""
    heads, queries, num_keys = mask.shape
    step = max(1, queries)
    if mask.device.type == "cpu":
        step = max(1, _CHUNK_BYTES // max(1, heads * num_keys * mask.element_size()))
    keys = None
    for begin in range(0, queries, step):
        live = _live(function, mask[:, begin : begin + step])
        rows = live[0]
        if keys is None:
            seeing = rows.any(-1)
            if bool(seeing.any()):
                keys = rows[int((seeing * 1).argmax())]
        others = rows[:0] if keys is None else rows[~(rows == keys).all(-1)]
        if bool(others.any()) or not bool((live[1:] == rows).all()):  # a query that sees nothing is padding
            return None
    return mask.new_zeros(num_keys, dtype=torch.bool) if keys is None else torch.as_tensor(keys)
