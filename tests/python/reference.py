"""Attention, block scores and both selection rules in float64, written from the rules and not from the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Result = TypeVar("Result")


def remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keeps results by the contents of the arguments, because every backend is compared with the same ones."""
    kept: dict[Any, Result] = {}

    def key_of(value: Any) -> Any:
        return (value.shape, value.dtype.name, value.tobytes()) if isinstance(value, np.ndarray) else value

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Result:
        key = hash((*map(key_of, args), *((name, key_of(value)) for name, value in kwargs.items())))
        if key not in kept:
            kept[key] = function(*args, **kwargs)
        return kept[key]

    return call


def num_blocks(length: int, block_size: int) -> int:
    return -(-length // block_size)


def visible_keys(blocks: Array, block_size: int, q_len: int, kv_len: int) -> Array:
    """(B, H, q_blocks, kv_blocks) -> (B, H, L, S)."""
    return blocks.repeat(block_size, 2)[:, :, :q_len].repeat(block_size, 3)[..., :kv_len]


def scores(q: Array, k: Array, scale: float) -> Array:
    """(B, H, L, S); each key head serves H / H_kv query heads."""
    keys = k.astype(np.float64).repeat(q.shape[1] // k.shape[1], 1)
    return scale * (q.astype(np.float64) @ keys.swapaxes(2, 3))


def softmax(s: Array, visible: Array | bool = True) -> tuple[Array, Array]:
    """Probabilities and log-sum-exp over the visible keys: 0 and -inf in rows without one."""
    s = np.where(visible, s.astype(np.float64), -np.inf)
    peak = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), -1e300)
    weights = np.exp(s - peak)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (peak + np.log(total))[..., 0]
    return weights / np.where(total == 0, 1, total), lse


@remembered
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    blocks: Array | None = None,
    block_size: int = 0,
    scale: float | None = None,
    key_mask: Array | None = None,
) -> tuple[Array, Array]:
    """(out, lse) in float64; `blocks` (B, H, q_blocks, kv_blocks) bool."""
    s = scores(q, k, q.shape[3] ** -0.5 if scale is None else scale)
    visible = np.ones(s.shape, bool)
    if blocks is not None:
        visible &= visible_keys(blocks, block_size, q.shape[2], k.shape[2])
    if key_mask is not None:
        visible &= key_mask[:, None, None, :]
    p, lse = softmax(s, visible)
    return p @ v.astype(np.float64).repeat(q.shape[1] // v.shape[1], 1), lse


@remembered
def naive(q: Array, k: Array, v: Array) -> Array:
    """Attention as a user would write it in q's own dtype: each intermediate array is rounded to it."""
    dtype = q.dtype
    group = q.shape[1] // k.shape[1]

    def rounded(x: Array) -> Array:
        return x.astype(dtype).astype(np.float32)

    wide = [x.astype(np.float32).repeat(n, 1) for x, n in ((q, 1), (k, group), (v, group))]
    s = rounded(rounded(wide[0] @ wide[1].swapaxes(2, 3)) * np.float32(q.shape[3] ** -0.5))
    p = np.exp(s - s.max(-1, keepdims=True))
    p = rounded(p / p.sum(-1, keepdims=True))
    return rounded(p @ wide[2]).astype(dtype)


def block_mass(p: Array, block_size: int) -> Array:
    """(B, H, L, S) probabilities -> (B, H, q_blocks, kv_blocks) sums."""
    q_edges = np.arange(0, p.shape[2], block_size)
    kv_edges = np.arange(0, p.shape[3], block_size)
    return np.add.reduceat(np.add.reduceat(p, q_edges, 2), kv_edges, 3)


class Selection(NamedTuple):
    """mask: the blocks that a rule keeps; margin: how much mass, relative, keeps the row's choice from another one."""

    mask: Array  # (B, H, q_blocks, kv_blocks)
    margin: Array  # (B, H, q_blocks)


def _top(mass: Array, live: Array, keep: Array, rho: float, mask: Array, margin: Array) -> None:
    """Marks the top-k of the live blocks of each row, as far as `keep` allows them."""
    n = int(live.sum())
    count = min(n, max(1, int(n * rho) + 1)) if n else 0
    candidates = np.flatnonzero(live)
    for row in np.ndindex(mass.shape[:-1]):
        order = candidates[np.argsort(-mass[row][candidates], kind="stable")]
        chosen = order[:count]
        mask[row][chosen[keep[chosen]]] = True
        if 0 < count < n:
            lowest, next_one = mass[row][order[count - 1]], mass[row][order[count]]
            gap = (lowest - next_one) / lowest if lowest > 0 else 0.0
            margin[row] = min(margin[row], gap)


@remembered
def select(
    q: Array,
    k: Array,
    *,
    prompt_length: int,
    block_size: int,
    rho: float,
    selection: str,
    generation: str,
    scale: float | None = None,
    key_mask: Array | None = None,
) -> Selection:
    batch, heads, length, head_dim = q.shape
    n = num_blocks(length, block_size)
    none = n if selection == "paper" and prompt_length == length else n - 1  # nothing is generated
    last = next((i for i in range(n) if length - i * block_size <= length - prompt_length), none)
    s = scores(q, k, head_dim**-0.5 if scale is None else scale)
    keys = np.ones((batch, length), bool) if key_mask is None else key_mask
    visible = np.broadcast_to(keys[:, None, None, :], s.shape)
    everything = block_mass(softmax(s, visible)[0], block_size)
    generated = block_mass(softmax(s, visible & (np.arange(length) >= last * block_size))[0], block_size)

    mask = np.zeros((batch, heads, n, n), bool)
    margin = np.full((batch, heads, n), np.inf)
    is_prompt = np.arange(n) < last
    for b in range(batch):
        live = np.logical_or.reduceat(keys[b], np.arange(0, length, block_size))
        if selection == "paper":
            _top(everything[b], live & is_prompt, is_prompt, rho, mask[b], margin[b])
            _top(everything[b], live & ~is_prompt, ~is_prompt, rho, mask[b], margin[b])
        else:
            _top(everything[b], live, is_prompt, rho, mask[b], margin[b])
            _top(generated[b], live & ~is_prompt, ~is_prompt, rho, mask[b], margin[b])
    if generation == "dense":
        for i in range(n):
            if min((i + 1) * block_size, length) > prompt_length:  # the block's last query is a generation token
                mask[:, :, i], margin[:, :, i] = True, np.inf
    return Selection(mask, margin)
