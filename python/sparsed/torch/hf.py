"""Registers ``attn_implementation="sparsed"`` for the models of transformers when it is imported.

Layers then run sparsed's dense kernels, or its sparse ones inside ``sparsed.torch.accelerate``. Layers with a sliding
window, as in ModernBERT, run torch's ``scaled_dot_product_attention``. Models with remote code (LLaDA, Dream) do not
use ``attn_implementation``; they need only ``accelerate``.
"""

from __future__ import annotations

from typing import Any

import torch

from .ops import attention

try:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
except ImportError as error:
    raise ImportError("sparsed.torch.hf needs transformers 4.53 or newer: pip install 'transformers>=4.53'") from error

__all__ = ["sparsed_attention"]

# Options that change the scores or the sequences in a way that the kernels do not support.
_UNKNOWN = ("softcap", "position_bias", "s_aux", "sinks", "head_mask", "indices", "block_indices", "cu_seq_lens_q")


def sparsed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Computes the attention of a layer, with the signature that transformers expects.

    B batch, H query heads, H_kv key/value heads, L queries, S keys, D head_dim.

    Args:
        module: The layer. Its ``is_causal`` is used if the argument is None.
        query: (B, H, L, D).
        key: (B, H_kv, S, D).
        value: (B, H_kv, S, D).
        attention_mask: None, or a padding mask that broadcasts to (B, H, L, S).
        dropout: Must be 0.
        scaling: The factor of the scores; None is 1 / sqrt(D).
        is_causal: Must be false.
        kwargs: The options of other implementations. With ``sliding_window``, torch computes the attention, and the
            window is the one in ``attention_mask``.

    Returns:
        The output (B, L, H, D), and None in place of the attention weights.

    Raises:
        ValueError: The call asks for causal attention, dropout, scores with a cap, a bias or sinks, packed sequences,
            gradients, ``output_attentions``, or a sliding window without a mask.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    name = type(module).__name__
    if is_causal and attention_mask is None and query.shape[2] > 1:
        raise ValueError(f'attn_implementation="sparsed": {name} is causal, expected a layer that sees every key')
    if dropout:
        raise ValueError(f'attn_implementation="sparsed": {name} has dropout {dropout}, expected 0 (use model.eval())')
    for option in _UNKNOWN:
        if kwargs.get(option) is not None:
            raise ValueError(f'attn_implementation="sparsed": {name} has {option}, expected plain softmax attention')
    if kwargs.get("output_attentions") or getattr(getattr(module, "config", None), "output_attentions", False):
        raise ValueError(f'attn_implementation="sparsed": {name} got output_attentions, expected False (no weights)')
    window = kwargs.get("sliding_window")
    if window is not None and not is_causal:
        if attention_mask is not None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, is_causal=False, sliding_window=window
            )
        if window < key.shape[2]:
            raise ValueError(
                f'attn_implementation="sparsed": {name} has sliding_window {window} for {key.shape[2]} keys and no '
                "attention_mask, expected a mask that says which keys a query sees"
            )
    if attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:  # longer masks are allowed
        attention_mask = attention_mask[..., : key.shape[2]]
    out = attention(query, key, value, scale=scaling, key_mask=attention_mask)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("sparsed", sparsed_attention)
AttentionMaskInterface.register("sparsed", sdpa_mask)
