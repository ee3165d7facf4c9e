"""`SparsedLM`: sparsed as a model of EleutherAI's lm-evaluation-harness; `sparsed lm-eval` runs its command line."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence

from .model import SparsedLM

_log = logging.getLogger(__name__)

__all__ = ["SparsedLM", "main"]


def main(arguments: Sequence[str]) -> int:
    """lm-eval's command line, with the model "sparsed"."""
    from lm_eval.__main__ import cli_evaluate

    line = " ".join(arguments)
    if re.search(r"(^| )--seed\b", line) and not re.search(r"[ ,]seed=", line):
        _log.warning(
            "--seed changes examples and orders, but not sampling and masks: --model_args seed=N does "
            "(seed=None makes them follow --seed)"
        )
    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0
