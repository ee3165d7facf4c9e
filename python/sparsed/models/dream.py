"""Dream: the description of Dream-7B, Dream-Coder and DiffuCoder.

Dream has the layers of Qwen2 without a causal mask. Its logits at position i predict token i + 1, and its positions
count only the real tokens when a mask is given. d3LLM-Dream has the same tensors and the same class.

Source: configuration_dream.py and modeling_dream.py of Dream-org/Dream-v0-Instruct-7B.
"""

from __future__ import annotations

from .architecture import QWEN_FIXED, QWEN_IGNORED, Architecture

DREAM = Architecture(
    title="Dream-7B, Dream-Coder and DiffuCoder",
    model_type="dream",
    class_name="DreamModel",
    family="dream",
    fixed=QWEN_FIXED | {"attention_bias": (True, True), "use_mrope": (False, False)},
    ignored=QWEN_IGNORED,
    qkv_bias=True,
    mask_token=151666,
    pad_token=151643,
    shift_logits=True,
    masked_positions=True,
)
