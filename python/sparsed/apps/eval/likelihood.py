"""How likely a model finds a held-out text, dense and sparse: LLaDA's Monte-Carlo estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...checks import Checker, token_row
from ...content import ComparedByContent
from ...generation.likelihood import mean_log_probabilities, schedule
from ...kernels.config import Sparse
from ...models import Model


@dataclass(frozen=True, eq=False)
class Likelihood(ComparedByContent):
    """Negative log-likelihood in nats per token: the mean over the draws, and each draw's (draws,) float64."""

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
    """Estimates -log p(the last `target` tokens | the tokens before them).

    Draw i of n masks l tokens of the target, l uniform in the i-th of n equal parts of 1 ... target from above, as a
    generation of n steps would have it, and weighs their loss by target / l. A sparse method runs its own schedule over
    the draws: SparseD is dense, selects, then reuses the pattern. Draws with the same seed mask the same tokens, so
    methods can be compared draw by draw. (Dense, all draws of a one-token target are alike: one forward pass.)

    Args:
        model: What `load_model` returns.
        ids: (l,) token ids.
        target: Tokens at the end that are scored, 1 ... l - 1 (for Dream a token needs one before it).
        draws: How many, n.
        sparse: None: dense.
        seed: Of the masks.

    Raises:
        ValueError, TypeError: An argument that does not fit; too few draws for a sparse step.

    Source: get_log_likelihood.py of LLaDA (arXiv 2502.09992, equation 6), stratified.
    """
    check = Checker("likelihood")
    check.integer("target", target, low=1)
    check.integer("draws", draws, low=1)
    check.integer("seed", seed, low=0)
    tokens = token_row("likelihood", "ids", ids, model.config.vocab_size)
    if len(tokens) <= target:
        raise ValueError(f"likelihood: ids has {len(tokens)} tokens, expected more than target {target}")
    start = len(tokens) - target
    cache = schedule("likelihood", sparse, draws, start, f"more draws than {draws}")
    rng = np.random.default_rng(seed)

    def masks() -> Iterator[NDArray[np.bool_]]:
        for draw in range(1 if target == 1 and sparse is None else draws):
            share = (draws - 1 - draw + rng.random()) / draws
            masked = np.zeros((1, target), np.bool_)
            masked[0, rng.choice(target, 1 + int(share * target), replace=False)] = True
            yield masked

    means = mean_log_probabilities(model, tokens[:start], tokens[start:], masks(), cache)
    losses = np.resize(-np.concatenate(list(means)), draws)
    return Likelihood(float(losses.mean()), losses)
