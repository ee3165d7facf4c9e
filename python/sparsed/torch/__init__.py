"""sparsed inside torch: operators for ``torch.compile``, and a function that makes a torch model's attention sparse.

``sparsed.attention`` and ``PatternCache`` accept tensors without this package, which has to be imported explicitly.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("sparsed.torch: torch is not installed, expected: pip install torch") from error

from .acceleration import Acceleration, accelerate
from .ops import attend, attention, attention_and_select, cache_handle

__all__ = ["Acceleration", "accelerate", "attend", "attention", "attention_and_select", "cache_handle"]
