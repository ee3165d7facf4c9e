"""Named sparse policies: the settings of ``generate(sparse=...)`` as their sources have them.

All of them apply to sequences of any length (``min_length=0``). ``dataclasses.replace`` changes a field, for instance
``replace(policies.sparsed(), rho=0.5, block_size=32)``.
"""

from __future__ import annotations

from ..checks import Checker
from .config import SlidingWindow, SparseConfig, StreamingLLM

__all__ = ["early", "reference", "sliding_window", "sparsed", "streaming"]


def sparsed() -> SparseConfig:
    """Returns SparseD as published: the first 20 % of the steps dense, then 30 % of the blocks of 128 in all rows.

    These are the paper's settings for long contexts; for short ones it has blocks of 32 and rho 0.5.

    Source: arXiv 2509.24014, sections 4 and 5.
    """
    return SparseConfig(skip=0.2, rho=0.3, block_size=128, generation="sparse", min_length=0)


def reference() -> SparseConfig:
    """Returns SparseD as its authors' code computes it, which differs from the paper.

    It selects two steps later, takes the top-k of all blocks and drops those of the generation among them, and selects
    the blocks of the generation by a softmax over the keys of the generation alone.

    Source: the code published with arXiv 2509.24014.
    """
    return SparseConfig(skip=0.2, rho=0.3, block_size=128, selection="reference", min_length=0)


def early() -> SparseConfig:
    """Returns this package's own policy: one selection, in step 0, while the rows of the generation stay dense.

    The rows of the generation need their attention anew in each step, and the rows of the prompt do not need the dense
    steps that SparseD begins with.

    Source: docs/quality.md of this package, measured on two small models. The rule of the selection is that of arXiv
    2509.24014, section 4.
    """
    return SparseConfig(skip=0.0, rho=0.3, block_size=128, generation="dense", min_length=0)


def sliding_window(length: int = 4096) -> SlidingWindow:
    """Returns the sliding window that SparseD is compared with.

    Args:
        length: Tokens of the sequence. Below 2,048 of them the window has 256 tokens, from there on half of them.

    Raises:
        TypeError, ValueError: ``length`` is not an integer of at least 1.

    Source: arXiv 2509.24014, section 5 and appendix.
    """
    Checker("policies.sliding_window").integer("length", length, low=1)
    return SlidingWindow(_window(length), generation="sparse")


def streaming(length: int = 4096) -> StreamingLLM:
    """Returns StreamingLLM as SparseD is compared with it: its window, and a tenth of the keys as sinks.

    Args:
        length: Tokens of the sequence, on which window and sinks depend as in ``sliding_window``.

    Raises:
        TypeError, ValueError: ``length`` is not an integer of at least 1.

    Source: arXiv 2309.17453, with the settings of arXiv 2509.24014, section 5 and appendix.
    """
    Checker("policies.streaming").integer("length", length, low=1)
    return StreamingLLM(_window(length), length // 10, generation="sparse")


def _window(length: int) -> int:
    return 256 if length < 2048 else length // 2
