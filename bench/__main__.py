"""Makes `python -m bench` do the same as `sparsed bench`."""

from __future__ import annotations

import sys

from .main import main

try:
    sys.exit(main(sys.argv[1:]))
except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
    print(f"sparsed bench: error: {error}", file=sys.stderr)
    sys.exit(2)
