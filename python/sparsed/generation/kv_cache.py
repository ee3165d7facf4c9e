"""Cached decoding: a step computes some of the tokens and reuses the keys and values that the others last had.

These are the policies of `generate(..., kv_cache=...)`.

B batch rows, l tokens, T steps; positions count from the first real token.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import Checker, store_plain_numbers

__all__ = ["DelayedCache", "DualCache", "KVCachePolicy", "KVCacheSchedule", "PrefixCache"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Forward:
    """The next forward pass of one batch row.

    Attributes:
        number: Forward passes since the last block that began with all tokens: 0 in the first one.
        length: l.
        block: The first position of the sampler's block, and the one behind it.
        masked_before: (n,) ascending, the positions that were masked when the forward pass before this one began.
        shift: 1 where logits predict the next token (Dream), else 0.
    """

    number: int
    length: int
    block: tuple[int, int]
    masked_before: IntArray
    shift: int


@dataclass(frozen=True)
class KVCachePolicy(abc.ABC):
    """Decides when a forward pass computes every token: where the sampler begins a block, and at refreshes.

    Attributes:
        refresh: Every token is also computed in each `refresh`-th forward pass after that; None: in no other.
        refresh_every: The sampler's blocks from one that begins with all tokens to the next. 1, the published rule, is
            every block; None: only the first one, so that there is one such pass in all. What the block before
            changed last is then computed with the first tokens of the new block.

    Raises:
        TypeError, ValueError: A field of another type or outside its range.
    """

    refresh: int | None = None
    refresh_every: int | None = 1

    def __post_init__(self) -> None:
        """Checks the fields and stores plain Python integers."""
        check = Checker(type(self).__name__)
        check.integer("refresh", self.refresh, low=1, optional=True)
        check.integer("refresh_every", self.refresh_every, low=1, optional=True)
        store_plain_numbers(self)

    def begins_full(self, block_number: int) -> bool:
        """Returns whether the sampler's block with this number, from 0, begins with a pass over every token."""
        return block_number == 0 or (self.refresh_every is not None and block_number % self.refresh_every == 0)

    def is_full(self, forward: Forward) -> bool:
        """Returns whether every token is computed."""
        return forward.number == 0 or (self.refresh is not None and forward.number % self.refresh == 0)

    @abc.abstractmethod
    def positions(self, forward: Forward) -> IntArray:
        """Returns the positions to compute if not all of them are."""


@dataclass(frozen=True)
class PrefixCache(KVCachePolicy):
    """Fast-dLLM's prefix cache: computes the sampler's block and what follows it; what precedes it is cached.

    With one block (`block_length` None) that is the prompt.

    Attributes:
        refresh, refresh_every: See KVCachePolicy; the published code has None and 1.

    Source: arXiv 2505.22618; NVlabs/Fast-dLLM, generate_with_prefix_cache. Its blocks for Dream are
        DreamSampler(block_length=...).
    """

    def positions(self, forward: Forward) -> IntArray:
        """Returns the positions from the block on."""
        return np.arange(forward.block[0], forward.length)


@dataclass(frozen=True)
class DualCache(KVCachePolicy):
    """Fast-dLLM's dual cache: computes the sampler's block; what precedes and what follows it is cached.

    Attributes:
        refresh, refresh_every: See KVCachePolicy; the published code has None and 1.

    Source: arXiv 2505.22618; NVlabs/Fast-dLLM, generate_with_dual_cache.
    """

    def positions(self, forward: Forward) -> IntArray:
        """Returns the positions of the block."""
        return np.arange(*forward.block)


@dataclass(frozen=True)
class DelayedCache(KVCachePolicy):
    """dKV-Cache-Decode: a token is cached one step after it was unmasked.

    In this way a LLaDA token is computed once as itself. A Dream token is so only if the one before it is computed,
    because Dream's rule counts the positions whose logits predict a token. A forward pass computes the tokens that were
    masked when the one before it began (Dream: those whose logits predict them). LLaDA computes every token in the
    second forward pass of a block too, as its published code does.

    Attributes:
        refresh, refresh_every: See KVCachePolicy; the published examples have 2 ... 16 and 1.

    Source: arXiv 2505.15781; horseee/dKV-Cache, llada_dkv_cache_decode.py and, with shift_type "un",
        dream_generation_utils.py.
    """

    refresh: int | None = 8

    def is_full(self, forward: Forward) -> bool:
        """Returns whether every token is computed."""
        return super().is_full(forward) or (forward.number == 1 and not forward.shift)

    def positions(self, forward: Forward) -> IntArray:
        """Returns the positions that were masked when the forward pass before this one began."""
        return forward.masked_before - forward.shift


class KVCacheSchedule:
    """Which positions of one batch row each forward pass computes, and the keys and values of the others.

    Args:
        policy: What is computed when.
        key_values: What the model's `new_key_values` returns.
        length: l.
        shift: 1 where logits predict the next token, else 0.
    """

    def __init__(self, policy: KVCachePolicy, key_values: Any, length: int, shift: int) -> None:
        self.policy = policy
        self.key_values = key_values
        self._length = length
        self._shift = shift
        self._block = (-1, -1)
        self._block_number = -1
        self._number = 0
        self._masked = np.empty(0, np.int64)

    def next_positions(self, block: tuple[int, int], masked: IntArray, wanted: IntArray) -> IntArray:
        """Returns the positions that the next forward pass computes, ascending.

        Args:
            block: The first position of the sampler's block, and the one behind it.
            masked: (n,) ascending, the positions that are masked now.
            wanted: Positions whose logits are needed; they are always computed.
        """
        new_block = block != self._block
        self._block_number += new_block
        self._number = 0 if new_block and self.policy.begins_full(self._block_number) else self._number + 1
        forward = Forward(self._number, self._length, block, self._masked, self._shift)
        self._block, self._masked = block, masked
        if self.policy.is_full(forward):
            return np.arange(self._length)
        needed = np.union1d(self.policy.positions(forward), wanted)
        if new_block:  # tokens of the block before that were set in its last pass have not been computed as themselves
            needed = np.union1d(needed, np.setdiff1d(forward.masked_before, masked))
        return needed
