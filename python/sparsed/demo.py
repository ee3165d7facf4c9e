"""The demo under its public name; the code is in `sparsed.apps.demo`."""

from __future__ import annotations

from .models.files import demo_model_folder

__all__ = ["demo_model_folder"]
