"""sparsed inside torch: operators for ``torch.compile``, and one line that makes a model's own attention sparse.

``sparsed.attention`` and ``PatternCache`` take tensors without this package; it is imported only by name.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("sparsed.torch: torch is not installed, expected: pip install torch") from error

from .acceleration import Acceleration, accelerate
from .ops import attend, attention, attention_and_select, cache_handle

__all__ = ["Acceleration", "accelerate", "attend", "attention", "attention_and_select", "cache_handle"]
