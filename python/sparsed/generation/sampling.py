"""Samplers: which masked positions a denoising step unmasks, and with which tokens.

A sampler is a frozen set of options. It keeps no state: a step follows from its number, the masked positions of the row
and the random generator of the row, so rows never influence each other. `generate` drives every family through the same
two calls: `candidates` says whose logits a step needs, `choose` which of them the step unmasks, and with which tokens.

Equal confidences go to the lower position. A token may be the mask token itself, as in the published code: its position
then stays masked and remains a candidate. With an option of `ParallelSampler` that would not end or would not commit,
so that the mask token is excluded.
Options at the edge of the numbers give the mathematical limit: a temperature that tends to 0 the arg-max.
"""

from __future__ import annotations

from .samplers.base import Candidates, Choice, Request, Sampler
from .samplers.dream import DreamSampler
from .samplers.llada import LLaDASampler
from .samplers.logits import FloatArray, IntArray
from .samplers.mdlm import MDLMSampler
from .samplers.parallel import ParallelSampler

__all__ = [
    "SAMPLERS",
    "Candidates",
    "Choice",
    "DreamSampler",
    "FloatArray",
    "IntArray",
    "LLaDASampler",
    "MDLMSampler",
    "ParallelSampler",
    "Request",
    "Sampler",
]

# The published sampler of each model family.
SAMPLERS: dict[str, type[LLaDASampler] | type[DreamSampler]] = {
    "llada": LLaDASampler,
    "dream": DreamSampler,
    "a2d": MDLMSampler,
}
