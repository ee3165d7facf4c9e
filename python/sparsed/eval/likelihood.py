"""How likely a model finds a held-out text, dense and sparse: LLaDA's Monte-Carlo estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import Sparse
from ..models import Transformer
from ..pattern import PatternCache
from ..sampling import Checker


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood in nats per token: the mean over the draws, and each draw's (draws,) float64."""

    nats_per_token: float
    draws: NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """exp(nats_per_token): an upper bound."""
        return float(np.exp(self.nats_per_token))


def likelihood(
    model: Transformer,
    ids: ArrayLike,
    *,
    target: int,
    draws: int = 128,
    sparse: Sparse | None = None,
    seed: int = 0,
) -> Likelihood:
    """Estimates -log p(the last `target` tokens | the tokens before them).

    Draw i of n masks l tokens of the target, l uniform in the i-th of n equal parts of 1 ... target from above, as a
    generation of n steps would have it, and weighs their loss by target / l. A sparse method runs its own schedule over
    the draws: SparseD is dense, selects, then reuses the pattern. Draws with the same seed mask the same tokens, so
    methods can be compared draw by draw.

    Args:
        model: What `load_model` returns.
        ids: (l,) token ids.
        target: Tokens at the end that are scored, 1 ... l - 1 (for Dream a token needs one before it).
        draws: How many, n.
        sparse: None: dense.
        seed: Of the masks.

    Raises:
        ValueError, TypeError: An argument that does not fit.

    Source: get_log_likelihood.py of LLaDA (arXiv 2502.09992, equation 6), stratified.
    """
    check = Checker("likelihood")
    check.integer("target", target, low=1)
    check.integer("draws", draws, low=1)
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or len(tokens) <= target:
        raise ValueError(f"likelihood: ids has shape {list(tokens.shape)}, expected more than target {target} in [l]")
    start = len(tokens) - target
    cache = None if sparse is None else PatternCache(sparse, steps=draws, prompt_length=start)
    rng = np.random.default_rng(seed)
    losses = np.empty(draws, np.float64)
    for draw in range(draws):
        share = (draws - 1 - draw + rng.random()) / draws
        masked = start + np.sort(rng.choice(target, 1 + int(share * target), replace=False))
        state = tokens.copy()
        state[masked] = model.config.mask_token_id
        if cache is not None:
            cache.begin_step(draw)
        logits = model.forward(
            state[None],
            attend=None if cache is None else cache.attend,
            positions=masked - int(model.config.shift_logits),
        )[0].astype(np.float64)
        peak = logits.max(axis=1, keepdims=True)
        log_sum = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=1))
        losses[draw] = (log_sum - logits[np.arange(len(masked)), tokens[masked]]).sum() / len(masked)
    return Likelihood(float(losses.mean()), losses)
