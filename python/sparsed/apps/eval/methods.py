"""What is compared: dense attention, SparseD and the baselines, in the paper's settings or the demo model's."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from ...checks import Checker
from ...config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ...generation.kv_cache import DelayedCache, DualCache, KVCachePolicy, PrefixCache
from ...generation.sampling import DreamSampler, LLaDASampler, Sampler
from ...models import ModelConfig

Preset = Literal["paper", "demo"]
CACHE_METHODS = ("dKV-Cache", "prefix cache", "dual cache")
METHODS = ("dense", "SparseD", "sliding window", "StreamingLLM", *CACHE_METHODS)
_SINK_SHARE = 0.1


@dataclass(frozen=True)
class Method:
    """A way to generate: at most one of `sparse` and `cache`; neither is dense. block_length: the sampler's."""

    name: str
    sparse: Sparse | None = None
    kv_cache: KVCachePolicy | None = None
    block_length: int | None = None

    def settings(self) -> dict[str, Any]:
        """What the method does, by plain values for a plan."""
        part = self.sparse or self.kv_cache
        return {} if part is None else {**settings_of(part), "block_length": self.block_length}

    def sampler(self, sampler: Sampler, gen_length: int) -> Sampler:
        """`sampler` with this method's blocks, where they divide the generation."""
        if self.block_length is None or gen_length % self.block_length:
            return sampler
        return dataclasses.replace(sampler, block_length=self.block_length)  # type: ignore[type-var]


def settings_of(part: Sparse | KVCachePolicy | Sampler) -> dict[str, Any]:
    """The kind and the fields of a dataclass."""
    return {"kind": type(part).__name__, **dataclasses.asdict(part)}  # type: ignore[arg-type]


def slug(name: str) -> str:
    """A method's name for the command line: "sliding-window" for "sliding window"."""
    return name.lower().replace(" ", "-")


def method_name(text: str) -> str:
    """The name in METHODS that a text means: case, spaces, hyphens and underscores do not matter.

    Raises:
        TypeError: It is not a text.
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
    """SparseD's settings: the paper's for long contexts, or blocks of 32 for a model of few heads."""
    return SparseConfig(skip=0.2, rho=0.3, block_size=128 if preset == "paper" else 32, min_length=0)


def window_of(preset: Preset, length: int) -> int:
    """Tokens of the baselines' window. Paper: 256 below 2048 tokens, else half of them; demo: a quarter."""
    if preset == "demo":
        return length // 4
    return 256 if length < 2048 else length // 2


def method(name: str, preset: Preset, length: int) -> Method:
    """The method of that name, in any spelling that `method_name` knows, for prompts of `length` tokens.

    Raises:
        ValueError: There is no such method.

    Source: arXiv 2509.24014, section 5 and appendix.
    """
    config = sparse_config(preset)
    window, sinks = window_of(preset, length), int(length * _SINK_SHARE)
    # Fast-dLLM's block; answers of the demo model are shorter.
    block_length = 32 if preset == "paper" else 4
    known = {
        "dense": Method("dense"),
        "SparseD": Method("SparseD", sparse=config),
        "sliding window": Method("sliding window", sparse=SlidingWindow(window, config.block_size)),
        "StreamingLLM": Method("StreamingLLM", sparse=StreamingLLM(window, sinks, config.block_size)),
        "dKV-Cache": Method("dKV-Cache", kv_cache=DelayedCache()),
        "prefix cache": Method("prefix cache", kv_cache=PrefixCache(), block_length=block_length),
        "dual cache": Method("dual cache", kv_cache=DualCache(), block_length=block_length),
    }
    return known[method_name(name)]


def default_sampler(config: ModelConfig, preset: Preset) -> Sampler:
    """The paper's sampler: LLaDA in one block; Dream at temperature 0.1 and top_p 0.9."""
    if config.family == "dream" and preset == "paper":
        return DreamSampler(temperature=0.1, top_p=0.9)
    return DreamSampler() if config.family == "dream" else LLaDASampler()
