"""Scaled and partial RoPE: against transformers' own functions, against float64, and what it does to a model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import sparsed
from published_configs import PUBLISHED
from sparsed.models import ConfigReader
from sparsed.models.a2d import A2D_QWEN3
from sparsed.models.dream import DREAM
from sparsed.models.llada import LLADA
from tiny_checkpoint import random_tensors, reference_logits, rope_angles, tiny_config, write_checkpoint
from tolerances import TINY_LOGITS

ROUNDING = 6e-7  # of float32, relative: transformers computes in float32 too, some angles in ten operations
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope_of(name: str, argument: Any = None, **changes: Any) -> Any:
    values = PUBLISHED[name] | changes
    architecture = {"llada_8b": LLADA, "dream_7b": DREAM, "a2d_qwen3": A2D_QWEN3}[name]
    return architecture.read_config(ConfigReader(values, "config.json"), argument)


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters", "argument"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
        YARN,
        YARN | {"factor": 40, "beta_fast": 16, "beta_slow": 2.5},
        YARN | {"truncate": False},
        YARN | {"attention_factor": 1.7},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
        YARN | {"partial_rotary_factor": 0.25},
        YARN | {"factor": None},
        {"rope_type": "yarn", "factor": 2.0},
        LLAMA3,
        LLAMA3 | {"original_max_position_embeddings": 8192, "factor": 32.0},
        LLAMA3 | {"original_max_position_embeddings": 4096, "low_freq_factor": 2, "partial_rotary_factor": 0.5},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_angles_are_those_of_transformers(settings, place, theta) -> None:
    transformers = pytest.importorskip("transformers")
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers 4 has no rope_parameters")
    given = settings | {"rope_theta": theta}
    changes = {"rope_theta": ..., "rope_scaling": None} | ({} if place == "argument" else {place: given})
    changes = {key: value for key, value in changes.items() if value is not ...}
    values = {key: value for key, value in PUBLISHED["a2d_qwen3"].items() if key != "rope_theta"} | changes
    theirs = transformers.Qwen3Config(**json.loads(json.dumps(values | {"rope_scaling": given})))
    frequencies, factor = functions[settings["rope_type"]](theirs, device="cpu")
    argument = given if place == "argument" else None
    if argument is not None:
        values["rope_theta"] = 500.0  # the argument's own base counts
    config = A2D_QWEN3.read_config(ConfigReader(values, "config.json"), argument)
    np.testing.assert_allclose(config.rope.frequencies(), frequencies.numpy(), rtol=ROUNDING)
    assert config.rope.frequencies().dtype == np.float32
    assert config.rope.attention_factor == pytest.approx(factor, rel=1e-12)
    assert config.rope.dim == 2 * len(frequencies)


def test_the_top_level_s_trained_length_counts_as_in_transformers() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    config = rope_of("a2d_qwen3", rope_scaling=scaling, original_max_position_embeddings=1024)
    assert config.rope == rope_of("a2d_qwen3", rope_scaling=scaling | {"original_max_position_embeddings": 1024}).rope


# --- the rules of diffusion models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "factor"), [(8192, 4), (16384, 14), (24576, 31), (32768, 55)])
def test_longllada_s_factors_follow_from_its_rule(length, factor) -> None:
    """They are the factors of LongLLaDA's experiments (eval/eval_llada_niah.py), rounded there."""
    config = rope_of("llada_8b", {"rope_type": "ntk", "target_length": length})
    assert abs(config.rope.scaling.factor - factor) < 0.65
    assert config.max_length == length
    given = rope_of("llada_8b", {"rope_type": "ntk", "factor": factor})
    expected = (factor * 500000.0) ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(given.rope.frequencies(), expected, rtol=1e-6)
    assert abs(given.max_length / length - 1) < 0.1


def test_ultrallada_s_rule() -> None:
    """Its formula in float64: lambda = (2 T' / 2 pi)^(D / d) / b, d = 2 ceil(D / 2 log_b(2 T / 2 pi))."""
    critical = 2 * math.ceil(64 * math.log(4096 / math.pi) / math.log(5e5))
    expected = (131072 / math.pi) ** (128 / critical)
    config = rope_of("llada_8b", {"rope_type": "ultrallada", "target_length": 131072})
    assert config.rope.scaling.factor * config.rope.theta == pytest.approx(expected, rel=1e-9)
    assert config.max_length == 131072
    trained = {"rope_type": "ntk", "factor": 5, "original_max_position_embeddings": 2048}
    assert rope_of("dream_7b", trained).rope.scaling.factor == 5


def test_a_target_that_is_barely_longer_does_not_shrink_the_base() -> None:
    assert rope_of("llada_8b", {"rope_type": "ntk", "target_length": 4097}).rope.scaling.factor == 1


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        (None, 40960),
        ({"rope_type": "default"}, 40960),
        ({"rope_type": "linear", "factor": 2}, 81920),
        (YARN, 4 * 8192),
        ({"rope_type": "yarn", "factor": 4}, 4 * 40960),
        ({"rope_type": "ultrallada", "target_length": 10**6}, 10**6),
    ],
)
def test_the_length_is_the_scaled_one(settings, length) -> None:
    assert rope_of("a2d_qwen3", settings).max_length == length


LLAMA32 = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}  # of Llama-3.2-1B and 3B


@pytest.mark.parametrize(
    ("scaling", "length", "trained"),
    [
        (LLAMA32, 131072, 8192),
        (YARN | {"original_max_position_embeddings": 32768}, 131072, 32768),
        (YARN | {"factor": None}, 131072, 8192),
        # Where nothing says that the maximum is scaled already, the factor multiplies it.
        (YARN | {"original_max_position_embeddings": 131072}, 4 * 131072, 131072),
        ({"rope_type": "linear", "factor": 2.0}, 2 * 131072, 131072),
        ({"rope_type": "default"}, 131072, 131072),
        (None, 131072, 131072),
    ],
)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_the_length_of_a_config_with_a_scaling_of_its_own(place, scaling, length, trained) -> None:
    def length_with(argument: Any) -> int:
        config = rope_of("a2d_qwen3", argument, max_position_embeddings=131072, **{place: scaling})
        assert type(config.max_length) is int
        return config.max_length

    assert length_with(None) == length
    assert length_with({"rope_type": "default"}) == trained
    assert length_with({"rope_type": "yarn", "factor": 4}) == 4 * trained
    assert length_with({"rope_type": "linear", "factor": 1}) == trained
    assert length_with({"rope_type": "ntk", "target_length": 2 * trained}) == 2 * trained
    assert length_with(YARN | {"original_max_position_embeddings": 1024}) == 4096  # the argument's own length counts


def test_a_trained_length_at_the_top_level() -> None:
    changes = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    assert rope_of("a2d_qwen3", **changes).max_length == 131072
    assert rope_of("a2d_qwen3", {"rope_type": "default"}, **changes).max_length == 4096
    assert rope_of("a2d_qwen3", {"rope_type": "yarn", "factor": 4}, **changes).max_length == 4 * 4096


@pytest.mark.parametrize("factor", [1, 1.5, 4, 1000])
@pytest.mark.parametrize("trained", [7, 4096, 10**6])
def test_a_larger_base_never_shortens_the_length(factor, trained) -> None:
    settings = {"rope_type": "ntk", "factor": factor, "original_max_position_embeddings": trained}
    assert rope_of("llada_8b", settings).max_length >= trained


def test_the_warning_counts_the_scaled_length(tmp_path) -> None:
    write_checkpoint(tmp_path, tiny_config("a2d_qwen3"))
    plain, scaled = (
        sparsed.load_model(tmp_path, "float32", rope_scaling=settings)
        for settings in (None, {"rope_type": "linear", "factor": 2})
    )
    with pytest.warns(sparsed.SparsedWarning, match="70 tokens, more than the 64 .*rope_scaling"):
        sparsed.generate(plain, np.arange(60), gen_length=10, steps=1)
    sparsed.generate(scaled, np.arange(60), gen_length=10, steps=1)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("name", ["llada_8b", "dream_7b", "a2d_qwen3"])
def test_a_model_turns_by_the_scaled_angles(tmp_path, name, engine) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    values = tiny_config(name)
    tensors = random_tensors(values)
    write_checkpoint(tmp_path, values, tensors)
    ids = np.random.default_rng(0).integers(0, 90, (2, 50))
    angles = rope_angles(values)[0]
    half = len(angles)
    plain = sparsed.load_model(tmp_path, "float32", engine=engine).forward(ids)
    given: list[tuple[dict[str, Any], tuple[np.ndarray, float]]] = [
        ({"rope_type": "linear", "factor": 4}, (angles / 4, 1.0)),
        ({"rope_type": "ntk", "factor": 14}, ((values["rope_theta"] * 14) ** -(np.arange(half) / half), 1.0)),
        ({"rope_type": "linear", "factor": 1, "partial_rotary_factor": 0.5}, (angles[::2], 1.0)),
        # With these settings every pair counts as a slow one.
        (YARN | {"attention_factor": 1.5, "beta_fast": 1e-30, "beta_slow": 1e-31}, (angles / 4, 1.5)),
    ]
    for settings, expected in given:
        logits = sparsed.load_model(tmp_path, "float32", engine=engine, rope_scaling=settings).forward(ids)
        np.testing.assert_allclose(logits, reference_logits(values, tensors, ids, angles=expected), atol=TINY_LOGITS)
        assert np.abs(logits - plain).max() > 100 * TINY_LOGITS


def test_the_config_s_own_scaling_can_be_removed(tmp_path) -> None:
    values = tiny_config("a2d_llama")
    tensors = random_tensors(values)
    write_checkpoint(tmp_path, values, tensors)
    ids = np.arange(40)[None]
    logits = sparsed.load_model(tmp_path, "float32", rope_scaling={"rope_type": "default"}).forward(ids)
    expected = reference_logits(values | {"rope_scaling": None}, tensors, ids)
    np.testing.assert_allclose(logits, expected, atol=TINY_LOGITS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ("yarn", TypeError, "rope_scaling is 'yarn', expected a dict"),
        ({"rope_type": "yarn", "factor": np.ones(2)}, TypeError, "rope_scaling is .*, expected plain values"),
        ({"factor": 4}, ValueError, 'rope_scaling is .*, expected a "rope_type"'),
        ({"rope_type": "dynamic", "factor": 4}, ValueError, 'rope_scaling is .*, expected a "rope_type" .*"ntk"'),
        ({"rope_type": "su"}, ValueError, 'rope_scaling is .*, expected a "rope_type" that is one of'),
        ({"rope_type": "yarn", "factor": 4, "beta": 1}, ValueError, 'rope_scaling is .*, expected no "beta"'),
        ({"rope_type": "ntk", "target_length": 10}, ValueError, "rope_scaling .* above the 64 tokens"),
        ({"rope_type": "linear", "factor": 1e-30}, ValueError, 'rope_scaling .* "factor" of at least 1, not 1e-30'),
        ({"rope_type": "ntk", "factor": 0.5}, ValueError, 'rope_scaling .* "factor" of at least 1, not 0.5'),
        ({"rope_type": "yarn", "factor": 0.99}, ValueError, 'rope_scaling .* "factor" of at least 1, not 0.99'),
        (LLAMA3 | {"factor": 0.5}, ValueError, 'rope_scaling .* "factor" of at least 1, not 0.5'),
        (YARN | {"factor": None}, ValueError, 'rope_scaling .* "factor" of at least 1, not 0.0078125'),  # 64 / 8192
        ({"rope_type": "ntk", "factor": 1e300}, ValueError, "rope_scaling .* the base of RoPE overflows"),
        ({"rope_type": "ntk", "factor": 1e34}, ValueError, "rope_scaling .* the base of RoPE overflows"),
        ({"rope_type": "ntk", "target_length": 1e300}, ValueError, "rope_scaling .* the base of RoPE overflows"),
        ({"rope_type": "ultrallada", "target_length": 1e300}, ValueError, "rope_scaling .* the base of RoPE overflows"),
        ({"rope_type": "ntk", "target_length": 3e9}, ValueError, "rope_scaling .* at most 2147483647 tokens, not 3e"),
        ({"rope_type": "linear", "factor": 1e300}, ValueError, "rope_scaling .* at most 2147483647 tokens, not 6.4e"),
        (YARN | {"factor": 1e308}, ValueError, "rope_scaling .* at most 2147483647 tokens, not inf"),
        (LLAMA3 | {"factor": 1e9}, ValueError, "rope_scaling .* at most 2147483647 tokens, not 6.4e"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, settings, error, message) -> None:
    write_checkpoint(tmp_path, tiny_config("dream_7b"))
    with pytest.raises(error, match=f"^load_model: {message}"):
        sparsed.load_model(tmp_path, rope_scaling=settings)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(number) -> None:
    """They mean the same as those of Python, at every place."""
    given = {"rope_type": "yarn", "factor": number(4), "truncate": np.False_, "beta_fast": number(16)}
    plain = {"rope_type": "yarn", "factor": 4, "truncate": False, "beta_fast": 16}
    assert rope_of("llada_8b", given) == rope_of("llada_8b", plain)
    assert rope_of("llada_8b", given).max_length == 16384


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "ntk", "factor": 1e30},
        {"rope_type": "ntk", "target_length": 2**31 - 1, "original_max_position_embeddings": 10**6},
        {"rope_type": "ntk", "target_length": 2**31 - 1, "original_max_position_embeddings": 7},
        {"rope_type": "ntk", "factor": 4, "original_max_position_embeddings": 1e300},
        {"rope_type": "ntk", "factor": 4, "rope_theta": 1.0000001},
        {"rope_type": "yarn", "factor": 1e5},
        {"rope_type": "linear", "factor": 1e5},
    ],
    ids=json.dumps,
)
def test_extreme_numbers_are_computed_or_refused(settings) -> None:
    """No number overflows on the way."""
    try:
        rope = rope_of("llada_8b", settings).rope
    except ValueError as error:
        assert "overflows" in str(error) or "at most 2147483647 tokens" in str(error)
    else:
        assert np.isfinite(rope.frequencies()).all() and (rope.frequencies() > 0).all()
