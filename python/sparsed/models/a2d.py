"""A2D: diffusion models that were made from autoregressive ones of Qwen3, Qwen2 and Llama.

Their layers are those of transformers, and every token sees every other one. Logits are not shifted. The files of an
MDLM checkpoint and of a BD3LM checkpoint have the same config keys. Both load, but a BD3LM checkpoint was trained with
attention that is causal between blocks, which is not computed here.

Source: dllm/pipelines/a2d of ZHZisZZ/dllm, and the classes of Qwen3, Qwen2 and Llama in transformers.
"""

from __future__ import annotations

from functools import partial

from .architecture import QWEN3_NAMES, QWEN_FIXED, QWEN_IGNORED, Architecture, Key, read_free_shape

# Where the tokenizer names no mask token, dllm adds one behind the tokens of Qwen3 or of Qwen2.5.
_QWEN3_MASK, _QWEN2_MASK = 151669, 151665

A2D_QWEN3 = Architecture(
    title="A2D-Qwen3",
    model_type="a2d-qwen3",
    class_name="A2DQwen3LMHeadModel",
    family="a2d",
    names=QWEN3_NAMES,
    shape=partial(read_free_shape, head_dim=128),
    fixed=QWEN_FIXED | {"attention_bias": (False, False)},
    ignored=QWEN_IGNORED,
    mask_token=_QWEN3_MASK,
)

A2D_QWEN2 = Architecture(
    title="A2D-Qwen2",
    model_type="a2d-qwen2",
    class_name="A2DQwen2LMHeadModel",
    family="a2d",
    shape=read_free_shape,
    fixed=QWEN_FIXED | {"attention_bias": (True, True)},
    ignored=QWEN_IGNORED,
    qkv_bias=True,
    mask_token=_QWEN2_MASK,
)

A2D_LLAMA = Architecture(
    title="A2D-Llama",
    model_type="a2d-llama",
    class_name="A2DLlamaLMHeadModel",
    family="a2d",
    shape=read_free_shape,
    fixed={
        "attention_bias": (False, False),
        "hidden_act": ("silu", "silu"),
        "mlp_bias": (False, False),
        "pretraining_tp": (1, 1),
    },
    max_length=Key("max_position_embeddings", 2048),
)
