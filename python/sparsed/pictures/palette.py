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
    """(n,) in 0 ... 1 for colours: probabilities and margins as they are, negative entropies as exp(c); NaN is 0."""
    known = np.nan_to_num(confidence.astype(np.float64), nan=0.0)
    return np.clip(np.exp(known) if (known < 0).any() else known, 0, 1)
