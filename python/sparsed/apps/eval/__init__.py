"""Proof of quality: RULER-style tasks, methods, scores, likelihood, ablation; `sparsed eval | ablate | heads`."""

from __future__ import annotations

from ..methods import METHODS, Method, method
from .ablation import ablations
from .heads import HeadReport, head_report
from .jsonl import read_samples, write_samples
from .likelihood import Likelihood, likelihood
from .records import Log
from .report import Row, summarise, table, write_report
from .runner import Question, Record, run
from .scoring import Interval, accuracy, bootstrap, paired_difference, score
from .styles import RulerStyle, SmallStyle, Style
from .tasks import Sample, TaskSet

__all__ = [
    "METHODS",
    "HeadReport",
    "Interval",
    "Likelihood",
    "Log",
    "Method",
    "Question",
    "Record",
    "Row",
    "RulerStyle",
    "Sample",
    "SmallStyle",
    "Style",
    "TaskSet",
    "ablations",
    "accuracy",
    "bootstrap",
    "head_report",
    "likelihood",
    "method",
    "paired_difference",
    "read_samples",
    "run",
    "score",
    "summarise",
    "table",
    "write_report",
    "write_samples",
]
