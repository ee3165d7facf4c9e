"""Open-dCoder: the description of open-dcoder-0.5B, which has the class of Qwen2 itself.

It is told apart from autoregressive models of this class by its mask token. Its logits are shifted, and its sampler is
Dream's.

Source: veomni/models/transformers/qwen2 of pengzhangzhi/Open-dLLM (modeling_qwen2.py, generation_utils.py).
"""

from __future__ import annotations

from .architecture import QWEN_FIXED, QWEN_IGNORED, Architecture, read_free_shape

OPEN_DCODER = Architecture(
    title="Open-dCoder",
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    family="dream",
    shape=read_free_shape,
    fixed=QWEN_FIXED | {"attention_bias": (True, True)},
    ignored=QWEN_IGNORED,
    qkv_bias=True,
    shift_logits=True,
    needs_mask_token=True,
)
