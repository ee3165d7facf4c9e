"""The demo under its public name; the code is in `sparsed.apps.demo`."""

from __future__ import annotations

from .apps.demo import demo_model_folder

__all__ = ["demo_model_folder"]
