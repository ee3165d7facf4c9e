"""Models that note or recompute what cached decoding computes, for tests of it."""

from __future__ import annotations

from typing import Any

import numpy as np

import sparsed
from sparsed import DelayedCache, DreamSampler, DualCache, LLaDASampler, PrefixCache

CACHES = [PrefixCache(), DualCache(), DualCache(refresh=2), DelayedCache(refresh=4)]
SAMPLERS: dict[str, Any] = {"llada": LLaDASampler, "dream": DreamSampler}


def prompt_of(model, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, min(model.config.vocab_size, 100), length)


class Watched:
    """A model that notes the rows it computes."""

    def __init__(self, model) -> None:
        self.config = model.config
        self.model = model
        self.computed: list[list[int]] = []
        self.new_key_values = model.new_key_values
        self.key_values_nbytes = model.key_values_nbytes

    def new_key_values(self):
        return self.model.new_key_values()

    def forward(self, ids, attend=None, positions=None, *, key_values=None, computed=None):
        self.computed.append(list(range(ids.shape[1]) if computed is None else computed))
        return self.model.forward(ids, attend=attend, positions=positions, key_values=key_values, computed=computed)


class Slow(Watched):
    """Computes every token, and puts the keys and values of those that are not asked for back before each attention.

    Passes that ask for all tokens attend as `generate` says, the others densely.
    """

    def __init__(self, model) -> None:
        super().__init__(model)
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def forward(self, ids, attend=None, positions=None, *, key_values=None, computed=None):
        def swap(layer, q, k, v, key_mask=None):
            if layer in self.kept:
                others = np.setdiff1d(np.arange(k.shape[2]), np.arange(k.shape[2]) if computed is None else computed)
                k, v = k.copy(), v.copy()
                k[:, :, others], v[:, :, others] = (kept[:, :, others] for kept in self.kept[layer])
            self.kept[layer] = (k.copy(), v.copy())
            return sparsed.attention(q, k, v) if attend is None else attend(layer, q, k, v)

        assert attend is None or computed is None
        return self.model.forward(ids, attend=swap, positions=positions)
