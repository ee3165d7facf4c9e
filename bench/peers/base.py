"""The interface of a peer, which is another implementation of something that sparsed computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..arrays import Array, Blocks
from ..harness import Contender

# How much logits may differ from those in float32, relative to their size, and if x is rounded to int8 with one scale
# per token or for all tokens.
TOLERANCE = 0.05
INT8_TOLERANCE = 0.1


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


@dataclass(frozen=True)
class Pass:
    """A model's forward pass over all tokens of a sequence, by one implementation.

    Attributes:
        contender: The name of the implementation.
        weights: The type of its weights.
        attention: How it computes attention.
        run: Takes the token ids, (1, l) int64, and returns the logits of every position, (l, V) float32.
        weights_nbytes: The bytes of the weights of the linear layers, the embedding and the norms.
        density: The share of the (query, key) pairs that attention computes.
        tolerance: The largest difference of its logits from those in float32, relative to their size, or None for a
            sparse pass, which computes something else.
        versions: The versions of packages that the description of the machine does not name.
    """

    contender: str
    weights: str
    attention: str
    run: Callable[[NDArray[np.int64]], Array]
    weights_nbytes: int
    density: float = 1.0
    tolerance: float | None = TOLERANCE
    versions: Mapping[str, str] = field(default_factory=dict)
