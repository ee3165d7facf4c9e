"""Reads the settings of RoPE from all places where transformers 4 and 5 keep them.

transformers 4 writes ``rope_theta`` at the top level and the scaling into ``rope_scaling``. transformers 5 writes both
into ``rope_parameters``, either flat or once per layer type.

Source: `RotaryEmbeddingConfigMixin` in modeling_rope_utils.py of transformers 5.24.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .config import MAX_INTEGER, ConfigReader, is_positive
from .rope_scaling import (
    BaseScaling,
    LinearScaling,
    Llama3Scaling,
    Rope,
    RopeScaling,
    YarnScaling,
    base_factor,
    base_length,
    yarn_attention_factor,
)

_LAYER_TYPE = "full_attention"
# The names that transformers has for other kinds of attention. No model here has such layers, so their settings do not
# matter.
_OTHER_LAYER_TYPES = frozenset({"sliding_attention", "chunked_attention", "linear_attention"})
_SHARE = "partial_rotary_factor"
_OF_ALL_TYPES = frozenset({"rope_type", "type", "rope_theta", _SHARE})
_TRAINED = "original_max_position_embeddings"
_ARGUMENT = "rope_scaling"
_MAX_BASE = float(np.finfo(np.float32).max)  # the angles are computed in float32


class _Context(NamedTuple):
    """What a rule is read from: the settings, the base, D, and the length of config.json."""

    reader: ConfigReader
    key: str
    settings: dict[str, Any]
    theta: float
    dim: int
    max_length: int

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a setting that is a number above 0. It is required if there is no default."""
        value = self.settings.get(name)
        if value is None and default is not None:
            return default
        if not is_positive(value):
            self.reader.fail(self.key, f'a "{name}" that is a number above 0')
        return float(value)  # type: ignore[arg-type]

    def optional(self, name: str) -> float | None:
        """Returns a setting that is a number above 0, or None where it is absent or null."""
        return None if self.settings.get(name) is None else self.number(name)

    def factor(self, default: float | None = None) -> float:
        """Returns the "factor", which is at least 1."""
        factor = self.number("factor", default)
        if factor < 1:
            self.reader.fail(self.key, f'a "factor" of at least 1, not {factor:g}')
        return factor

    @property
    def trained(self) -> float:
        """The length that the model was trained on before it was scaled."""
        return self.number(_TRAINED, self.max_length)


class _Scaled(NamedTuple):
    scaling: RopeScaling | None
    length: float  # for which the scaled model is made


def _plain(context: _Context) -> _Scaled:
    if context.number("factor", 1.0) != 1:
        context.reader.fail(context.key, 'no "factor" beside the "rope_type" default')
    return _Scaled(None, context.trained)


def _linear(context: _Context) -> _Scaled:
    factor = context.factor()
    return _Scaled(LinearScaling(factor), factor * context.trained)


def _ntk(context: _Context) -> _Scaled:
    if "factor" in context.settings and "target_length" in context.settings:
        context.reader.fail(context.key, 'either "factor", which multiplies the base, or "target_length"')
    if "target_length" in context.settings:
        return _longer_base(context, 1)
    factor, trained = context.factor(), _longer_than_a_turn(context)
    return _Scaled(_base_scaling(context, factor), base_length(context.theta, context.dim, trained, factor))


def _ultrallada(context: _Context) -> _Scaled:
    return _longer_base(context, 2)


def _longer_base(context: _Context, sides: int) -> _Scaled:
    target, trained = context.number("target_length"), _longer_than_a_turn(context)
    if target <= trained:
        context.reader.fail(context.key, f'a "target_length" above the {trained:g} tokens of the training')
    factor = base_factor(context.theta, context.dim, sides * trained, sides * target)
    return _Scaled(_base_scaling(context, factor), target)


def _base_scaling(context: _Context, factor: float) -> BaseScaling:
    if factor * context.theta > _MAX_BASE:
        context.reader.fail(context.key, 'a smaller "factor" or "target_length": the base of RoPE overflows')
    return BaseScaling(factor)


def _longer_than_a_turn(context: _Context) -> float:
    """Returns the trained length, which has to hold a whole turn of the fastest pair."""
    _require_base_above_1(context)
    if context.trained <= 2 * math.pi:
        context.reader.fail(context.key, f'a "{_TRAINED}" of at least 7 tokens')
    return context.trained


def _require_base_above_1(context: _Context) -> None:
    if context.theta <= 1:
        context.reader.fail(context.key, f"a rope_theta above 1 with it, not {context.theta:g}")


def _yarn(context: _Context) -> _Scaled:
    _require_base_above_1(context)
    trained = context.trained
    factor = context.factor(context.max_length / trained if _TRAINED in context.settings else None)
    truncate = context.settings.get("truncate", True)
    if not isinstance(truncate, bool):
        context.reader.fail(context.key, 'a "truncate" that is true or false')
    suggested = yarn_attention_factor(factor, context.optional("mscale"), context.optional("mscale_all_dim"))
    scaling = YarnScaling(
        factor,
        trained,
        attention_factor=context.number("attention_factor", suggested),
        beta_fast=context.number("beta_fast", 32.0),
        beta_slow=context.number("beta_slow", 1.0),
        truncate=truncate,
    )
    return _Scaled(scaling, factor * trained)


def _llama3(context: _Context) -> _Scaled:
    low, high = context.number("low_freq_factor"), context.number("high_freq_factor")
    if high <= low:
        context.reader.fail(context.key, 'a "high_freq_factor" above "low_freq_factor"')
    factor = context.factor()
    return _Scaled(Llama3Scaling(factor, context.trained, low, high), factor * context.trained)


class _Type(NamedTuple):
    """A value of "rope_type", with the names of its settings beside those of all types."""

    read: Callable[[_Context], _Scaled]
    settings: frozenset[str]


_TYPES = {
    "default": _Type(_plain, frozenset({"factor"})),
    "linear": _Type(_linear, frozenset({"factor", _TRAINED})),
    "ntk": _Type(_ntk, frozenset({"factor", "target_length", _TRAINED})),
    "ultrallada": _Type(_ultrallada, frozenset({"target_length", _TRAINED})),
    "yarn": _Type(
        _yarn,
        frozenset(
            {"factor", _TRAINED, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
        ),
    ),
    "llama3": _Type(_llama3, frozenset({"factor", _TRAINED, "low_freq_factor", "high_freq_factor"})),
}
_ADVICE = {
    "dynamic": 'its angles depend on the longest sequence of a batch, so that rows would change each other: "ntk" with '
    'a "target_length" has the same purpose',
    "longrope": "no diffusion model has it",
}


def read_rope(
    reader: ConfigReader,
    head_dim: int,
    max_length: int,
    *,
    only_top_level: bool = False,
    default: float | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
) -> tuple[Rope, int]:
    """Returns the RoPE of a config, and the longest sequence that it is made for after its scaling.

    The length is what the scaling makes of the trained one. But if the scaling is that of the config, and its maximum
    differs from its ``original_max_position_embeddings``, then the maximum is the scaled length. Source: Llama 3.2,
    where the factor 32 of 8192 tokens belongs to a maximum of 131072, and transformers 5, where the quotient of the two
    lengths is YaRN's factor if none is given.

    Where several places have settings, the order is that of transformers 5: ``rope_scaling`` in place of
    ``rope_parameters``, and either of them before the top level.

    Args:
        reader: The reader of the config.
        head_dim: The size of a head.
        max_length: The longest sequence that the config names.
        only_top_level: Whether the model's published code reads the base only at the top level. Transformers reads the
            other places, so bases that differ between them are refused.
        default: The base that the family's published config class has when a config has no settings of RoPE. None if
            it has no such default.
        rope_scaling: Settings that replace the config's scaling, as `load_model` describes them. The base and
            ``partial_rotary_factor`` of the config stay unless these settings name others.

    Raises:
        ValueError: No place names the base, a value is not as it should be, or the type of RoPE is not supported.
        TypeError: `rope_scaling` is no mapping.
    """
    top_trained = reader.integer(_TRAINED) if reader.take(_TRAINED) is not None else None
    places = {key: _settings(reader, key) for key in ("rope_scaling", "rope_parameters")}
    read = "rope_scaling" if places["rope_scaling"] else "rope_parameters"
    settings = places[read]
    theta = _read_theta(reader, places, read, only_top_level=only_top_level, default=default)
    dim = _rotated(reader, head_dim, read, settings)
    if top_trained is not None:  # transformers lets the top level decide here
        settings = settings | {_TRAINED: top_trained}
    if rope_scaling is not None:
        trained = settings.get(_TRAINED)
        reader, read, settings = _argument(rope_scaling)
        if trained is not None:
            settings = {_TRAINED: trained} | settings
        theta = float(settings.get("rope_theta", theta))
        dim = _rotated(reader, head_dim, read, settings) if _SHARE in settings else dim
    kind = _TYPES[_type_of(reader, read, settings)]
    context = _Context(reader, read, settings, theta, dim, max_length)
    scaled = kind.read(context)
    if scaled.length > MAX_INTEGER:
        reader.fail(read, f"a scaled length of at most {MAX_INTEGER} tokens, not {scaled.length:g}")
    is_scaled_already = rope_scaling is None and context.trained != max_length
    return Rope(theta, dim, scaled.scaling), max_length if is_scaled_already else round(scaled.length)


def _argument(rope_scaling: Mapping[str, Any]) -> tuple[ConfigReader, str, dict[str, Any]]:
    """Returns the settings that `load_model` got, and a reader whose errors name the argument."""
    if not isinstance(rope_scaling, Mapping):
        raise TypeError(
            f"load_model: rope_scaling is {rope_scaling!r:.200}, expected a dict such as "
            '{"rope_type": "yarn", "factor": 4}'
        )
    try:
        values = json.loads(json.dumps(dict(rope_scaling), default=_plain_value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"load_model: rope_scaling is {rope_scaling!r:.200}, expected plain values: {error}") from error
    reader = ConfigReader({_ARGUMENT: values}, "the arguments")
    if not values.keys() & {"rope_type", "type"}:
        reader.fail(_ARGUMENT, f'a "rope_type", one of {list(_TYPES)}')
    return reader, _ARGUMENT, _settings(reader, _ARGUMENT)


def _plain_value(value: object) -> Any:
    """Returns a scalar of numpy as a value of JSON; `json.dumps` calls this."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.100} is not a value of JSON")


def _read_theta(
    reader: ConfigReader,
    places: Mapping[str, dict[str, Any]],
    read: str,
    *,
    only_top_level: bool,
    default: float | None,
) -> float:
    top = reader.positive("rope_theta") if reader.take("rope_theta") is not None else None
    thetas = {key: settings["rope_theta"] for key, settings in places.items() if "rope_theta" in settings}
    if only_top_level and top is not None:
        for key, theta in thetas.items():
            if theta != top:
                reader.fail(key, f'no "rope_theta" beside the top level\'s {top}: it is unclear which one counts')
    theta = thetas.get(read, top)
    if theta is None:
        if thetas:
            reader.fail("rope_parameters", 'null, because rope_scaling is read in its place and has no "rope_theta"')
        if default is not None and not any(places.values()):
            return default
        reader.fail("rope_theta", "a number above 0, here or in rope_parameters: a base of RoPE is not guessed")
    return float(theta)


def _rotated(reader: ConfigReader, head_dim: int, read: str, settings: Mapping[str, Any]) -> int:
    """Returns how many of a head's features are rotated. The settings under `read` count before the top level."""
    shares = {_SHARE: reader.take(_SHARE), read: settings.get(_SHARE)}
    dim = head_dim
    for key, share in shares.items():
        if share is not None:
            dim = int(head_dim * share) if is_positive(share) and share <= 1 else 0
            if dim < 2 or dim % 2:
                reader.fail(key, f'a "{_SHARE}" up to 1 that rotates an even number of a head\'s {head_dim} features')
    return dim


def _settings(reader: ConfigReader, key: str) -> dict[str, Any]:
    """Returns the settings under `key` that hold for full attention, and checks their names."""
    settings = reader.take(key, {})
    if not isinstance(settings, dict):
        reader.fail(key, "an object or null")
    if _LAYER_TYPE in settings:
        if not settings.keys() - {_LAYER_TYPE} <= _OTHER_LAYER_TYPES:
            reader.fail(key, "settings of RoPE either by layer type or for all layers")
        settings = settings[_LAYER_TYPE]
        if not isinstance(settings, dict):
            reader.fail(key, f'an object in "{_LAYER_TYPE}"')
    known = _TYPES[_type_of(reader, key, settings)].settings | _OF_ALL_TYPES
    for name, value in settings.items():
        if name == "rope_theta" and not is_positive(value):
            reader.fail(key, 'a "rope_theta" that is a number above 0')
        if value is not None and name not in known:
            reader.fail(key, f'no "{name}" in it: a RoPE that it changes is not supported')
    return {name: value for name, value in settings.items() if value is not None}


def _type_of(reader: ConfigReader, key: str, settings: Mapping[str, Any]) -> str:
    found = [settings[name] for name in ("rope_type", "type") if name in settings] or ["default"]
    for name in found:
        if not isinstance(name, str) or name not in _TYPES or name != found[0]:
            advice = _ADVICE.get(name, "other kinds of RoPE are not supported") if isinstance(name, str) else "a name"
            reader.fail(key, f'a "rope_type" that is one of {list(_TYPES)} ({advice})')
    return str(found[0])
