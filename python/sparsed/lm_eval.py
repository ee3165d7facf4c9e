"""The model class of lm-evaluation-harness under its public name; the code is in `sparsed.apps.lm_eval`."""

from __future__ import annotations

from .apps.lm_eval import SparsedLM

__all__ = ["SparsedLM"]
