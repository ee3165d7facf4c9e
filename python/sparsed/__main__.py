"""Makes `python -m sparsed` run the command line."""

import sys

from .apps.cli import main

sys.exit(main())
