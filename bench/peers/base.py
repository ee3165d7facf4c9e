"""The interface of a peer, which is another implementation of something that sparsed computes."""

from __future__ import annotations

from ..arrays import Array, Blocks
from ..harness import Contender


class SkipError(Exception):
    """Says why a peer does not take part."""


class Peer:
    """An implementation of some tasks.

    A method returns a contender, or None if the peer does not have this task, or raises SkipError.
    """

    name = ""
    # Whether its linear layers round x and the weight to int8.
    int8 = False

    def why_not(self) -> str | None:
        """Returns why the peer cannot run here, or None if it can."""
        raise NotImplementedError

    def version(self) -> str:
        """Returns the name and version of the library."""
        raise NotImplementedError

    def dense(self, q: Array, k: Array, v: Array) -> Contender | None:
        """Returns a contender for attention over all keys."""
        return None

    def sparse(self, q: Array, k: Array, v: Array, blocks: Blocks) -> Contender | None:
        """Returns a contender for attention over the selected blocks, after the untimed planning and compiling."""
        return None

    def linear(self, x: Array, weight: Array) -> Contender | None:
        """Returns a contender for x weight^T."""
        return None
