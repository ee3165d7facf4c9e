"""The one quantisation scheme that checkpoints may have: W8A8 of compressed-tensors, in its format "int-quantized".

A linear layer X keeps `X.weight`, (N, K) int8, and `X.weight_scale`, (N, 1), one scale per output row. Its inputs are
quantised while the model runs, with one scale per token. Both are symmetric around 0. `quantization_config` in
config.json declares the scheme, and which layers have it: those that a group targets and the list `ignore` does not
hold. Their weights must be int8.

Source: quant_config.py, quant_args.py, quant_scheme.py and compressors/naive_quantized of
vllm-project/compressed-tensors, and utils/match.py there; llmcompressor writes this scheme under the name W8A8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .safetensors import TensorInfo

KEY = "quantization_config"
METHOD = "compressed-tensors"
FORMAT = "int-quantized"
_SCALE = "_scale"
_PATTERN, _CLASS = "re:", "Linear"  # of the entries that name modules

# What the fields of the scheme must be, and what compressed-tensors assumes for an absent one. Every field that it
# declares is here, so that a field of a newer version, which may change the arithmetic, is refused.
_BOTH: dict[str, tuple[Any, Any]] = {
    "num_bits": (8, 8),
    "type": ("int", "int"),
    "symmetric": (True, True),
    "group_size": (None, None),
    "block_structure": (None, None),
}
_WEIGHTS = _BOTH | {"strategy": ("channel", "tensor"), "dynamic": (False, False)}
_INPUTS = _BOTH | {"strategy": ("token", "tensor"), "dynamic": (True, False), "actorder": (None, None)}
# How the scales were found, and the types in which they were computed. The stored scales do not depend on them.
_FREE = frozenset({"observer", "observer_kwargs", "scale_dtype", "zp_dtype"})
_FREE_OF_WEIGHTS = _FREE | {"actorder"}  # with a scale per channel it is the order in which GPTQ went over the columns
_GROUP = frozenset({"targets", "weights", "input_activations", "output_activations", "format"})
_TOP = frozenset(
    """
    config_groups quant_method format quantization_status kv_cache_scheme ignore global_compression_ratio version
    sparsity_config transform_config run_compressed
    """.split()
)


def scheme_values(ignore: Iterable[str]) -> dict[str, Any]:
    """Returns the value of `quantization_config` for a checkpoint in which only the modules `ignore` are not int8."""
    common = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None}
    common |= {"actorder": None, "observer_kwargs": {}}
    weights = common | {"strategy": "channel", "dynamic": False, "observer": "minmax"}
    inputs = common | {"strategy": "token", "dynamic": True, "observer": None}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"format": FORMAT}},
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


@dataclass(frozen=True)
class Scheme:
    """The linear layers that a config.json declares as int8.

    An entry is the name of a module, the class "Linear", or "re:" and a regular expression with which a name begins.
    """

    targets: tuple[str, ...]
    ignore: tuple[str, ...]

    def covers(self, module: str) -> bool:
        """Returns whether the scheme declares a linear layer as int8."""
        return _matches(self.targets, module) and not _matches(self.ignore, module)


def _matches(entries: Iterable[str], module: str) -> bool:
    return any(
        re.match(entry.removeprefix(_PATTERN), module) if entry.startswith(_PATTERN) else entry in (module, _CLASS)
        for entry in entries
    )


def read_scheme(values: Mapping[str, Any], source: str) -> Scheme | None:
    """Returns what a config.json declares; None if it has no `quantization_config`.

    Raises:
        ValueError: It declares another scheme than the one above. The message names it.
    """
    config = values.get(KEY)
    if not isinstance(config, dict) or config.get("quant_method") != METHOD:
        return None  # absent, or of another method, which the reader of the config refuses by its name
    reader = _SchemeReader(source)
    reader.require(config, KEY, "format", FORMAT)
    reader.require(config, KEY, "quantization_status", "compressed")
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if config.get(name):
            reader.fail(f"{KEY}.{name}", config[name], "none")
    reader.only(config, KEY, _TOP)
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        reader.fail(f"{KEY}.config_groups", groups, "one group or more")
    targets: list[str] = []
    for name, group in groups.items():
        reader.group(group, f"{KEY}.config_groups.{name}")
        targets += reader.modules(group.get("targets"), f"{KEY}.config_groups.{name}.targets")
    return Scheme(tuple(targets), tuple(reader.modules(config.get("ignore") or [], f"{KEY}.ignore")))


class _SchemeReader:
    """Compares the fields of a scheme with the supported ones. Its errors name the field by its path."""

    def __init__(self, source: str) -> None:
        self._source = source

    def fail(self, path: str, value: Any, expected: str) -> NoReturn:
        raise ValueError(
            f"load_model: {path} is {json.dumps(value)[:200]}, expected {expected}: of quantised weights only W8A8 is "
            f"loaded, which compressed-tensors calls {FORMAT}, with a scale per output channel and per token "
            f"(in {self._source})"
        )

    def require(self, values: Mapping[str, Any], path: str, name: str, expected: Any, default: Any = None) -> None:
        value = values.get(name, default)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            self.fail(f"{path}.{name}", value, json.dumps(expected))

    def only(self, values: Mapping[str, Any], path: str, known: Iterable[str]) -> None:
        """Refuses fields that are not known, unless they are switched off."""
        for name, value in values.items():
            if name not in known and value not in (None, False, "", [], {}):
                self.fail(f"{path}.{name}", value, "no such field")

    def group(self, group: Any, path: str) -> None:
        if not isinstance(group, dict):
            self.fail(path, group, "an object")
        self.arguments(group.get("weights"), f"{path}.weights", _WEIGHTS, _FREE_OF_WEIGHTS)
        self.arguments(group.get("input_activations"), f"{path}.input_activations", _INPUTS, _FREE)
        self.require(group, path, "output_activations", None)
        if group.get("format") is not None:
            self.require(group, path, "format", FORMAT)
        self.only(group, path, _GROUP)

    def modules(self, entries: Any, path: str) -> list[str]:
        """Checks a list of entries of `Scheme`."""
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            self.fail(path, entries, "a list of names")
        for entry in entries:
            try:
                re.compile(entry.removeprefix(_PATTERN) if entry.startswith(_PATTERN) else "")
            except (re.error, OverflowError, RecursionError) as error:
                self.fail(path, entry, f"a regular expression after {_PATTERN!r} ({error})")
        return entries

    def arguments(self, values: Any, path: str, fields: Mapping[str, tuple[Any, Any]], free: frozenset[str]) -> None:
        if not isinstance(values, dict):
            self.fail(path, values, "8 bits")
        for name, (expected, default) in fields.items():
            self.require(values, path, name, expected, default)
        self.only(values, path, {*fields, *free})


def scale_name(weight: str) -> str:
    """Returns the name of the scales of the int8 tensor `weight`."""
    return weight + _SCALE


def is_scale(name: str) -> bool:
    """Returns whether a tensor of this name holds scales."""
    return name.endswith(_SCALE)


def is_int8(info: TensorInfo) -> bool:
    """Returns whether a tensor holds int8."""
    return info.dtype == np.int8


def scale_shapes(
    tensors: Mapping[str, TensorInfo], linear: Iterable[str], scheme: Scheme | None
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the scales that the int8 weights among `tensors` need, by name.

    Args:
        tensors: All tensors of a checkpoint.
        linear: The weights of the linear layers, which are the only ones that may be int8.
        scheme: What its config.json declares.

    Raises:
        ValueError: Another tensor is int8, the config does not declare int8 weights, or it declares some that are not.
    """
    allowed = set(linear) if scheme else set()
    found = {name: info for name, info in tensors.items() if is_int8(info)}
    for name, info in found.items():
        if name not in allowed:
            why = "only linear layers are quantised" if scheme else f"config.json has no {KEY}"
            raise ValueError(f"load_model: tensor {name} is int8, expected floating point: {why} (in {info.file})")
    for name in linear:
        weight = tensors.get(name)
        if scheme and weight and not is_int8(weight) and scheme.covers(name.removesuffix(".weight")):
            raise ValueError(
                f"load_model: tensor {name} is {weight.dtype}, expected int8: {KEY} in config.json declares it, and "
                f"its list ignore does not hold it (in {weight.file})"
            )
    if scheme and not found:
        raise ValueError(f"load_model: {KEY} in config.json declares no layer of this model as int8, expected some")
    return {scale_name(name): (info.shape[0], 1) for name, info in found.items()}
