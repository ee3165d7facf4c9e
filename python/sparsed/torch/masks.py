"""The attention masks of torch and transformers as key masks."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["key_mask"]

# Added to a score, this leaves nothing of it after the softmax; models write -inf or the least number of a dtype.
_HIDDEN = -1e4

# The layers of a forward pass share one mask. Mask -> its version, and what came of it.
_known = WeakTensorKeyDictionary()


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
    if mask.is_inference():  # has no version: may have been written to since
        return _key_mask(function, mask, batch)
    if mask not in _known or _known[mask][0] != (mask._version, batch):
        _known[mask] = ((mask._version, batch), _key_mask(function, mask, batch))
    keys: torch.Tensor | None = _known[mask][1]
    return keys


def _key_mask(function: str, mask: torch.Tensor, batch: int) -> torch.Tensor | None:
    live = _live(function, mask)
    if live.dim() == 4:
        live = _same_for_all(function, live)
    if live.dim() != 2:
        raise ValueError(f"{function}: mask has shape {list(mask.shape)}, expected [batch, keys] or 4 axes")
    return None if bool(live.all()) else live.expand(batch, -1)


def _live(function: str, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise TypeError(f"{function}: mask has dtype {mask.dtype}, expected bool or a float that is added to scores")
    live = mask == 0
    if not bool((live | (mask <= _HIDDEN)).all()):
        raise ValueError(f"{function}: mask is a bias on the scores, expected 0 (seen) and -inf (hidden) alone")
    return live


def _same_for_all(function: str, live: torch.Tensor) -> torch.Tensor:
    """(B or 1, S) out of (B or 1, H or 1, L or 1, S)."""
    rows = live[:, :1]
    keys = rows.any(dim=2, keepdim=True)
    padding = ~rows.any(dim=3, keepdim=True)
    if not (torch.equal(rows.expand_as(live), live) and bool(((rows == keys) | padding).all())):
        raise ValueError(
            f"{function}: mask {list(live.shape)} hides different keys from different queries or heads, expected a "
            "padding mask (a causal model or a KV cache cannot run here)"
        )
    return keys[:, 0, 0]
