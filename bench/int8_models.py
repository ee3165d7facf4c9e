"""The models whose answers `bench.quality` and `bench.int8_logits` compare: one checkpoint in several precisions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sparsed

STORED = "bfloat16"
INT8 = "int8"
# Arguments of `sparsed.quantize`; "calibration" stands for the text of the test bed.
_FOLDERS: dict[str, dict[str, Any]] = {
    "int8, down bfloat16": {"keep": ("head", "down")},
    "int8, smoothed": {"calibration": True},
    "int8, head too": {"keep": ()},
}
VARIANTS = (STORED, INT8, *_FOLDERS)


class Models:
    """Loads the variants of a checkpoint when they are asked for.

    Args:
        folder: The checkpoint.
        calibration: Makes the text that smoothing calibrates with.
        dtype: The dtype of the activations.
    """

    def __init__(self, folder: Path, calibration: Callable[[], str], dtype: str) -> None:
        self._folder, self._calibration, self._dtype = folder, calibration, dtype
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, variant: str) -> Any:
        if variant not in self._loaded:
            self._loaded[variant] = self._load(variant)
        return self._loaded[variant]

    def _load(self, variant: str) -> Any:
        if variant not in _FOLDERS:
            weights = "int8" if variant == INT8 else "auto"
            return sparsed.load_model(self._folder, self._dtype, weights=weights)
        options = dict(_FOLDERS[variant])
        if "calibration" in options:
            options["calibration"] = self._calibration()
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "int8"
            sparsed.quantize(self._folder, out, **options)
            return sparsed.load_model(out, self._dtype)
