"""Reads the base of RoPE from all places where transformers 4 and 5 keep it.

transformers 4 writes ``rope_theta`` at the top level and the scaling into ``rope_scaling``. transformers 5 writes both
into ``rope_parameters``, either flat or once per layer type. Only the plain RoPE is computed here, and a config that
asks for another one is refused.

Source: `RotaryEmbeddingConfigMixin` in modeling_rope_utils.py of transformers 5.24.
"""

from __future__ import annotations

from typing import Any

from .config import ConfigReader, is_positive

_LAYER_TYPE = "full_attention"
# The names that transformers has for other kinds of attention. No model here has such layers, so their settings do not
# matter.
_OTHER_LAYER_TYPES = frozenset({"sliding_attention", "chunked_attention", "linear_attention"})
# Settings that the plain RoPE may name. The first two are its name in transformers 5 and 4.
_PLAIN: dict[str, Any] = {"rope_type": "default", "type": "default", "factor": 1.0, "partial_rotary_factor": 1.0}


def read_rope_theta(reader: ConfigReader, *, only_top_level: bool = False, default: float | None = None) -> float:
    """Returns the base of RoPE.

    Where several places name one, the order is that of transformers 5: ``rope_scaling`` in place of
    ``rope_parameters``, and either of them before the top level.

    Args:
        reader: The reader of the config.
        only_top_level: Whether the model's published code reads only the top level. Transformers reads the other
            places, so values that differ between them are refused.
        default: The base that the family's published config class has when a config has no settings of RoPE. None if
            it has no such default.

    Raises:
        ValueError: No place names the base, a value is not a number above 0, or the RoPE is not the plain one.
    """
    reader.require("partial_rotary_factor", 1.0, 1.0)
    top = reader.positive("rope_theta") if reader.take("rope_theta") is not None else None
    places = {key: _settings(reader, key) for key in ("rope_scaling", "rope_parameters")}
    thetas = {key: settings["rope_theta"] for key, settings in places.items() if "rope_theta" in settings}
    if only_top_level and top is not None:
        for key, theta in thetas.items():
            if theta != top:
                reader.fail(key, f'no "rope_theta" beside the top level\'s {top}: it is unclear which one counts')
    read = "rope_scaling" if places["rope_scaling"] else "rope_parameters"
    theta = thetas.get(read, top)
    if theta is None:
        if thetas:
            reader.fail("rope_parameters", 'null, because rope_scaling is read in its place and has no "rope_theta"')
        if default is not None and not any(places.values()):
            return default
        reader.fail("rope_theta", "a number above 0, here or in rope_parameters: a base of RoPE is not guessed")
    return float(theta)


def _settings(reader: ConfigReader, key: str) -> dict[str, Any]:
    """Returns the settings under `key` that hold for full attention, and checks them."""
    settings = reader.take(key, {})
    if not isinstance(settings, dict):
        reader.fail(key, "an object or null")
    if _LAYER_TYPE in settings:
        if not settings.keys() - {_LAYER_TYPE} <= _OTHER_LAYER_TYPES:
            reader.fail(key, "settings of RoPE either by layer type or for all layers")
        settings = settings[_LAYER_TYPE]
        if not isinstance(settings, dict):
            reader.fail(key, f'an object in "{_LAYER_TYPE}"')
    for name, value in settings.items():
        if name == "rope_theta":
            if not is_positive(value):
                reader.fail(key, 'a "rope_theta" that is a number above 0')
        elif name in ("rope_type", "type") and value != "default":
            reader.fail(key, f'"{name}" to be "default": a scaled RoPE is not supported')
        elif value is not None and (isinstance(value, bool) or value != _PLAIN.get(name)):
            reader.fail(key, f'no "{name}" or another value: a RoPE that it changes is not supported')
    return settings
