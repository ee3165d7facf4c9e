"""What colours mean: the phases, and how sure a token is; the same in every picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PHASE_COLOURS = {
    "dense": "#5b7cfa",
    "select": "#e39a2d",
    "sparse": "#17a08c",
    "cached": "#b264d8",
    "mixed": "#8a8f9c",
}
PROMPT_COLOUR = "#e0603d"


def confidence_shade(confidence: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) in 0 ... 1 for colours: probabilities and margins as they are, negative entropies as exp(c); NaN is 0.

    The negative entropy of a certain token is 1e-10 (the epsilon of Dream's published sampler).
    """
    values = np.nan_to_num(confidence.astype(np.float64), nan=0.0)
    highest = values.max(initial=0.0)
    entropies = bool((values < 0).any()) or 0 < highest < 1e-9
    return np.where(np.isnan(confidence), 0.0, np.clip(np.exp(values) if entropies else values, 0, 1))
