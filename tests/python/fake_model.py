"""A model without weights, for tests of the denoising loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

MASK, VOCABULARY = 9, 40
END = (3, 5)  # eos, and the end of a turn


class FakeModel:
    """Logits that depend on the position, its token and the row's number of masks; it notes what it is asked for."""

    def __init__(self, shift: bool = False) -> None:
        self.config: Any = SimpleNamespace(
            family="dream" if shift else "llada",
            mask_token_id=MASK,
            end_token_ids=END,
            vocab_size=VOCABULARY,
            shift_logits=shift,
            num_layers=2,
        )
        self.positions: list[np.ndarray] = []
        self.ids: list[np.ndarray] = []

    def forward(self, ids, attend=None, positions=None, position_ids=None, key_mask=None):
        self.positions.append(np.array(positions))
        self.ids.append(np.array(ids))
        batch, length = ids.shape
        if attend is not None:
            q = np.random.default_rng(0).standard_normal((batch, 2, length, 16), np.float32)
            for layer in range(self.config.num_layers):
                attend(layer, q, q, q)
        masks = (ids == MASK).sum(axis=1)
        seeds = 1000 * ids[:, positions] + 7 * np.asarray(positions) + masks[:, None]
        logits = np.sin(seeds[..., None] * (1.0 + np.arange(VOCABULARY))).astype(np.float32)
        logits[..., MASK] = -10
        return 4 * logits


def prompt_of(length: int, seed: int = 0, vocabulary: int = VOCABULARY) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, vocabulary - 1, length)
    return np.where(ids >= MASK, ids + 1, ids)
