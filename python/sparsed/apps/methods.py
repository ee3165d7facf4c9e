"""Every way to generate that the commands know by a name: dense, SparseD, baselines, key/value caches, presets."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..checks import Checker
from ..generation.kv_cache import DelayedCache, DualCache, KVCachePolicy, PrefixCache
from ..generation.preset import PRESETS, preset
from ..generation.sampling import SAMPLERS, DreamSampler, Sampler
from ..kernels import policies
from ..kernels.config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ..kernels.own_selection import name_of
from ..models import Model, ModelConfig
from ..models.tokenizer import Tokenizer


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
_BOTH = "SparseD + cache"
METHODS = ("dense", *(named.name for named in _NAMED), _BOTH)
SPARSE_KINDS = {named.option: named.kind for named in _NAMED if issubclass(named.kind, Sparse)}
CACHE_KINDS = {named.option: named.kind for named in _NAMED if issubclass(named.kind, KVCachePolicy)}

# Settings of the methods: those of the paper for long contexts, or smaller blocks and windows for the demo model.
Scale = Literal["paper", "demo"]
_SINK_SHARE = 0.1


@dataclass(frozen=True)
class Method:
    """A way to generate.

    Attributes:
        name: One of METHODS or PRESETS, or the name of a variant.
        sparse: The sparse attention; None: dense.
        kv_cache: The key/value cache; None: every step computes all tokens.
        block_length: The block length of the sampler; None: the sampler stays as it is.
        own_sampler: The method's own sampler; None: that of the run.
        stop: The tokens that end a row; None: as `generate` chooses them.
    """

    name: str
    sparse: Sparse | None = None
    kv_cache: KVCachePolicy | None = None
    block_length: int | None = None
    own_sampler: Sampler | None = None
    stop: tuple[int, ...] | None = None

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers, as plain values for a plan."""
        parts = {"sparse": self.sparse, "kv_cache": self.kv_cache, "sampler": self.own_sampler}
        found: dict[str, Any] = {name: settings_of(part) for name, part in parts.items() if part is not None}
        values = {"block_length": self.block_length, "stop": self.stop}
        return found | {name: value for name, value in values.items() if value is not None}

    def sampler(self, sampler: Sampler, gen_length: int) -> Sampler:
        """Returns the method's own sampler, or `sampler` with its block length if that divides the generation."""
        if self.own_sampler is not None:
            return self.own_sampler
        if self.block_length is None or gen_length % self.block_length:
            return sampler
        return dataclasses.replace(sampler, block_length=self.block_length)  # type: ignore[type-var]


def settings_of(settings: Sparse | KVCachePolicy | Sampler) -> dict[str, Any]:
    """Returns the kind and the fields of a dataclass."""
    fields = dataclasses.asdict(settings)  # type: ignore[arg-type]
    if callable(fields.get("selection")):
        fields["selection"] = name_of(fields["selection"])
    return {"kind": type(settings).__name__, **fields}


def made_cache(option: str, fields: Mapping[str, Any]) -> KVCachePolicy:
    """Returns the cache of this option. A command line has no None, so that 0 stands for it in `refresh_every`."""
    never = {"refresh_every": None} if fields.get("refresh_every") == 0 else {}
    return CACHE_KINDS[option](**{**fields, **never})


def changed_sampler(sampler: Sampler, fields: Mapping[str, Any]) -> Sampler:
    """Returns `sampler` with other fields. A rule among them takes the place of the sampler's own rule."""
    rules = {"threshold": None, "factor": None, "entropy_bound": None}
    replaced = rules if rules.keys() & fields.keys() else {}
    return dataclasses.replace(sampler, **replaced | dict(fields))  # type: ignore[type-var]


def slug(name: str) -> str:
    """Returns a method's name for the command line: "sliding-window" for "sliding window"."""
    return name.lower().replace(" + ", "-").replace(" ", "-")


def method_name(text: str) -> str:
    """Returns the name in METHODS or PRESETS that a text means: case, spaces, hyphens and underscores do not matter.

    Raises:
        TypeError: The name is not a text.
        ValueError: There is no such method.
    """
    Checker("method").text("name", text)
    known = {_letters(name): name for name in (*METHODS, *PRESETS)}
    if _letters(text) not in known:
        near = difflib.get_close_matches(_letters(text), known, n=1)
        hint = f" (did you mean {slug(known[near[0]])}?)" if near else ""
        raise ValueError(f"method: name is {text!r}, expected one of {', '.join(map(slug, known.values()))}{hint}")
    return known[_letters(text)]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def sparse_config(scale: Scale) -> SparseConfig:
    """Returns SparseD's settings as published: for long contexts, or blocks of 32 for a model with few heads."""
    published = policies.sparsed()
    return published if scale == "paper" else dataclasses.replace(published, block_size=32)


def window_of(scale: Scale, length: int) -> int:
    """Returns the tokens of the baselines' window.

    The paper has 256 below 2048 tokens and half of the length from there on; the demo has a quarter of the length.
    """
    if scale == "demo":
        return length // 4
    return policies.sliding_window(length).window


def method(
    name: str,
    scale: Scale,
    length: int,
    *,
    sparse: SparseConfig | None = None,
    source: Tokenizer | Model | None = None,
) -> Method:
    """Returns the method of that name, in any spelling that `method_name` knows.

    Args:
        name: One of METHODS or PRESETS.
        scale: The settings of the methods; presets have their own.
        length: Tokens of the prompts, on which windows depend.
        sparse: SparseD's settings; None: those of the scale.
        source: What presets are made for, see `sparsed.preset`.

    Raises:
        ValueError: `name` is unknown, or it names a preset and `source` is None.

    Source: arXiv 2509.24014, section 5 and appendix.
    """
    name = method_name(name)
    if name in PRESETS:
        if source is None:
            raise ValueError(f"method: name is {name!r} and source is None, expected the tokenizer or the model")
        given = preset(name, source)
        return Method(name, given.get("sparse"), given.get("kv_cache"), None, given.get("sampler"), given["stop"])
    config = sparse or sparse_config(scale)
    window, sinks = window_of(scale, length), int(length * _SINK_SHARE)
    # Fast-dLLM's block; answers of the demo model are shorter.
    block_length = 32 if scale == "paper" else 4
    known = {
        "dense": Method(name),
        "SparseD": Method(name, sparse=config),
        "sliding window": Method(name, sparse=SlidingWindow(window, config.block_size, config.generation)),
        "StreamingLLM": Method(name, sparse=StreamingLLM(window, sinks, config.block_size, config.generation)),
        "dKV-Cache": Method(name, kv_cache=DelayedCache()),
        "prefix cache": Method(name, kv_cache=PrefixCache(), block_length=block_length),
        "dual cache": Method(name, kv_cache=DualCache(), block_length=block_length),
        # Only passes over all tokens can be sparse, and they are few: the first one selects.
        _BOTH: Method(name, dataclasses.replace(config, skip=0, generation="dense"), DualCache(), block_length),
    }
    return known[name]


def default_sampler(config: ModelConfig, scale: Scale) -> Sampler:
    """Returns the paper's sampler: for Dream temperature 0.1 and top_p 0.9, for other families one block."""
    if config.family == "dream" and scale == "paper":
        return DreamSampler(temperature=0.1, top_p=0.9)
    return SAMPLERS[config.family]()
