"""SparseD block-sparse attention for diffusion language models, on the CPU and without torch.

Start with ``attention`` and ``BlockPattern`` for the kernels, with ``load_model`` and ``generate`` for text.
"""

from __future__ import annotations

from importlib.metadata import version as _version

from .attention import (
    Backend,
    active_backend,
    attention,
    attention_and_select,
    backends,
    get_num_threads,
    select,
    set_num_threads,
)
from .config import SlidingWindow, SparseConfig, StreamingLLM
from .generate import generate
from .kv_cache import DelayedCache, DualCache, PrefixCache
from .loader import load_model
from .pattern import BlockPattern, PatternCache
from .prompts import pad_left
from .result import GenerationResult, StepInfo
from .sampling import DreamSampler, LLaDASampler
from .stats import GenerationStats, StepStats
from .tokenizer import Tokenizer, load_tokenizer

__version__ = _version("sparsed")

__all__ = [
    "Backend",
    "BlockPattern",
    "DelayedCache",
    "DreamSampler",
    "DualCache",
    "GenerationResult",
    "GenerationStats",
    "LLaDASampler",
    "PatternCache",
    "PrefixCache",
    "SlidingWindow",
    "SparseConfig",
    "StepInfo",
    "StepStats",
    "StreamingLLM",
    "Tokenizer",
    "__version__",
    "active_backend",
    "attention",
    "attention_and_select",
    "backends",
    "generate",
    "get_num_threads",
    "load_model",
    "load_tokenizer",
    "pad_left",
    "select",
    "set_num_threads",
]
