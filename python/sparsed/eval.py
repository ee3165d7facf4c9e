"""The evaluation kit under its public name; the code is in `sparsed.apps.eval`."""

from __future__ import annotations

from .apps.eval import *  # noqa: F403
from .apps.eval import __all__ as __all__
