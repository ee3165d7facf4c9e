"""Every way to generate that the commands know by a name: dense, SparseD, the baselines and the key/value caches."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..checks import Checker
from ..generation.kv_cache import DelayedCache, DualCache, KVCachePolicy, PrefixCache
from ..generation.sampling import DreamSampler, LLaDASampler, Sampler
from ..kernels.config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ..models import ModelConfig


class _Named(NamedTuple):
    name: str  # in tables, and in `sparsed eval --methods`
    option: str  # the value of `generate --kv-cache` or of lm-eval's argument `sparse`
    kind: type[Sparse] | type[KVCachePolicy]


_NAMED = (
    _Named("SparseD", "sparsed", SparseConfig),
    _Named("sliding window", "sliding_window", SlidingWindow),
    _Named("StreamingLLM", "streaming_llm", StreamingLLM),
    _Named("dKV-Cache", "delayed", DelayedCache),
    _Named("prefix cache", "prefix", PrefixCache),
    _Named("dual cache", "dual", DualCache),
)
METHODS = ("dense", *(named.name for named in _NAMED))
CACHE_METHODS = tuple(named.name for named in _NAMED if issubclass(named.kind, KVCachePolicy))
SPARSE_KINDS = {named.option: named.kind for named in _NAMED if issubclass(named.kind, Sparse)}
CACHE_KINDS = {named.option: named.kind for named in _NAMED if issubclass(named.kind, KVCachePolicy)}

Preset = Literal["paper", "demo"]
_SINK_SHARE = 0.1


@dataclass(frozen=True)
class Method:
    """A way to generate.

    Attributes:
        name: One of METHODS, or the name of a variant.
        sparse: The sparse attention; None: dense.
        kv_cache: The key/value cache; None: every step computes all tokens. Not together with `sparse`.
        block_length: The block length of the sampler; None: the sampler stays as it is.
    """

    name: str
    sparse: Sparse | None = None
    kv_cache: KVCachePolicy | None = None
    block_length: int | None = None

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers, as plain values for a plan."""
        setting = self.sparse or self.kv_cache
        return {} if setting is None else {**settings_of(setting), "block_length": self.block_length}

    def sampler(self, sampler: Sampler, gen_length: int) -> Sampler:
        """Returns `sampler` with this method's block length if that divides the generation, else `sampler` itself."""
        if self.block_length is None or gen_length % self.block_length:
            return sampler
        return dataclasses.replace(sampler, block_length=self.block_length)  # type: ignore[type-var]


def settings_of(settings: Sparse | KVCachePolicy | Sampler) -> dict[str, Any]:
    """Returns the kind and the fields of a dataclass."""
    return {"kind": type(settings).__name__, **dataclasses.asdict(settings)}  # type: ignore[arg-type]


def slug(name: str) -> str:
    """Returns a method's name for the command line: "sliding-window" for "sliding window"."""
    return name.lower().replace(" ", "-")


def method_name(text: str) -> str:
    """Returns the name in METHODS that a text means: case, spaces, hyphens and underscores do not matter.

    Raises:
        TypeError: The name is not a text.
        ValueError: There is no such method.
    """
    Checker("method").text("name", text)
    known = {_letters(name): name for name in METHODS}
    if _letters(text) not in known:
        near = difflib.get_close_matches(_letters(text), known, n=1)
        hint = f" (did you mean {slug(known[near[0]])}?)" if near else ""
        raise ValueError(f"method: name is {text!r}, expected one of {', '.join(map(slug, METHODS))}{hint}")
    return known[_letters(text)]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def sparse_config(preset: Preset) -> SparseConfig:
    """Returns SparseD's settings as published: for long contexts, or blocks of 32 for a model with few heads."""
    return SparseConfig(
        skip=0.2, rho=0.3, block_size=128 if preset == "paper" else 32, min_length=0, generation="sparse"
    )


def window_of(preset: Preset, length: int) -> int:
    """Returns the tokens of the baselines' window.

    The paper has 256 below 2048 tokens and half of the length from there on; the demo has a quarter of the length.
    """
    if preset == "demo":
        return length // 4
    return 256 if length < 2048 else length // 2


def method(name: str, preset: Preset, length: int) -> Method:
    """Returns the method of that name, in any spelling that `method_name` knows, for prompts of `length` tokens.

    Raises:
        ValueError: There is no such method.

    Source: arXiv 2509.24014, section 5 and appendix.
    """
    name = method_name(name)
    config = sparse_config(preset)
    window, sinks = window_of(preset, length), int(length * _SINK_SHARE)
    # Fast-dLLM's block; answers of the demo model are shorter.
    block_length = 32 if preset == "paper" else 4
    known = {
        "dense": Method(name),
        "SparseD": Method(name, sparse=config),
        "sliding window": Method(name, sparse=SlidingWindow(window, config.block_size, config.generation)),
        "StreamingLLM": Method(name, sparse=StreamingLLM(window, sinks, config.block_size, config.generation)),
        "dKV-Cache": Method(name, kv_cache=DelayedCache()),
        "prefix cache": Method(name, kv_cache=PrefixCache(), block_length=block_length),
        "dual cache": Method(name, kv_cache=DualCache(), block_length=block_length),
    }
    return known[name]


def default_sampler(config: ModelConfig, preset: Preset) -> Sampler:
    """Returns the paper's sampler: for LLaDA one block, for Dream temperature 0.1 and top_p 0.9."""
    if config.family == "dream" and preset == "paper":
        return DreamSampler(temperature=0.1, top_p=0.9)
    return DreamSampler() if config.family == "dream" else LLaDASampler()
