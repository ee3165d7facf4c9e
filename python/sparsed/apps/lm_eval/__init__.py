"""`SparsedLM`: sparsed as a model of EleutherAI's lm-evaluation-harness; `sparsed lm-eval` runs its command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .model import SparsedLM

__all__ = ["SparsedLM", "main"]


def main(arguments: Sequence[str]) -> int:
    """lm-eval's command line, with the model "sparsed"."""
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0
