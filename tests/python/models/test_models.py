"""Forward passes of tiny random models against float64, for every published family."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import sparsed
from published_configs import PUBLISHED
from sparsed.models import ARCHITECTURES, ConfigReader, ModelConfig, find_architecture, tensor_shapes
from sparsed.models.rope_scaling import Rope
from tiny_checkpoint import BFLOAT16, random_tensors, reference_logits, tiny_config, write_checkpoint
from tolerances import TINY_LOGITS


def make(tmp_path, name, dtype="float32", stored=np.float32, **changes):
    values = tiny_config(name, **changes)
    tensors = random_tensors(values, stored)
    return sparsed.load_model(write_checkpoint(tmp_path, values, tensors), dtype), values, tensors


def random_ids(batch=2, length=21, seed=1):
    return np.random.default_rng(seed).integers(0, 96, (batch, length))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("stored", [np.float32, BFLOAT16, np.float16], ids=["f32", "bf16", "f16"])
def test_published_configs_run_in_float32(tmp_path, name, stored) -> None:
    model, values, tensors = make(tmp_path, name, stored=stored)
    ids = random_ids()
    logits = model.forward(ids)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference_logits(values, tensors, ids), atol=TINY_LOGITS)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("stored", [np.float32, BFLOAT16], ids=["f32", "bf16"])
def test_published_configs_run_in_bfloat16(tmp_path, name, stored) -> None:
    model, values, tensors = make(tmp_path, name, dtype="bfloat16", stored=stored)
    ids = random_ids()
    error = model.forward(ids) - reference_logits(values, tensors, ids)
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(reference_logits(values, tensors, ids) ** 2))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llada_8b", {"include_qkv_bias": True}),
        ("llada_8b", {"n_kv_heads": 2}),
        ("llada_8b", {"n_kv_heads": None, "multi_query_attention": True}),
        ("llada_8b", {"rope_full_precision": False}),
        ("llada_8b", {"embedding_size": None}),
        ("llada_8b", {"weight_tying": True, "rms_norm_eps": 0.1, "rope_theta": 100.0}),
        ("dream_7b", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("dream_7b", {"hidden_size": 96}),
    ],
)
def test_variants_that_the_published_code_defines(tmp_path, name, changes) -> None:
    model, values, tensors = make(tmp_path, name, **changes)
    ids = random_ids() % 90
    np.testing.assert_allclose(model.forward(ids), reference_logits(values, tensors, ids), atol=TINY_LOGITS)


def test_every_description_has_a_published_config() -> None:
    found = {find_architecture(values, name).title for name, values in PUBLISHED.items()}
    assert found == {architecture.title for architecture in ARCHITECTURES}


# Vocabulary, tensors with the head, mask token, heads and their size, sampler, shift.
SIZES = {
    "a2d_qwen3": (151936, 3 + 28 * 11, 151669, 16, 128, "a2d", False),
    "a2d_qwen2": (151936, 3 + 24 * 12, 151665, 14, 64, "a2d", False),
    "a2d_llama": (128256, 3 + 16 * 9, 128255, 32, 64, "a2d", False),
    "open_dcoder": (151936, 3 + 24 * 12, 151665, 14, 64, "dream", True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name) -> None:
    architecture = find_architecture(PUBLISHED[name], name)
    config = architecture.read_config(ConfigReader(PUBLISHED[name], name))
    if name in SIZES:
        vocab_size, tensors, mask, *rest = SIZES[name]
        assert (config.vocab_size, len(tensor_shapes(config, architecture.names)), config.mask_token_id) == (
            vocab_size,
            tensors,
            mask,
        )
        assert [config.num_heads, config.head_dim, config.family, config.shift_logits] == rest
        return
    sizes = config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size, config.vocab_size
    if config.family == "dream":
        assert sizes == (28, 4, 128, 18944, 152064)
        assert config.mask_token_id == 151666
        assert len(tensor_shapes(config, architecture.names)) == 3 + 28 * 12
    elif "illada" in name:
        assert sizes == (32, 8, 128, 14336, 155136)
        assert (config.mask_token_id, config.end_token_ids, config.tie_weights) == (5, (2,), True)
    else:
        assert sizes == (32, 32, 128, 12288, 126464)
        assert (config.mask_token_id, config.end_token_ids) == (126336, (126081,))
        assert len(tensor_shapes(config, architecture.names)) == 291


def test_config_of_each_family(tmp_path) -> None:
    llada = sparsed.load_model(write_checkpoint(tmp_path / "llada", tiny_config("llada_8b"))).config
    assert llada == ModelConfig(
        family="llada",
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        intermediate_size=112,
        vocab_size=96,
        rms_norm_eps=1e-5,
        rope=Rope(500000.0, 16),
        max_length=64,
        mask_token_id=tiny_config("llada_8b")["mask_token_id"],
        eos_token_id=tiny_config("llada_8b")["eos_token_id"],
        bos_token_id=None,
        pad_token_id=tiny_config("llada_8b")["pad_token_id"],
        end_token_ids=(tiny_config("llada_8b")["eos_token_id"],),
        tie_weights=False,
        qkv_bias=False,
        qk_norm=False,
        attention="bidirectional",
        shift_logits=False,
        rope_full_precision=True,
        masked_positions=False,
    )
    dream = sparsed.load_model(write_checkpoint(tmp_path / "dream", tiny_config("dream_7b"))).config
    assert (dream.family, dream.shift_logits, dream.qkv_bias, dream.num_kv_heads) == ("dream", True, True, 2)
    illada = sparsed.load_model(write_checkpoint(tmp_path / "illada", tiny_config("illada_8b"))).config
    assert (illada.family, illada.shift_logits, illada.mask_token_id, illada.tie_weights) == ("llada", False, 5, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        llada.family = "dream"


def test_generation_config_adds_end_tokens(tmp_path) -> None:
    write_checkpoint(tmp_path, tiny_config("dream_7b", eos_token_id=7))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    config = sparsed.load_model(tmp_path).config
    assert (config.eos_token_id, config.end_token_ids) == (7, (7, 8))


def test_declared_ends_of_turns_are_end_tokens(tmp_path) -> None:
    write_checkpoint(tmp_path, tiny_config("dream_7b", eos_token_id=7))
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 9, "<|eot_id|>": 7, "<other>": 10}')
    assert sparsed.load_model(tmp_path).config.end_token_ids == (7, 9)
    # Published files of LLaDA; a token without a row in the embedding cannot be generated.
    decoder = {"9": {"content": "<|eot_id|>"}, "7": {"content": "<|endoftext|>"}, "99999999": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 8}')
    assert sparsed.load_model(tmp_path).config.end_token_ids == (7, 8, 9)


@pytest.mark.parametrize("name", ["llada_8b", "dream_7b"])
def test_positions_choose_rows_without_changing_a_bit(tmp_path, name) -> None:
    model, _, _ = make(tmp_path, name)
    ids = random_ids()
    everything = model.forward(ids)
    for positions in ([0], [20, 3, 3], np.arange(5, 21)):
        assert np.array_equal(model.forward(ids, positions=positions), everything[:, positions])
    assert model.forward(ids, positions=[]).shape == (2, 0, 96)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_independent_bit_for_bit(tmp_path, dtype) -> None:
    model, _, _ = make(tmp_path, "dream_7b", dtype=dtype)
    ids = random_ids(batch=5, length=33)
    together = model.forward(ids)
    for row in range(5):
        assert np.array_equal(model.forward(ids[row : row + 1])[0], together[row])


def test_position_ids_turn_the_rotary_embedding(tmp_path) -> None:
    model, values, tensors = make(tmp_path, "llada_8b")
    ids = random_ids()
    positions = np.stack([np.arange(21) * 3, np.arange(21)[::-1]])
    np.testing.assert_allclose(
        model.forward(ids, position_ids=positions), reference_logits(values, tensors, ids, positions), atol=TINY_LOGITS
    )
    shared = model.forward(ids, position_ids=positions[0])
    assert np.array_equal(shared, model.forward(ids, position_ids=np.stack([positions[0]] * 2)))


@pytest.mark.parametrize(("name", "counts"), [("llada_8b", False), ("illada_8b", False), ("dream_7b", True)])
def test_key_mask(tmp_path, name, counts) -> None:
    model, values, tensors = make(tmp_path, name)
    ids = random_ids()
    mask = np.ones((2, 21), bool)
    mask[0, :6] = False
    positions = np.stack([np.arange(21)] * 2)
    if counts:
        positions[0] = np.maximum(np.arange(21) - 6, 0)
    expected = reference_logits(values, tensors, ids, positions, mask)
    np.testing.assert_allclose(model.forward(ids, key_mask=mask)[mask], expected[mask], atol=TINY_LOGITS)


@pytest.mark.parametrize("name", ["llada_8b", "dream_7b"])
def test_attend_sees_each_layer_and_replaces_its_attention(tmp_path, name) -> None:
    model, _, _ = make(tmp_path, name)
    config = model.config
    ids = random_ids()
    mask = np.ones((2, 21), bool)
    seen = []

    def attend(layer, q, k, v, key_mask=None):
        seen.append((layer, q.shape, k.shape, v.shape, key_mask is not None))
        return sparsed.attention(q, k, v, key_mask=key_mask)

    replaced = model.forward(ids, attend=attend, key_mask=mask)
    shapes = (2, config.num_heads, 21, 16), (2, config.num_kv_heads, 21, 16), (2, config.num_kv_heads, 21, 16)
    assert seen == [(0, *shapes, True), (1, *shapes, True)]
    assert np.array_equal(replaced, model.forward(ids, key_mask=mask))
    assert not np.array_equal(
        replaced, model.forward(ids, attend=lambda layer, q, k, v, key_mask=None: np.zeros_like(q))
    )


def test_long_inputs_pass_the_mlp_in_parts(tmp_path, monkeypatch) -> None:
    model, _, _ = make(tmp_path, "llada_8b")
    ids = random_ids()
    whole = model.forward(ids)
    monkeypatch.setattr("sparsed.models.transformer._MLP_TOKENS", 5)
    assert np.array_equal(model.forward(ids), whole)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64, list])
def test_any_integer_type_is_a_token_id(tmp_path, kind) -> None:
    model, _, _ = make(tmp_path, "llada_8b")
    ids = random_ids()
    given = ids.tolist() if kind is list else ids.astype(kind)
    assert np.array_equal(model.forward(given), model.forward(ids))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [[1, 96]]}, ValueError, r"ids is 96 at \[0, 1\], expected 0 \.\.\. 95"),
        ({"ids": [[1, -1]]}, ValueError, r"ids is -1 at \[0, 1\], expected 0 \.\.\. 95"),
        ({"ids": [1, 2]}, ValueError, r"ids has shape \[2\], expected 2 dimensions"),
        ({"ids": [[1.0, 2.0]]}, TypeError, "ids has dtype float64, expected integers"),
        ({"ids": [[True, False]]}, TypeError, "ids has dtype bool, expected integers"),
        ({"ids": np.zeros((1, 0), np.int64)}, ValueError, r"ids has shape \[1, 0\], expected at least one token"),
        ({"ids": np.zeros((0, 3), np.int64)}, ValueError, r"ids has shape \[0, 3\], expected at least one token"),
        ({"positions": [3]}, ValueError, r"positions is 3 at \[0\], expected 0 \.\.\. 2"),
        ({"positions": [-1]}, ValueError, r"positions is -1 at \[0\]"),
        ({"positions": [[0]]}, ValueError, r"positions has shape \[1, 1\], expected 1 dimensions"),
        ({"positions": [0.5]}, TypeError, "positions has dtype float64, expected integers"),
        ({"position_ids": [0, 1]}, ValueError, r"position_ids has shape \[2\], expected \[1, 3\] or \[3\]"),
        ({"position_ids": [0, 1, -2]}, ValueError, r"position_ids is -2 at \[2\], expected at least 0"),
        ({"key_mask": [[1, 1, 0]]}, TypeError, "key_mask has dtype int64, expected bool"),
        ({"key_mask": [True, True, True]}, ValueError, r"key_mask has shape \[3\], expected \[1, 3\]"),
        ({"attend": lambda layer, q, k, v, key_mask=None: q[0]}, ValueError, "attend returned shape"),
    ],
)
def test_forward_names_what_is_wrong(tmp_path, arguments, error, message) -> None:
    model, _, _ = make(tmp_path, "llada_8b")
    with pytest.raises(error, match=f"^forward: {message}"):
        model.forward(**{"ids": [[1, 2, 3]]} | arguments)


def test_forward_refuses_what_cannot_fit(tmp_path, monkeypatch) -> None:
    model, _, _ = make(tmp_path, "llada_8b")

    def refuse(num_bytes, what):
        assert num_bytes >= 3 * 96 * 4
        raise MemoryError(f"{what} needs {num_bytes} bytes")

    monkeypatch.setattr("sparsed.kernels.ops.require_memory", refuse)
    with pytest.raises(MemoryError, match=r"^forward: "):
        model.forward([[1, 2, 3]])


def test_repr_and_nbytes(tmp_path) -> None:
    model, _, tensors = make(tmp_path, "llada_8b", stored=BFLOAT16)
    assert repr(model) == (
        "Transformer(family='llada', num_layers=2, hidden_size=64, vocab_size=96, dtype='float32', weights='bfloat16')"
    )
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert 0.7 * stored < model.nbytes < 1.3 * stored
