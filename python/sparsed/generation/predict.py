"""The forward pass of a denoising step: the logits behind the prompt, with guidance and the shift of Dream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .samplers.logits import FloatArray, IntArray, guided

if TYPE_CHECKING:
    from ..models import Attend, Model


def predict(
    model: Model,
    ids: IntArray,
    prompt_length: int,
    wanted: IntArray,
    cfg_scale: float,
    attend: Attend | None,
    **cached: Any,
) -> FloatArray:
    """Returns the logits that predict the tokens behind the prompt, with guidance and the shift of Dream.

    Args:
        model: What `load_model` returns.
        ids: (B, l) without padding.
        prompt_length: p, above 0 where the model shifts its logits.
        wanted: (n,) positions, counted from the end of the prompt.
        cfg_scale: Above 0, guided by twins whose prompt is masked; `attend` then sees 2 B rows.
        attend: The attention; None: dense.
        cached: `key_values` and `computed` of `Transformer.forward`.

    Returns:
        (B, n, V) float32.
    """
    if cfg_scale > 0:
        unconditional = ids.copy()
        unconditional[:, :prompt_length] = model.config.mask_token_id
        ids = np.concatenate([ids, unconditional])
    positions = prompt_length + wanted - int(model.config.shift_logits)
    logits = model.forward(ids, attend=attend, positions=positions, **cached)
    if cfg_scale > 0:
        conditional, unconditional_logits = np.split(logits, 2)
        logits = guided(conditional, unconditional_logits, float(cfg_scale))
    return logits
