"""The machine and the versions that a bug report or a measurement needs to name."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..kernels.attention import active_backend, backends, get_num_threads
from ..kernels.ops import require_memory
from ..models.precision import multiplies_bfloat16


def machine_info() -> dict[str, Any]:
    """Returns the facts about versions and the machine that a bug report or a benchmark needs."""
    try:
        active = active_backend()
    except ValueError as error:  # SPARSED_ISA names a backend that cannot run here
        active = f"none: {error}"
    packages = ("numpy", "ml_dtypes", "tokenizers", "jinja2", "torch")
    return {
        "sparsed": __version__,
        **{package: _version(package) for package in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": get_num_threads(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "SPARSED_ISA": os.environ.get("SPARSED_ISA", ""),
        "active": active,
        "dtype auto": _automatic_dtype(),
        "backends": {
            backend.name: "available" if backend.available else "; ".join(backend.reasons) for backend in backends()
        },
    }


def _automatic_dtype() -> str:
    try:
        native = multiplies_bfloat16()
    except ValueError:
        return "none"
    return "bfloat16 for checkpoints that are stored in it, else float32" if native else "float32"


def available_memory() -> str:
    """Returns the memory that this process can still allocate, by the rule of the checks before large allocations."""
    try:
        require_memory(2**64 - 1, "everything")
    except MemoryError as error:  # the message says how much is available, under control groups too
        return str(error).rpartition("available are ")[2]
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """Returns the model name of the processor, or its architecture if the system does not give the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
