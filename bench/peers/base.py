"""What a peer is: another implementation of what sparsed computes."""

from __future__ import annotations

from ..arrays import Array, Blocks
from ..harness import Contender


class SkipError(Exception):
    """The peer does not take part; the message says why."""


class Peer:
    """One implementation. A method gives a contender, None where that is not the peer's task, or raises SkipError."""

    name = ""

    def why_not(self) -> str | None:
        """Why it cannot run here; None: it can."""
        raise NotImplementedError

    def version(self) -> str:
        """Of the library."""
        raise NotImplementedError

    def dense(self, q: Array, k: Array, v: Array) -> Contender | None:
        """Attention over all keys."""
        return None

    def sparse(self, q: Array, k: Array, v: Array, blocks: Blocks) -> Contender | None:
        """Attention over the selected blocks. Planning and compiling are done here and are not timed."""
        return None

    def linear(self, x: Array, weight: Array) -> Contender | None:
        """X weight^T."""
        return None
