"""The base of RoPE, wherever transformers 4 and 5 keep it."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

import sparsed
from sparsed.models import ConfigReader
from sparsed.models.dream import DREAM
from tiny_checkpoint import random_tensors, tiny_config, write_checkpoint

PLAIN = {"rope_type": "default", "rope_theta": 1e6}
FAMILIES = ("llada_8b", "illada_8b", "dream_7b")


def load_theta(folder, name, **changes):
    write_checkpoint(folder, tiny_config(name, **changes), random_tensors(tiny_config(name)))
    return sparsed.load_model(folder).config.rope_theta


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1000000},
        {"rope_parameters": PLAIN},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_parameters": {"full_attention": PLAIN}},
        {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": {"rope_theta": 1e4}}},
        {"rope_scaling": PLAIN},
        {"rope_scaling": {"type": "default", "rope_theta": 1e6, "factor": 1.0}},
        {"rope_scaling": {"full_attention": PLAIN}},
        {"rope_scaling": None, "rope_parameters": PLAIN | {"partial_rotary_factor": 1.0, "factor": None}},
        {"rope_scaling": {}, "rope_parameters": PLAIN},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_parameters": PLAIN, "rope_scaling": PLAIN},
        {"rope_theta": 1e6, "rope_parameters": {"full_attention": {"rope_type": "default"}}},
    ],
    ids=json.dumps,
)
def test_every_place_is_read(tmp_path, name, changes) -> None:
    assert load_theta(tmp_path, name, **({"rope_theta": ...} | changes)) == 1e6


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("settings", [PLAIN, {"full_attention": PLAIN}], ids=json.dumps)
def test_a_conflict_with_the_top_level(tmp_path, place, settings) -> None:
    """transformers 5 takes the inner value. LLaDA's code reads only the top level, so that neither is right there."""
    changes = {"rope_theta": 5e5, place: settings}
    assert load_theta(tmp_path / "dream", "dream_7b", **changes) == 1e6
    assert load_theta(tmp_path / "illada", "illada_8b", **changes) == 1e6
    with pytest.raises(ValueError, match=rf'^load_model: {place} is .*, expected no "rope_theta" beside .* 500000\.0'):
        load_theta(tmp_path / "llada", "llada_8b", **changes)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("rope_theta", "1e6"),
        ("rope_theta", True),
        ("rope_theta", 0),
        ("rope_scaling", 2.0),
        ("rope_scaling", [PLAIN]),
        ("rope_scaling", {"type": "linear", "factor": 0}),
        ("rope_scaling", {"type": "linear"}),
        ("rope_scaling", {"type": "linear", "factor": 0.5}),
        ("rope_scaling", {"type": "linear", "factor": 1e300}),
        ("rope_scaling", {"rope_type": "yarn", "original_max_position_embeddings": 65}),
        ("rope_scaling", {"type": "linear", "factor": 2.0, "beta_fast": 32}),
        ("rope_scaling", {"type": "dynamic", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": True}),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "truncate": 1}),
        ("rope_scaling", {"type": "ntk"}),
        ("rope_scaling", {"type": "ntk", "factor": 14.0, "target_length": 16384}),
        ("rope_scaling", {"type": "ntk", "target_length": 64}),
        ("rope_scaling", {"type": "ntk", "factor": 1e300, "rope_theta": 1e300}),
        ("rope_scaling", {"type": "ntk", "factor": 4, "original_max_position_embeddings": 6}),
        ("rope_scaling", {"type": "ultrallada", "factor": 4}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}),
        ("rope_scaling", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
        ("rope_scaling", {"rope_type": "default", "type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "default", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "default", "mrope_section": [2, 3, 3]}),
        ("rope_scaling", {"factor": 8.0}),
        ("rope_parameters", PLAIN | {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", PLAIN | {"rope_type": "yarn", "rope_theta": 1.0, "factor": 8.0}),
        ("rope_parameters", PLAIN | {"rope_type": "proportional"}),
        ("rope_parameters", PLAIN | {"rope_type": None}),
        ("rope_parameters", PLAIN | {"partial_rotary_factor": 1.5}),
        ("rope_parameters", PLAIN | {"partial_rotary_factor": 0.01}),
        ("rope_parameters", PLAIN | {"attention_factor": 1.2}),
        ("rope_parameters", PLAIN | {"factor": True}),
        ("rope_parameters", PLAIN | {"rope_theta": None}),
        ("rope_parameters", PLAIN | {"rope_theta": "1e6"}),
        ("rope_parameters", PLAIN | {"rope_theta": False}),
        ("rope_parameters", PLAIN | {"rope_theta": -1.0}),
        ("rope_parameters", PLAIN | {"rope_theta": math.inf}),
        ("rope_parameters", PLAIN | {"rope_theta": [1e6]}),
        ("rope_parameters", PLAIN | {"full_attention": PLAIN}),
        ("rope_parameters", {"full_attention": None}),
        ("rope_parameters", {"full_attention": PLAIN | {"rope_type": "dynamic", "factor": 2.0}}),
        ("rope_parameters", {"full_attention": PLAIN, "other": PLAIN}),
        ("rope_parameters", {"sliding_attention": PLAIN}),
    ],
    ids=lambda value: json.dumps(value, default=str),
)
def test_what_is_not_computed_or_not_known_is_refused(tmp_path, name, key, settings) -> None:
    with pytest.raises(ValueError, match=rf"^load_model: {key} is .*expected .*config\.json"):
        load_theta(tmp_path, name, **{key: settings})


def test_a_config_without_any_settings_of_rope(tmp_path) -> None:
    assert load_theta(tmp_path / "llada", "llada_8b", rope_theta=None) == 10000  # what configuration_llada.py has
    with pytest.raises(ValueError, match="rope_theta is missing"):
        load_theta(tmp_path / "dream", "dream_7b", rope_theta=...)
    with pytest.raises(ValueError, match="rope_theta is missing"):
        load_theta(tmp_path / "settings", "llada_8b", rope_theta=..., rope_scaling={"type": "default"})


def test_the_base_of_a_place_that_is_not_read_is_no_default(tmp_path) -> None:
    changes: dict[str, Any] = {"rope_theta": ..., "rope_parameters": PLAIN, "rope_scaling": {"type": "default"}}
    with pytest.raises(ValueError, match=r"^load_model: rope_parameters is .*, expected null, because rope_scaling"):
        load_theta(tmp_path, "dream_7b", **changes)


def test_the_inner_base_is_what_the_model_turns_by(tmp_path) -> None:
    ids = np.arange(12)[None]
    values = tiny_config("dream_7b")
    tensors = random_tensors(values)
    plain = sparsed.load_model(write_checkpoint(tmp_path / "a", values | {"rope_theta": 100.0}, tensors), "float32")
    inner = values | {"rope_parameters": {"rope_theta": 100.0}}
    assert np.array_equal(
        sparsed.load_model(write_checkpoint(tmp_path / "b", inner, tensors), "float32").forward(ids), plain.forward(ids)
    )


THETAS = ({}, {"rope_theta": 5e5}, {"rope_theta": 1e6})
NAMES = ({}, {"rope_type": "default"}, {"type": "default"}, {"rope_type": "linear", "factor": 2.0})
SETTINGS = [None, *({**names, **theta} for names in NAMES for theta in THETAS)]
SETTINGS += [{"full_attention": settings} for settings in SETTINGS[1:] if settings]


@pytest.mark.filterwarnings("ignore")
def test_variants_are_read_as_transformers_reads_them() -> None:
    """All pairs of settings beside each top level: the base is that of transformers, or the config is refused."""
    transformers = pytest.importorskip("transformers")
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers 4 has no rope_parameters")
    read = 0
    for top, scaling, parameters in itertools.product(THETAS, SETTINGS, SETTINGS):
        given = {"rope_scaling": scaling, "rope_parameters": parameters}
        values = tiny_config("dream_7b", rope_theta=...) | top | given
        theirs = transformers.Qwen2Config(**json.loads(json.dumps(values))).rope_parameters
        theirs = theirs.get("full_attention", theirs)
        found = any("rope_theta" in json.dumps(place) for place in (top, scaling or parameters))
        if not found:
            with pytest.raises(ValueError, match=r"^load_model: rope_"):
                DREAM.read_config(ConfigReader(values, "config.json"))
            continue
        rope = DREAM.read_config(ConfigReader(values, "config.json")).rope
        assert rope.theta == theirs["rope_theta"], values
        assert (rope.scaling is not None) == (theirs["rope_type"] == "linear"), values
        read += 1
    assert read > 300


def test_a_config_that_transformers_saves_loads(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    values = tiny_config("dream_7b")
    write_checkpoint(tmp_path, values)
    transformers.Qwen2Config(**values).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "Dream"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert sparsed.load_model(tmp_path).config.rope_theta == 1e6
