"""The arguments of `SparsedLM`, among them those of samplers, of sparse attention and of lm-eval's `hf` backend."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from ...checks import Checker
from ...generation.kv_cache import KVCachePolicy
from ...generation.preset import preset
from ...generation.sampling import SAMPLERS, Sampler
from ...kernels.config import Sparse
from ...models import Model
from ...models.tokenizer import Tokenizer
from .. import cli_options
from ..methods import CACHE_KINDS, SPARSE_KINDS, changed_sampler, made_cache

_log = logging.getLogger(__name__)

# Arguments of the hf backend: the values that mean the same here, and advice for all others.
_OF_HF: dict[str, tuple[tuple[Any, ...], str]] = {
    "trust_remote_code": ((None, False, True), ""),  # no code of a checkpoint is run
    "logits_cache": ((None, False, True), ""),  # it only affects speed, through a cache that sparsed does not have
    "backend": ((None, "default", "causal"), "diffusion models have no other"),
    "revision": ((None, "main"), "a folder holds one revision"),
    "truncation": ((None, False), "long contexts lose their beginning"),
    "softmax_dtype": ((None, "float32"), "probabilities are computed in float32"),
    "mixed_precision_dtype": ((None,), "dtype=bfloat16 decides the precision"),
    "use_fast_tokenizer": ((None, True), "there is no slow tokenizer"),
    "parallelize": ((None, False), "engine=torch,device_map=auto splits a model"),
    "max_memory_per_gpu": ((None,), "engine=torch,device_map=auto splits a model"),
    "max_cpu_memory": ((None,), "engine=torch,device_map=auto splits a model"),
    "offload_folder": ((None, "./offload"), "nothing is offloaded"),
    "tp_plan": ((None,), "load_model(group=...) splits the heads over processes"),
    "peft": ((None,), "adapters have to be merged into the weights before"),
    "delta": ((None,), "delta weights have to be added to the weights before"),
    "autogptq": ((None, False), "quantized weights are not supported"),
    "gptqmodel": ((None, False), "quantized weights are not supported"),
    "load_in_8bit": ((None, False), "weights=int8 quantises the linear layers"),
    "load_in_4bit": ((None, False), "quantized weights are not supported"),
    "gguf_file": ((None,), "pretrained takes the path of a GGUF file"),
}
# The names of options in published command lines of LLaDA and Dream.
_OTHER_NAMES = {
    "cfg": "cfg_scale",
    "diffusion_steps": "steps",
    "max_new_tokens": "gen_length",
    "max_gen_toks": "gen_length",
    "model_path": "pretrained",
    "torch_dtype": "dtype",
}


def take_options_of_hf(options: dict[str, Any]) -> None:
    """Removes the arguments of the hf backend from `options`.

    Raises:
        ValueError: One of them asks for something that sparsed does not do.
    """
    for name, (allowed, advice) in _OF_HF.items():
        if name not in options:
            continue
        value = options.pop(name)
        if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
            expected = " or ".join(map(repr, allowed))
            raise ValueError(f"SparsedLM: {name} is {value!r}, expected {expected} ({advice})")
        if name == "trust_remote_code" and value:
            _log.info("trust_remote_code has no effect: sparsed never runs code of a checkpoint")


def refuse_rest(options: Mapping[str, Any], family: str, sparse: Any, preset: str | None) -> None:
    """Raises ValueError if options are left that have no meaning."""
    attention = f"sparse is {sparse!r}" if preset is None else f"the preset {preset} decides attention and cache"
    if options:
        renamed = [f"{name} is called {_OTHER_NAMES[name]} here" for name in sorted(options) if name in _OTHER_NAMES]
        raise ValueError(
            f"SparsedLM: {', '.join(sorted(options))} given, expected only options that apply "
            f"({'; '.join([*renamed, f'the model is of the {family} family, {attention}'])})"
        )


def placement(engine: str, device: str | None, device_map: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the arguments of `load_model`; lm-eval's command line gives "cuda:0" if the user names no device."""
    if device_map is not None:
        return {"device_map": device_map}
    if device is None:
        return {}
    if engine != "torch":
        if device != "cpu":
            _log.warning("device is %s, but engine=native runs on the CPU (engine=torch uses a device)", device)
        return {}
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        _log.warning("device is %s, but torch finds no CUDA device: the model runs on the CPU", device)
        device = "cpu"
    return {"device": device}


def rope_scaling_of(given: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns the argument of `load_model`.

    Raises:
        ValueError: A text has no meaning.
    """
    try:
        return cli_options.rope_scaling_of(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"SparsedLM: {error}") from error


def sparse_of(sparse: bool | str | Sparse, options: dict[str, Any]) -> Sparse | None:
    """Returns the sparse attention that `sparse` names; removes its fields from `options`."""
    if isinstance(sparse, Sparse):
        return sparse
    if not isinstance(sparse, (bool, str)):
        raise TypeError(f"SparsedLM: sparse is {sparse!r}, expected True, False, a name or SparseConfig and its like")
    if sparse is False:
        return None
    name = "sparsed" if sparse is True else sparse
    if name not in SPARSE_KINDS:
        raise ValueError(f"SparsedLM: sparse is {sparse!r}, expected True, False or one of {list(SPARSE_KINDS)}")
    return SPARSE_KINDS[name](**_taken(SPARSE_KINDS[name], options))


def kv_cache_of(kv_cache: str | KVCachePolicy | None, options: dict[str, Any]) -> KVCachePolicy | None:
    """Returns the key/value cache that `kv_cache` names; removes its fields from `options`."""
    if kv_cache is None or isinstance(kv_cache, KVCachePolicy):
        return kv_cache
    if not isinstance(kv_cache, str) or kv_cache not in CACHE_KINDS:
        raise ValueError(f"SparsedLM: kv_cache is {kv_cache!r}, expected one of {list(CACHE_KINDS)}")
    return made_cache(kv_cache, _taken(CACHE_KINDS[kv_cache], options))


def attention_of(
    preset_name: str | None,
    model: Model,
    sparse: bool | str | Sparse,
    kv_cache: str | KVCachePolicy | None,
    options: dict[str, Any],
) -> tuple[Sparse | None, KVCachePolicy | None, Sampler | None]:
    """Returns sparse attention, cache and sampler of a preset, or the given ones and no sampler.

    It removes the fields of what it makes from `options`.
    """
    if preset_name is None:
        cache = kv_cache_of(kv_cache, options)  # first: both have a field `refresh`, of which this one is a number
        return sparse_of(sparse, options), cache, None
    if sparse is not False or kv_cache is not None:
        raise ValueError(f"SparsedLM: preset is {preset_name!r} with sparse or kv_cache, expected only one of them")
    found = preset(preset_name, model)
    return found.get("sparse"), found.get("kv_cache"), found.get("sampler")


def sampler_of(family: str, sampler: Sampler | None, options: dict[str, Any]) -> tuple[Sampler, frozenset[str]]:
    """Returns `sampler`, or the family's default, with the fields in `options`, and their names; it removes them."""
    given = _taken(SAMPLERS[family], options)
    return changed_sampler(SAMPLERS[family]() if sampler is None else sampler, given), frozenset(given)


def _taken(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind) if field.name in options]
    return {name: options.pop(name) for name in names}


def template_variables(
    chat_template_args: Mapping[str, Any] | None, enable_thinking: bool | None, think_end_token: str | int | None
) -> dict[str, Any]:
    """Returns the variables that a chat template gets in addition to the conversation."""
    if chat_template_args is not None and not isinstance(chat_template_args, Mapping):
        raise TypeError(f"SparsedLM: chat_template_args is {chat_template_args!r}, expected names and values")
    Checker("SparsedLM").flag("enable_thinking", enable_thinking, optional=True)
    if enable_thinking and think_end_token is None:
        raise ValueError(
            "SparsedLM: enable_thinking is True, expected think_end_token with it (where the answer begins)"
        )
    thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return dict(chat_template_args or {}) | thinking


def end_of_thinking(tokenizer: Tokenizer, think_end_token: str | int | None) -> str | int | None:
    """Returns the text after which the answer begins, or the id of a token that decoding leaves out."""
    if think_end_token is None or isinstance(think_end_token, bool) or not isinstance(think_end_token, (str, int)):
        if think_end_token is not None:
            raise TypeError(f"SparsedLM: think_end_token is {think_end_token!r}, expected a token or its id")
        return None
    if not isinstance(think_end_token, str):
        return think_end_token
    if think_end_token.isdecimal():
        return int(think_end_token)
    token = tokenizer.token_id(think_end_token)
    return token if token is not None and not tokenizer.decode([token]) else think_end_token


def check_numbers(**values: Any) -> None:
    """Raises TypeError or ValueError if a value is neither None nor an integer of at least 1."""
    for name, value in values.items():
        Checker("SparsedLM").integer(name, value, low=1, optional=True)
