"""Attention, patterns and model operations on arrays: the only modules that call the compiled `_core`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec(f"{__name__}._core") is None:
    _folder = Path(__file__).parent
    _others = ", ".join(sorted(path.name for path in _folder.glob("_core.*") if path.suffix != ".pyi"))
    raise ImportError(
        f"sparsed: the compiled module _core is not in {_folder}"
        + f" (there is {_others}, which Python {sys.version_info[0]}.{sys.version_info[1]} cannot load)" * bool(_others)
        + ". `pip install .` in a checkout compiles and installs it. Then start Python outside of the checkout's folder"
        " python/, in which nothing is compiled, and leave that folder out of PYTHONPATH",
        name=f"{__name__}._core",
        path=str(_folder),
    )
