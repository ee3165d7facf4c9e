"""The likelihood of the end of a held-out text, in nats per token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...checks import Checker, token_row
from ...content import ComparedByContent
from ...generation.likelihood import log_likelihood_draws, require_sparse
from ...kernels.config import Sparse
from ...models import Model


@dataclass(frozen=True, eq=False)
class Likelihood(ComparedByContent):
    """A negative log-likelihood.

    Attributes:
        nats_per_token: The mean over the draws.
        draws: (draws,) float64, the nats per token of each draw.
    """

    nats_per_token: float
    draws: NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """An upper bound, exp(nats_per_token)."""
        return float(np.exp(self.nats_per_token))


def likelihood(
    model: Model,
    ids: ArrayLike,
    *,
    target: int,
    draws: int = 128,
    sparse: Sparse | None = None,
    seed: int = 0,
) -> Likelihood:
    """Estimates -log p(last `target` tokens | tokens before them) by the draws of `log_likelihood`, one in a batch.

    With a sparse method the draws are its steps: SparseD is dense, selects, then reuses the pattern. Draws with the
    same seed mask the same tokens, so methods can be compared draw by draw.

    Args:
        model: What `load_model` returns.
        ids: (l,) token ids.
        target: Tokens at the end that are scored, 1 ... l - 1.
        draws: Number of draws.
        sparse: None: dense attention.
        seed: Seed of the masks.

    Raises:
        ValueError, TypeError: An argument does not fit, or sparse attention would compute everything: there are too few
            draws for a sparse step, or fewer tokens before the target than a block while its rows are dense.
    """
    check = Checker("likelihood")
    check.integer("target", target, low=1)
    check.integer("draws", draws, low=1)
    check.integer("seed", seed, low=0)
    tokens = token_row("likelihood", "ids", ids, model.config.vocab_size)
    if len(tokens) <= target:
        raise ValueError(f"likelihood: ids has {len(tokens)} tokens, expected more than target {target}")
    require_sparse("likelihood", sparse, draws, f"more draws than {draws}", len(tokens) - target, target)
    found = log_likelihood_draws(model, tokens[:-target], tokens[-target:], draws, sparse=sparse, seed=seed)
    losses = np.resize(-found / target, draws)
    return Likelihood(float(losses.mean()), losses)
