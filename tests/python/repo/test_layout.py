"""What the tree promises: who includes whom, one place of the version, fresh stubs."""

from __future__ import annotations

import ast
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import sparsed
from paths import ROOT

CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "sparsed"

INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)
# Layer -> which of our layers it may include. csrc/registry.* is a layer of its own.
MAY_INCLUDE = {
    "support": {"support"},
    "core": {"support", "core"},
    "cpu": {"support", "core", "cpu"},
    "cuda": {"support", "core", "cuda"},
    "registry": {"support", "core", "cpu", "cuda", "registry"},
    "bindings": {"support", "core", "registry", "bindings"},
}
# Beyond the standard library. Threads, intrinsics and the operating system stay out of the core, pybind11 out of
# everything but the bindings.
FOREIGN = {
    "support": re.compile(r"sys/mman\.h"),  # huge pages
    "core": re.compile(r"$^"),
    "cpu": re.compile(r"omp\.h|immintrin\.h|xmmintrin\.h|cpuid\.h|pthread\.h|sys/syscall\.h|unistd\.h"),
    "cuda": re.compile(r"cuda[\w.]*\.h"),
    "registry": re.compile(r"$^"),
    "bindings": re.compile(r"pybind11/.*"),
}
STANDARD = re.compile(r"[a-z_]+")  # <vector>, <cstdint>, ...

SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})
# CPU kernels are compiled with flags of an instruction set, so their names stay inside of a unit.
KERNEL_HEADERS = [path for path in SOURCES if path.suffix == ".h" and "\nnamespace {\n" in path.read_text()]
KERNEL_FLAGS = (
    "avx2 fma f16c avxvnni avx512f avx512bw avx512vl avx512dq avx512vnni avx512bf16 amx-tile amx-bf16 amx-int8"
).split()


def layer(relative: str) -> str:
    head = relative.split("/")[0]
    return head.split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_include_rules(path: Path) -> None:
    own = layer(str(path.relative_to(CSRC)))
    for included in INCLUDE.findall(path.read_text()):
        if (CSRC / included).exists():
            assert layer(included) in MAY_INCLUDE[own], f"{path.name} includes {included}"
            if CSRC / included in KERNEL_HEADERS:
                allowed = path in KERNEL_HEADERS or re.fullmatch(r"cpu/isa_\w+\.cpp", str(path.relative_to(CSRC)))
                assert allowed, f"{path.name} includes {included}"
            if included.endswith(".cuh"):
                assert path.suffix in {".cu", ".cuh"}, f"{path.name} includes {included}"
            if own == "registry" and layer(included) in {"cpu", "cuda"}:
                assert included in {"cpu/backend.h", "cuda/cuda.h"}, f"{path.name} includes {included}"
        else:
            known = STANDARD.fullmatch(included) or FOREIGN[own].fullmatch(included)
            assert known, f"{path.name} includes {included}"


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the flags are those of x86-64")
@pytest.mark.parametrize("path", KERNEL_HEADERS, ids=lambda path: path.name)
def test_a_kernel_header_compiles_by_itself(path: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no compiler {compiler[0]}")
    command = [*compiler, "-std=c++20", "-fsyntax-only", f"-I{CSRC}", *(f"-m{flag}" for flag in KERNEL_FLAGS)]
    source = f'#include "{path.relative_to(CSRC)}"\n'
    done = subprocess.run([*command, "-x", "c++", "-"], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_source_belongs_to_a_layer() -> None:
    assert {layer(str(path.relative_to(CSRC))) for path in SOURCES} <= set(MAY_INCLUDE)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_kernels_import_the_compiled_module(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {node.module or ""} | {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            continue
        if any(name.split(".")[-1] == "_core" for name in names):
            assert path.parent == PACKAGE / "kernels"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_is_imported_by_its_own_package_or_late(path: Path) -> None:
    if PACKAGE / "torch" in path.parents:
        return
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] in {"torch", "transformers"} for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in {"torch", "transformers"}


# A room imports from itself and from the rooms before it; files beside the rooms (checks, config ...) are the first.
ROOMS = ["", "kernels", "models", "generation", "torch", "apps"]
# The public doors of the package, which import from all rooms.
DOORS = {"__init__.py", "__main__.py", "demo.py", "eval.py", "lm_eval.py"}
# Imported when it is asked for: the engine by `load_model(engine="torch")`, the compiled schedule by `phases`.
UPWARDS = {("models/loader.py", "torch"), ("config.py", "kernels")}


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that a file imports anywhere, relative to the package: "kernels.pattern", ..."""
    package = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            start = package[: len(package) - node.level + 1]
            module = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            names = [f"sparsed.{module}.{alias.name}".replace("..", ".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("sparsed.") for name in names if name.split(".")[0] == "sparsed"}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if str(relative) in DOORS:
        return
    room = relative.parts[0] if len(relative.parts) > 1 else ""
    for module in imported_modules(path):
        imported = module.split(".")[0]
        if imported in ROOMS and (str(relative), imported) not in UPWARDS:
            assert ROOMS.index(imported) <= ROOMS.index(room), f"{relative} imports {module}"


TESTS = ROOT / "tests" / "python"
TEST_FILES = sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_a_test(path: Path) -> None:
    """Tests share what stands in helper modules and in fixtures, so that each file can be read and run apart."""
    tests = {file.stem for file in TEST_FILES if file.name.startswith("test_")}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        assert not {part for name in names for part in name.split(".")} & tests, f"{path} imports {names}"


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them by their names."""
    names = [path.name for path in TEST_FILES]
    assert len(set(names)) == len(names)


def test_drawing_is_imported_when_it_is_asked_for() -> None:
    script = "import sparsed, sys; print([name for name in sys.modules if 'matplotlib' in name or 'pictures.' in name])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_version_has_one_place() -> None:
    match = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match
    assert sparsed.__version__ == version("sparsed") == match[1]
    for path in (*PACKAGE.rglob("*.py"), ROOT / "CMakeLists.txt", *SOURCES):
        assert match[1] not in path.read_text(), f"{path} repeats the version"


def test_public_names_exist() -> None:
    assert len(set(sparsed.__all__)) == len(sparsed.__all__)
    for name in sparsed.__all__:
        assert hasattr(sparsed, name)
    assert (PACKAGE / "py.typed").exists()


def test_stubs_are_fresh(tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen")
    command = [sys.executable, "-m", "pybind11_stubgen", "--exit-code", "-o", str(tmp_path), "sparsed.kernels._core"]
    subprocess.run(command, check=True, capture_output=True)
    generated = (tmp_path / "sparsed" / "kernels" / "_core.pyi").read_text()
    assert generated == (PACKAGE / "kernels" / "_core.pyi").read_text(), "run `make stubs`"
