"""SparseD block-sparse attention for diffusion language models, on the CPU and without torch.

Start with ``attention`` and ``BlockPattern`` for the kernels, with ``load_model`` and ``generate`` for text.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from .apps import pictures as _pictures  # noqa: F401  # registers the methods that draw
from .checks import SparsedWarning
from .generation.generate import generate
from .generation.kv_cache import DelayedCache, DualCache, PrefixCache
from .generation.preset import preset
from .generation.prompts import pad_left
from .generation.result import GenerationResult, StepInfo
from .generation.sampling import DreamSampler, LLaDASampler, MDLMSampler
from .generation.stats import GenerationStats, StepStats
from .kernels import ops, policies
from .kernels.attention import Backend, active_backend, attention, backends, get_num_threads, set_num_threads
from .kernels.config import SlidingWindow, SparseConfig, StreamingLLM
from .kernels.own_selection import BlockGeometry
from .kernels.packed_key_values import PackedKeyValues
from .kernels.pattern import BlockPattern
from .kernels.pattern_cache import PatternCache
from .kernels.selection import attention_and_select, recall, select
from .models.loader import load_model
from .models.quantize import quantize
from .models.tokenizer import Tokenizer, load_tokenizer

try:
    __version__ = _version("sparsed")
except _PackageNotFoundError:  # imported from a build folder
    __version__ = "unknown"

__all__ = [
    "Backend",
    "BlockGeometry",
    "BlockPattern",
    "DelayedCache",
    "DreamSampler",
    "DualCache",
    "GenerationResult",
    "GenerationStats",
    "LLaDASampler",
    "MDLMSampler",
    "PackedKeyValues",
    "PatternCache",
    "PrefixCache",
    "SlidingWindow",
    "SparseConfig",
    "SparsedWarning",
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
    "ops",
    "pad_left",
    "policies",
    "preset",
    "quantize",
    "recall",
    "select",
    "set_num_threads",
]
