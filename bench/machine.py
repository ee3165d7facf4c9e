"""Describes the machine, and starts processes that are limited to an instruction set or a number of threads."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sparsed
from sparsed.apps.environment import cpu_name

# Times are disturbed if other processes keep more cores busy than this.
BUSY = 0.2
# This variable is set in a process whose environment already has the limits of --isa and --threads.
CHILD = "SPARSED_BENCH_CHILD"
_PACKAGES = ("sparsed", "numpy", "ml_dtypes", "torch")

# Variables that limit torch, oneDNN and MKL to the instruction set of one of our backends. These libraries read them
# only when they load, so a limited benchmark needs a new process.
PEER_LIMITS = {
    "amx": {},
    "avx512_bf16": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "scalar": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
_AVX512_MKL = {"MKL_ENABLE_INSTRUCTIONS": "AVX512"}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def limited_environment(isa: str | None, threads: int | None) -> dict[str, str]:
    """Returns the environment variables that limit sparsed and the peers in the same way."""
    variables: dict[str, str] = {}
    if isa is not None:
        variables |= PEER_LIMITS[isa] | (_AVX512_MKL if isa.startswith("avx512") else {}) | {"SPARSED_ISA": isa}
    if threads is not None:
        variables |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return variables


def run_module(module: str, arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Runs a module of this package in a process with more environment variables. Returns its exit status."""
    return subprocess.run(_command(module, arguments), env={**os.environ, **variables}, check=False).returncode


def module_output(module: str, arguments: Sequence[str]) -> str:
    """Runs a module of this package in a process and returns its output.

    Raises:
        RuntimeError: The process failed. The message is the last line that it printed.
    """
    done = subprocess.run(
        _command(module, arguments), env=dict(os.environ), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"bench: {module} failed: {lines[-1]}")
    return done.stdout


def _command(module: str, arguments: Sequence[str]) -> list[str]:
    package = __package__ or "bench"
    return [sys.executable, "-m", f"{package}.{module}" if module else package, *arguments]


def start_module(module: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Starts a module of this package in a process, with pipes to its input and output."""
    command = _command(module, arguments)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def describe() -> dict[str, Any]:
    """Returns the CPU, instruction set, threads, versions, commit and date."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "busy_cores": _busy_cores(),
        "isa": sparsed.active_backend(),
        "isa_forced": "SPARSED_ISA" in os.environ,
        "threads": sparsed.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: found for package in _PACKAGES if (found := _version(package)) is not None},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "limits": {name: os.environ[name] for name in sorted(_limit_names()) if name in os.environ},
    }


def summary(machine: Mapping[str, Any]) -> str:
    """Formats the result of `describe` as one line."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    commit = f" ({machine['commit']})" if machine["commit"] else ""
    busy = f"; {machine['busy_cores']:.1f} cores were busy" if machine.get("busy_cores", 0) > BUSY else ""
    return f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads; {versions}{commit}{busy}"


def _busy_cores() -> float:
    """Measures for half a second how many cores other processes keep busy. Returns 0 if /proc does not tell."""
    try:
        before = _cpu_ticks()
        time.sleep(0.5)
        (idle, total), (idle_before, total_before) = _cpu_ticks(), before
    except OSError:
        return 0.0
    share = 1 - (idle - idle_before) / max(total - total_before, 1)
    return round(share * (os.cpu_count() or 1), 2)


def _cpu_ticks() -> tuple[int, int]:
    """Returns the idle ticks and all ticks of all cores."""
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _limit_names() -> set[str]:
    return {name for limits in PEER_LIMITS.values() for name in limits} | {"SPARSED_ISA", *_THREAD_VARIABLES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the checkout that contains this file, or None if it is not in a checkout."""
    here = Path(__file__).resolve()
    root = next((path for path in here.parents if (path / ".git").exists() and (path / "csrc/core").is_dir()), None)
    if root is None:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
