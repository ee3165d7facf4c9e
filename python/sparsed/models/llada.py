"""LLaDA: config keys and tensor names of GSAI-ML/LLaDA-8B, LLaDA-1.5 and iLLaDA-8B.

iLLaDA has the tensor names of the Llama family. None of these models shifts its logits.

Source: configuration_llada.py and modeling_llada.py of GSAI-ML/LLaDA-8B-Instruct; modeling_illada.py of
GSAI-ML/iLLaDA-8B-Base.
"""

from __future__ import annotations

from .architecture import LLAMA_NAMES, Architecture, TensorNames, read_llama_shape
from .config import ConfigReader, ModelConfig
from .rope import read_rope_theta

# Key: (the only supported value, the value that the published code assumes for an absent key).
_LLADA_FIXED = {
    "activation_type": ("silu", "swiglu"),
    "alibi": (False, False),
    "attention_layer_norm": (False, False),
    "bias_for_layer_norm": (False, False),
    "block_group_size": (1, 1),
    "block_type": ("llama", "sequential"),
    "clip_qkv": (None, None),
    "hidden_act": ("silu", "silu"),
    "include_bias": (False, False),
    "input_emb_norm": (False, False),
    "layer_norm_type": ("rms", "default"),
    "layer_norm_with_affine": (True, True),
    "rope": (True, False),
    "scale_logits": (False, False),
}
# Settings of training, of initialisation and of features that are switched off above. tie_word_embeddings is a key of
# transformers; the published code reads weight_tying instead.
_LLADA_IGNORED = frozenset(
    """
    alibi_bias_max attention_layer_norm_with_affine embedding_dropout flash_attention init_cutoff_factor init_device
    init_fn init_std precision residual_dropout tie_word_embeddings
    """.split()
)

_ILLADA_FIXED = {
    "attention_bias": (False, False),
    "hidden_act": ("silu", "silu"),
    "layer_norm_eps": (None, None),
    "mlp_bias": (False, False),
}
_ILLADA_IGNORED = frozenset({"embd_pdrop", "resid_pdrop"})


def _read_llada(reader: ConfigReader) -> ModelConfig:
    for key, (expected, default) in _LLADA_FIXED.items():
        reader.require(key, expected, default)
    hidden_size = reader.integer("d_model")
    num_heads = reader.integer("n_heads")
    vocab_size = reader.integer("vocab_size")
    embedding_size = reader.integer("embedding_size", vocab_size)
    if embedding_size < vocab_size:
        reader.fail("embedding_size", f"at least vocab_size {vocab_size}")
    eos_token_id = reader.token("eos_token_id")
    config = ModelConfig(
        family="llada",
        num_layers=reader.layers("n_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_llada_kv_heads(reader, num_heads),
        head_dim=reader.head_dim("d_model", "n_heads", hidden_size, num_heads),
        intermediate_size=reader.integer("mlp_hidden_size", reader.integer("mlp_ratio", 4) * hidden_size),
        vocab_size=embedding_size,
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-5),
        rope_theta=read_rope_theta(reader, only_top_level=True, default=10000.0),
        max_length=reader.integer("max_sequence_length", 1024),
        mask_token_id=reader.mask_token(embedding_size),
        eos_token_id=eos_token_id,
        bos_token_id=reader.token("bos_token_id"),
        pad_token_id=reader.token("pad_token_id", eos_token_id),
        end_token_ids=reader.tokens("eos_token_id"),
        tie_weights=reader.flag("weight_tying", True),
        qkv_bias=reader.flag("include_qkv_bias", False),
        shift_logits=False,
        rope_full_precision=reader.flag("rope_full_precision", True),
        masked_positions=False,
    )
    reader.finish(_LLADA_IGNORED)
    return config


def _llada_kv_heads(reader: ConfigReader, num_heads: int) -> int:
    multi_query = reader.take("multi_query_attention")
    if multi_query is not None and not isinstance(multi_query, bool):
        reader.fail("multi_query_attention", "true, false or null")
    implied = num_heads if not multi_query else 1
    num_kv_heads = reader.integer("n_kv_heads", implied)
    if multi_query is not None and num_kv_heads != implied:
        reader.fail("n_kv_heads", f"{implied} or null, because multi_query_attention is {str(multi_query).lower()}")
    reader.divides("n_heads", "n_kv_heads", num_heads, num_kv_heads)
    return num_kv_heads


def _read_illada(reader: ConfigReader) -> ModelConfig:
    for key, (expected, default) in _ILLADA_FIXED.items():
        reader.require(key, expected, default)
    shape = read_llama_shape(reader)
    config = ModelConfig(
        family="llada",
        **shape,
        rms_norm_eps=reader.positive("rms_norm_eps"),
        rope_theta=read_rope_theta(reader),
        max_length=reader.integer("max_position_embeddings", 8192),
        # The published config does not name the mask token. In its tokenizer, <[MASK]> is token 5.
        mask_token_id=reader.mask_token(shape["vocab_size"], 5),
        eos_token_id=reader.token("eos_token_id"),
        bos_token_id=reader.token("bos_token_id"),
        pad_token_id=reader.token("pad_token_id"),
        end_token_ids=reader.tokens("eos_token_id"),
        tie_weights=reader.flag("tie_word_embeddings", True),
        qkv_bias=False,
        shift_logits=False,
        rope_full_precision=False,
        masked_positions=False,
    )
    reader.finish(_ILLADA_IGNORED)
    return config


LLADA = Architecture(
    model_type="llada",
    class_name="LLaDAModelLM",
    read_config=_read_llada,
    names=TensorNames(
        embedding="model.transformer.wte",
        final_norm="model.transformer.ln_f",
        head="model.transformer.ff_out",
        layer="model.transformer.blocks.{}.",
        attention_norm="attn_norm",
        query="q_proj",
        key="k_proj",
        value="v_proj",
        attention_out="attn_out",
        mlp_norm="ff_norm",
        gate="ff_proj",
        up="up_proj",
        down="ff_out",
    ),
)

ILLADA = Architecture("illada", "ILLaDAForCausalLM", _read_illada, LLAMA_NAMES)
