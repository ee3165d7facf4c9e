"""The config.json of a checkpoint: what loads, and what is refused by its key."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sparsed
from tiny_checkpoint import random_tensors, tiny_config, write_checkpoint

IDS = np.arange(12)[None]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llada_8b", {"alibi": True}),
        ("llada_8b", {"rope": False}),
        ("llada_8b", {"rope": ...}),
        ("llada_8b", {"include_bias": True}),
        ("llada_8b", {"bias_for_layer_norm": True}),
        ("llada_8b", {"layer_norm_type": "default"}),
        ("llada_8b", {"layer_norm_type": "gemma_rms"}),
        ("llada_8b", {"layer_norm_type": ...}),
        ("llada_8b", {"layer_norm_with_affine": False}),
        ("llada_8b", {"attention_layer_norm": True}),
        ("llada_8b", {"activation_type": "swiglu"}),
        ("llada_8b", {"activation_type": "gelu"}),
        ("llada_8b", {"block_type": "sequential"}),
        ("llada_8b", {"block_group_size": 2}),
        ("llada_8b", {"scale_logits": True}),
        ("llada_8b", {"input_emb_norm": True}),
        ("llada_8b", {"clip_qkv": 8.0}),
        ("llada_8b", {"multi_query_attention": True}),
        ("llada_8b", {"multi_query_attention": 3}),
        ("llada_8b", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
        ("llada_8b", {"rope_scaling": 4.0}),
        ("llada_8b", {"n_kv_heads": 3}),
        ("llada_8b", {"n_heads": 3}),
        ("llada_8b", {"d_model": 32}),
        ("llada_8b", {"d_model": ...}),
        ("llada_8b", {"d_model": 64.0}),
        ("llada_8b", {"n_layers": True}),
        ("llada_8b", {"n_layers": 0}),
        ("llada_8b", {"embedding_size": 90}),
        ("llada_8b", {"rms_norm_eps": 0}),
        ("llada_8b", {"rms_norm_eps": float("nan")}),
        ("llada_8b", {"rope_theta": -1.0}),
        ("llada_8b", {"weight_tying": "no"}),
        ("llada_8b", {"mask_token_id": ...}),
        ("llada_8b", {"mask_token_id": 96}),
        ("llada_8b", {"eos_token_id": "</s>"}),
        ("llada_8b", {"quantization_config": {"bits": 4}}),
        ("llada_8b", {"qk_norm": True}),
        ("dream_7b", {"hidden_act": "gelu"}),
        ("dream_7b", {"use_sliding_window": True}),
        ("dream_7b", {"use_mrope": True}),
        ("dream_7b", {"attention_bias": False}),
        ("dream_7b", {"mlp_bias": True}),
        ("dream_7b", {"head_dim": 32}),
        ("dream_7b", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("dream_7b", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}),
        ("dream_7b", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
        ("dream_7b", {"num_key_value_heads": 3}),
        ("dream_7b", {"hidden_size": ...}),
        ("dream_7b", {"final_logit_softcapping": 30.0}),
        ("illada_8b", {"layer_norm_eps": 1e-5}),
        ("illada_8b", {"attention_bias": True}),
        ("illada_8b", {"rope_theta": ...}),
        ("dream_7b", {"rope_theta": ...}),
        ("dream_7b", {"rope_theta": None}),
        ("dream_7b", {"partial_rotary_factor": 1.5}),
        ("dream_7b", {"rotary_pct": 0.0}),
        ("dream_7b", {"use_rope": False}),
        ("dream_7b", {"rope_theta_local": 1e4}),
        ("dream_7b", {"layer_norm_eps": 1e-5}),
        ("dream_7b", {"alibi": True}),
        ("dream_7b", {"use_qk_norm": True}),
        ("dream_7b", {"clip_qkv": 8.0}),
        ("dream_7b", {"scale_logits": True}),
        ("dream_7b", {"logits_scaling": 8.0}),
        ("dream_7b", {"is_decoder": True}),
        ("dream_7b", {"is_causal": True}),
        ("dream_7b", {"pruned_heads": {"0": [1]}}),
        ("dream_7b", {"num_experts": 8}),
        ("dream_7b", {"quantization_config": {"quant_method": "awq", "bits": 4}}),
        ("dream_7b", {"tie_word_embeddings": "no"}),
        ("illada_8b", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("illada_8b", {"sliding_window": 4096}),
        ("illada_8b", {"head_dim": 32}),
        ("llada_8b", {"layer_types": ["sliding_attention"] * 2}),
        ("llada_8b", {"use_sliding_window": True}),
        ("llada_8b", {"partial_rotary_factor": 0.01}),
        ("a2d_qwen3", {"attention_bias": True}),
        ("a2d_qwen3", {"use_sliding_window": True}),
        ("a2d_qwen3", {"head_dim": 36}),
        ("a2d_qwen3", {"head_dim": 0}),
        ("a2d_qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("a2d_qwen2", {"attention_bias": False}),
        ("a2d_llama", {"mlp_bias": True}),
        ("a2d_llama", {"pretraining_tp": 2}),
        ("a2d_llama", {"mask_token_id": ...}),
        ("open_dcoder", {"hidden_act": "gelu"}),
        ("llada_8b", {"layer_norm_eps": 1e-6}),
        ("llada_8b", {"mlp_bias": True}),
        ("llada_8b", {"attention_bias": True}),
        ("llada_8b", {"hidden_act": "gelu"}),
    ],
    ids=lambda value: json.dumps(value, default=str),
)
def test_configs_that_change_the_arithmetic_are_refused_by_key(tmp_path, name, changes) -> None:
    (key,) = changes
    values = tiny_config(name, **changes)
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = "is missing" if changes[key] is ... else "is "
    with pytest.raises(ValueError, match=r"^load_model: \w+ .*expected .*config\.json") as error:
        sparsed.load_model(tmp_path)
    blamed = {"multi_query_attention": ("n_kv_heads", key), "n_kv_heads": ("n_heads",), "n_heads": (key, "d_model")}
    blamed["num_key_value_heads"] = ("num_attention_heads",)
    assert any(f"load_model: {name} {found}" in str(error.value) for name in blamed.get(key, (key,)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "llada_8b",
            {"_name_or_path": "a/b", "use_cache": True, "torch_dtype": "float16", "id2label": {"0": "a"}},
        ),
        ("llada_8b", {"qk_norm": False, "new_option": None, "another": 0}),
        ("llada_8b", {"rope_full_precision": ..., "mlp_ratio": ..., "pad_token_id": None}),
        ("llada_8b", {"architectures": None}),
        ("dream_7b", {"architectures": ..., "model_type": "dream", "sliding_window": 4096}),
        ("dream_7b", {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        ("dream_7b", {"rope_scaling": {"type": "default"}, "head_dim": 16, "attention_bias": True}),
        ("dream_7b", {"layer_types": ["full_attention"] * 2, "rms_norm_eps": ...}),
        ("illada_8b", {"layer_types": ["full_attention"] * 2, "is_decoder": False, "pruned_heads": {}}),
        ("dream_7b", {"quantization_config": None, "partial_rotary_factor": 1, "alibi": False}),
    ],
)
def test_harmless_keys_are_ignored(tmp_path, name, changes) -> None:
    plain = sparsed.load_model(write_checkpoint(tmp_path / "plain", tiny_config(name)))
    values = tiny_config(name, **changes)
    other = sparsed.load_model(write_checkpoint(tmp_path / "other", values, random_tensors(tiny_config(name))))
    assert np.array_equal(plain.forward(IDS), other.forward(IDS))


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LLaDAMoEModelLM"]},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ..., "model_type": "llama"},
        {"architectures": ..., "model_type": ...},
        {"architectures": ..., "model_type": 3},
    ],
)
def test_other_models_are_refused(tmp_path, changes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llada_8b", **changes)))
    with pytest.raises(ValueError, match=r"^load_model: (architectures|model_type) is .*, expected one of .*[dD]ream"):
        sparsed.load_model(tmp_path)


def test_a_null_switch_is_off_as_in_the_published_code(tmp_path) -> None:
    values = tiny_config("llada_8b", rope_full_precision=None, weight_tying=None)
    config = sparsed.load_model(write_checkpoint(tmp_path, values, random_tensors(tiny_config("llada_8b")))).config
    assert not config.rope_full_precision
    assert not config.tie_weights


def test_a_mask_token_that_generation_config_contradicts(tmp_path) -> None:
    values = tiny_config("dream_7b")
    write_checkpoint(tmp_path, values)
    for token in (values["mask_token_id"], None):
        (tmp_path / "generation_config.json").write_text(json.dumps({"mask_token_id": token}))
        assert sparsed.load_model(tmp_path).config.mask_token_id == values["mask_token_id"]
    (tmp_path / "generation_config.json").write_text('{"mask_token_id": 4}')
    with pytest.raises(ValueError, match=r"^load_model: mask_token_id is 4, expected \d+ \(that of config\.json\)"):
        sparsed.load_model(tmp_path)
