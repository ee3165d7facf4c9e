"""LLaDA: the descriptions of GSAI-ML/LLaDA-8B, LLaDA-1.5 and iLLaDA-8B.

iLLaDA has the tensor names of the Llama family. None of these models shifts its logits. UltraLLaDA and d3LLM-LLaDA have
the tensors and the class of LLaDA.

Source: configuration_llada.py and modeling_llada.py of GSAI-ML/LLaDA-8B-Instruct; modeling_illada.py of
GSAI-ML/iLLaDA-8B-Base.
"""

from __future__ import annotations

from .architecture import Architecture, Key, Shape, TensorNames
from .config import ConfigReader


def _read_shape(reader: ConfigReader) -> Shape:
    hidden_size = reader.integer("d_model")
    num_heads = reader.integer("n_heads")
    vocab_size = reader.integer("vocab_size")
    embedding_size = reader.integer("embedding_size", vocab_size)
    if embedding_size < vocab_size:
        reader.fail("embedding_size", f"at least vocab_size {vocab_size}")
    return Shape(
        num_layers=reader.layers("n_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_read_kv_heads(reader, num_heads),
        head_dim=reader.head_dim("d_model", "n_heads", hidden_size, num_heads),
        intermediate_size=reader.integer("mlp_hidden_size", reader.integer("mlp_ratio", 4) * hidden_size),
        vocab_size=embedding_size,
    )


def _read_kv_heads(reader: ConfigReader, num_heads: int) -> int:
    multi_query = reader.take("multi_query_attention")
    if multi_query is not None and not isinstance(multi_query, bool):
        reader.fail("multi_query_attention", "true, false or null")
    implied = num_heads if not multi_query else 1
    num_kv_heads = reader.integer("n_kv_heads", implied)
    if multi_query is not None and num_kv_heads != implied:
        reader.fail("n_kv_heads", f"{implied} or null, because multi_query_attention is {str(multi_query).lower()}")
    reader.divides("n_heads", "n_kv_heads", num_heads, num_kv_heads)
    return num_kv_heads


LLADA = Architecture(
    title="LLaDA-8B, LLaDA-1.5",
    model_type="llada",
    class_name="LLaDAModelLM",
    family="llada",
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
    shape=_read_shape,
    fixed={
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
    },
    # tie_word_embeddings is a key of transformers; the published code reads weight_tying instead.
    ignored=frozenset(
        """
        alibi_bias_max attention_layer_norm_with_affine embedding_dropout flash_attention init_cutoff_factor init_device
        init_fn init_std precision residual_dropout tie_word_embeddings
        """.split()
    ),
    rms_norm_eps=Key("rms_norm_eps", 1e-5),
    max_length=Key("max_sequence_length", 1024),
    tie_weights=Key("weight_tying", True),
    qkv_bias=Key("include_qkv_bias", False),
    rope_full_precision=Key("rope_full_precision", True),
    rope_theta=10000.0,
    rope_top_level=True,
)

ILLADA = Architecture(
    title="iLLaDA-8B",
    model_type="illada",
    class_name="ILLaDAForCausalLM",
    family="llada",
    fixed={
        "attention_bias": (False, False),
        "hidden_act": ("silu", "silu"),
        "layer_norm_eps": (None, None),
        "mlp_bias": (False, False),
    },
    ignored=frozenset({"embd_pdrop", "resid_pdrop"}),
    rms_norm_eps=Key("rms_norm_eps"),
    max_length=Key("max_position_embeddings", 8192),
    tie_weights=Key("tie_word_embeddings", True),
    # The published config does not name the mask token. In its tokenizer, <[MASK]> is token 5.
    mask_token=5,
)
