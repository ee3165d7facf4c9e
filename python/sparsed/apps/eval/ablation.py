"""The paper's ablation: SparseD without skipping, without reuse, without isolation; sweeps of its settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...kernels.config import SparseConfig
from ..methods import Method

RHOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
SKIPS = (0.0, 0.1, 0.2, 0.3, 0.5)
BLOCK_SIZES = (16, 32, 64, 128)
REFRESH = 0.6


def ablations(config: SparseConfig) -> list[Method]:
    """Returns dense attention, SparseD under `config`, and each variant of it.

    Source: arXiv 2509.24014, table 2 (the ablation) and the figures of accuracy against rho and skip.
    """
    variants: dict[str, dict[str, Any]] = {
        "no skip": {"skip": 0.0},
        "select every step": {"refresh": "every"},
        "no isolation": {"isolate": False},
    }
    if config.skip < REFRESH:
        variants[f"refresh {REFRESH:g}"] = {"refresh": (REFRESH,)}
    variants |= {f"rho {rho:g}": {"rho": rho} for rho in RHOS if rho != config.rho}
    variants |= {f"skip {skip:g}": {"skip": skip} for skip in SKIPS if skip not in (config.skip, 0.0)}
    variants |= {f"block {size}": {"block_size": size} for size in BLOCK_SIZES if size != config.block_size}
    return [
        Method("dense"),
        Method("SparseD", sparse=config),
        *(Method(name, sparse=dataclasses.replace(config, **options)) for name, options in variants.items()),
    ]
