"""Presets: arguments of `generate` that belong together, each with what it changes and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ..checks import Checker
from ..kernels.config import SparseConfig
from .kv_cache import DualCache
from .sampling import SAMPLERS, Sampler

if TYPE_CHECKING:
    from ..models import Model
    from ..models.tokenizer import Tokenizer

# The decoding blocks of the published code, which are also those of its measurements.
_BLOCK_LENGTH = 32


def preset(name: str, tokenizer_or_model: Tokenizer | Model) -> dict[str, Any]:
    """Returns keyword arguments for `generate`.

    exact: The text, up to its end, is that of `generate` without them, with dense attention. A row ends when its end
        token is set and nothing before it is open (`stop`), which saves steps if the sampler works in blocks.

    balanced: Blocks of 32 tokens; a step sets every token of the block whose probability is at least 0.95 (`steps` is
        not used). The step that begins a block computes all tokens, the others those of the block (DualCache). In the
        first one the pattern of SparseD is selected, with 30 % of the key blocks; the later ones use it for the rows of
        the prompt, while those of the generation attend to everything. Sequences below 2,048 tokens stay dense. A row
        ends with its end token.

    fast: As balanced, but the probability is at least 0.9, as Fast-dLLM has it, and only the first block computes all
        tokens; later ones reuse the keys and values of the prompt, and attention is dense. Such a cache without
        refreshes costs LLaDA-8B points on long prompts (Fast-dLLM's lost 13 of RULER's at 8k), although it costs the
        small models of docs/quality.md none.

    What was measured is in docs/quality.md (answers) and docs/performance.md (seconds).

    Args:
        name: "exact", "balanced" or "fast".
        tokenizer_or_model: What `load_tokenizer` or `load_model` returns: the end tokens and the model's family come
            from it. The tokenizer may know more end tokens than the model.

    Raises:
        ValueError: `name` is unknown, or the tokenizer comes from a folder without a model.
        TypeError: The second argument is neither a tokenizer nor a model.

    Example:
        >>> from sparsed.demo import demo_model_folder
        >>> model, tokenizer = load_model(demo_model_folder()), load_tokenizer(demo_model_folder())
        >>> question = "question : what are the magic numbers for zileba ?"
        >>> prompt = tokenizer.chat(f"the magic number for zileba is 107 . {question}")
        >>> result = generate(model, prompt, gen_length=32, steps=32, **preset("balanced", tokenizer))
        >>> tokenizer.text(result.generated[0]), result.stats.forwards < 10
        ('zileba is 107 ;', True)
    """
    Checker("preset").choice("name", name, PRESETS)
    config = getattr(tokenizer_or_model, "config", tokenizer_or_model)
    if not hasattr(config, "end_token_ids") or not hasattr(config, "family"):
        raise TypeError(
            f"preset: tokenizer_or_model is a {type(tokenizer_or_model).__name__}, expected what load_tokenizer or "
            "load_model returns"
        )
    if config.family not in SAMPLERS:
        raise ValueError(
            "preset: the tokenizer comes from a folder without a model that load_model reads, expected the model"
        )
    return {**_PRESETS[name](config.family), "stop": tuple(config.end_token_ids)}


def _sure_tokens(family: str, threshold: float) -> Sampler:
    sampler: Any = SAMPLERS[family]
    return cast(Sampler, sampler(block_length=_BLOCK_LENGTH, threshold=threshold))


def _exact(family: str) -> dict[str, Any]:
    return {}


def _balanced(family: str) -> dict[str, Any]:
    return {
        "sampler": _sure_tokens(family, 0.95),
        "kv_cache": DualCache(),
        "sparse": SparseConfig(skip=0, rho=0.3, generation="dense"),
    }


def _fast(family: str) -> dict[str, Any]:
    return {"sampler": _sure_tokens(family, 0.9), "kv_cache": DualCache(refresh_every=None)}


_PRESETS: dict[str, Callable[[str], dict[str, Any]]] = {"exact": _exact, "balanced": _balanced, "fast": _fast}
PRESETS = tuple(_PRESETS)
