"""Dream: config keys and tensor names of Dream-7B, Dream-Coder and DiffuCoder.

Dream has the layers of Qwen2 without a causal mask. Its logits at position i predict token i + 1, and its positions
count only the real tokens when a mask is given.

Source: configuration_dream.py and modeling_dream.py of Dream-org/Dream-v0-Instruct-7B.
"""

from __future__ import annotations

from .architecture import LLAMA_NAMES, Architecture, read_llama_shape
from .config import ConfigReader, ModelConfig
from .rope import read_rope_theta

# Key: (the only supported value, the value that the published code assumes for an absent key).
_FIXED = {
    "attention_bias": (True, True),
    "hidden_act": ("silu", "silu"),
    "mlp_bias": (False, False),
    "use_mrope": (False, False),
    "use_sliding_window": (False, False),
}
# These keys configure features that are switched off above.
_IGNORED = frozenset({"max_window_layers", "sliding_window"})


def _read_dream(reader: ConfigReader) -> ModelConfig:
    for key, (expected, default) in _FIXED.items():
        reader.require(key, expected, default)
    shape = read_llama_shape(reader)
    config = ModelConfig(
        family="dream",
        **shape,
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-6),
        rope_theta=read_rope_theta(reader),
        max_length=reader.integer("max_position_embeddings", 32768),
        mask_token_id=reader.mask_token(shape["vocab_size"], 151666),
        eos_token_id=reader.token("eos_token_id"),
        bos_token_id=reader.token("bos_token_id"),
        pad_token_id=reader.token("pad_token_id", 151643),
        end_token_ids=reader.tokens("eos_token_id"),
        tie_weights=reader.flag("tie_word_embeddings", False),
        qkv_bias=True,
        shift_logits=True,
        rope_full_precision=False,
        masked_positions=True,
    )
    reader.finish(_IGNORED)
    return config


DREAM = Architecture("dream", "DreamModel", _read_dream, LLAMA_NAMES)
