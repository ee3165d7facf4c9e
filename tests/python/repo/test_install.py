"""What is said where sparsed cannot be compiled, or is not compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "python" / "sparsed"


def configure(folder: Path, *options: str, **environment: str) -> str:
    """The errors of CMake, as one line."""
    beside_python = str(Path(sys.executable).parent)  # goes first: others may be scripts that need the PATH
    cmake = shutil.which("cmake", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if cmake is None:
        pytest.skip("cmake is not installed")
    command = [cmake, "-S", ROOT, "-B", folder, "-G", "Unix Makefiles", "-DSPARSED_CUDA=OFF", "-DBUILD_TESTING=OFF"]
    variables = {name: value for name, value in os.environ.items() if name != "CXX"} | environment
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=variables)
    assert done.returncode
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("variables", "chosen"), [({}, ""), ({"CXX": "g++ -pthread"}, ' (the variable CXX is "g++ -pthread")')]
)
def test_without_a_compiler_the_build_says_what_to_install(tmp_path: Path, variables, chosen) -> None:
    options = ("-DCMAKE_MAKE_PROGRAM=true", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF")  # /usr/bin is not looked into
    errors = configure(tmp_path / "build", *options, PATH=str(tmp_path), **variables)
    assert f"there is no C++ compiler here{chosen}. Install one" in errors and "apt-get install -y g++" in errors


def from_source(tmp_path: Path, code: str, *files: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a copy of the package in which nothing is compiled, with `files` beside it, not installed."""
    shutil.copytree(PACKAGE, tmp_path / "sparsed", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in files:
        (tmp_path / "sparsed" / "kernels" / file).touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)


def test_a_source_tree_says_that_it_is_not_compiled(tmp_path: Path) -> None:
    done = from_source(tmp_path, "import sparsed")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: sparsed: the compiled module _core is not in ")
    assert str(tmp_path / "sparsed" / "kernels") in last and "pip install ." in last and "circular" not in done.stderr


def test_a_module_of_another_python_is_named(tmp_path: Path) -> None:
    done = from_source(tmp_path, "import sparsed.kernels.attention", "_core.cpython-38-x86_64-linux-gnu.so")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"(there is _core.cpython-38-x86_64-linux-gnu.so, which Python {version} cannot load)" in done.stderr


def test_a_build_folder_needs_no_installation() -> None:
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "import sparsed; from sparsed.apps import cli\n"
        "print(sparsed.__version__); cli.main(['info'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("unknown\nsparsed") and "numpy             not installed" in done.stdout
