"""Checks the arguments of a forward pass and derives positions and masks from them, alike for every engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import even_array, id_array
from ..kernels import ops
from .config import ModelConfig

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Inputs(NamedTuple):
    """The checked inputs of a forward pass. B batch, l sequence length, P positions."""

    tokens: IntArray  # (B, l)
    positions: IntArray  # (P,), the positions whose logits are wanted
    position_ids: IntArray  # (B, l), the positions that RoPE uses
    key_mask: BoolArray | None  # (B, l)


def read_inputs(
    config: ModelConfig,
    ids: ArrayLike,
    positions: ArrayLike | None,
    position_ids: ArrayLike | None,
    key_mask: ArrayLike | None,
) -> Inputs:
    """Converts the arguments of `Transformer.forward` to arrays, with the defaults and errors described there."""
    tokens = _integers("ids", ids, (2,))
    if tokens.size == 0:
        raise ValueError(f"forward: ids has shape {list(tokens.shape)}, expected at least one token in [B, l]")
    _check_range("ids", tokens, config.vocab_size)
    batch, length = tokens.shape
    where = np.arange(length) if positions is None else _integers("positions", positions, (1,))
    _check_range("positions", where, length)
    mask = _key_mask(key_mask, batch, length)
    return Inputs(tokens, where, _position_ids(config, position_ids, mask, batch, length), mask)


def read_computed(computed: ArrayLike | None, kept: bool, length: int, positions: IntArray) -> IntArray:
    """Returns the positions of the tokens that a pass computes, (R,).

    `kept` says whether the caller passed key_values, which hold the keys and values of the other tokens.
    """
    if computed is None:
        return np.arange(length)
    if not kept:
        raise ValueError("forward: computed is given without key_values, expected both")
    found = _integers("computed", computed, (1,))
    _check_range("computed", found, length)
    if found.size == 0 or (np.diff(found) <= 0).any():
        raise ValueError("forward: computed is empty or out of order, expected ascending positions")
    missing = positions[~np.isin(positions, found)]
    if missing.size:
        raise ValueError(f"forward: positions has {missing[0]}, expected only positions among computed")
    return found


def require_same_mask(kept: BoolArray | None, key_mask: BoolArray | None) -> None:
    """Raises ValueError if `key_mask` differs from the one with which keys and values were kept."""
    same = kept is key_mask if kept is None or key_mask is None else np.array_equal(kept, key_mask)
    if not same:
        raise ValueError("forward: key_mask differs from that of the first call with these key_values")


def require_key_values(key_values: object, kind: type) -> None:
    """Raises TypeError unless `key_values` is None or what this engine's `new_key_values` returns."""
    if key_values is not None and not isinstance(key_values, kind):
        raise TypeError(
            f"forward: key_values is a {type(key_values).__module__}.{type(key_values).__name__}, expected what "
            "new_key_values of this model returns"
        )


def require_activations(config: ModelConfig, itemsize: int, num_tokens: int, num_logits: int) -> None:
    """Checks that the largest arrays of a forward pass fit: those around a layer's attention, and the logits.

    Raises:
        MemoryError: They do not fit into the available memory.
    """
    heads = 2 * (config.num_heads + config.num_kv_heads)  # q, k, v and the output
    per_token = (3 * config.hidden_size + heads * config.head_dim) * itemsize
    ops.require_memory(num_tokens * per_token + num_logits * config.vocab_size * 4, "forward: a sequence this long")


def _position_ids(
    config: ModelConfig, position_ids: ArrayLike | None, mask: BoolArray | None, batch: int, length: int
) -> IntArray:
    """Returns the positions that RoPE uses, (B, l)."""
    if position_ids is not None:
        given = _integers("position_ids", position_ids, (1, 2))
        if given.shape not in ((length,), (batch, length)):
            raise ValueError(
                f"forward: position_ids has shape {list(given.shape)}, expected [{batch}, {length}] or [{length}]"
            )
        _check_range("position_ids", given, None)
        return np.broadcast_to(given, (batch, length))
    if mask is not None and config.masked_positions:
        # Padding gets position 1, as in the published code; no real token attends to it.
        return np.where(mask, np.cumsum(mask, axis=1, dtype=np.int64) - 1, 1)
    return np.broadcast_to(np.arange(length), (batch, length))


def _integers(name: str, values: ArrayLike, dimensions: tuple[int, ...]) -> IntArray:
    array = id_array("forward", name, values)
    if array.ndim not in dimensions:
        expected = " or ".join(str(number) for number in dimensions)
        raise ValueError(f"forward: {name} has shape {list(array.shape)}, expected {expected} dimensions")
    return array.astype(np.int64)


def _check_range(name: str, values: IntArray, count: int | None) -> None:
    """Refuses values that are negative or not below `count`."""
    wrong = values < 0 if count is None else (values < 0) | (values >= count)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        expected = "at least 0" if count is None else f"0 ... {count - 1}"
        raise ValueError(f"forward: {name} is {values[index]} at {list(index)}, expected {expected}")


def _key_mask(key_mask: ArrayLike | None, batch: int, length: int) -> BoolArray | None:
    if key_mask is None:
        return None
    mask = even_array("forward", "key_mask", key_mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"forward: key_mask has dtype {mask.dtype}, expected bool")
    if mask.shape != (batch, length):
        raise ValueError(f"forward: key_mask has shape {list(mask.shape)}, expected [{batch}, {length}] (that of ids)")
    return mask
