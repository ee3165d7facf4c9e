"""Compiles every CUDA kernel and reads what ptxas says: none may spill registers. Writes the table of resources."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
SUMS = ("none", "shared", "own")
MOST_SHARED = 99 << 10  # bytes that a block gets on every device from compute capability 8.0 on


@dataclass(frozen=True)
class Entry:
    kernel: str
    arch: str
    registers: int
    spills: int


def compile_entries(nvcc: str, source: Path, include: Path, arch: str) -> list[Entry]:
    command = [nvcc, "-cubin", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", f"-I{include}", "-o", "/dev/null", str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    found = [
        Entry(m["name"], m["arch"], int(m["registers"]), int(m["stores"]) + int(m["loads"]))
        for m in ENTRY.finditer(result.stderr)
    ]
    names = subprocess.run(["c++filt"], input="\n".join(e.kernel for e in found), capture_output=True, text=True)
    short = [
        re.sub(r"\(anonymous namespace\)::|sparsed::cuda::|void |\(sparsed.*$|\([A-Z]\w*Args\)$", "", name)
        for name in names.stdout.splitlines()
    ]
    return [Entry(name, e.arch, e.registers, e.spills) for name, e in zip(short, found, strict=True)]


def shared_bytes(program: str) -> dict[tuple[int, int], int]:
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    return {(int(d), int(sums)): int(size) for d, sums, size in (line.split() for line in lines)}


def readable(kernel: str) -> tuple[str, tuple[int, int] | None]:
    """Name for the table, and (head_dim, sums) of an sm_80 kernel."""
    match = re.search(r"Sm80<(\w+), (\d+), \(Sums\)(\d)>", kernel)
    if match:
        name = f"sm_80 {match[1].lower()} head_dim {match[2]}, sums {SUMS[int(match[3])]}"
        return name, (int(match[2]), int(match[3]))
    match = re.search(r"Plain<(\w+), \(Sums\)(\d)>", kernel)
    return (f"plain {match[1].lower()}, sums {SUMS[int(match[2])]}" if match else kernel), None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--shared", required=True, help="the program cuda_shared")
    parser.add_argument("--arch", nargs="+", default=["80", "90a"])
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    include = Path(__file__).parents[1] / "csrc"
    sources = sorted((include / "cuda" / "instantiate").glob("*.cu"))
    jobs = [(source, arch) for source in sources for arch in arguments.arch]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: compile_entries(arguments.nvcc, job[0], include, job[1]), jobs))
    entries = [entry for group in found for entry in group]
    shared = shared_bytes(arguments.shared)

    rows: dict[str, dict[str, Entry]] = {}
    sizes: dict[str, int] = {}
    for entry in entries:
        name, key = readable(entry.kernel)
        rows.setdefault(name, {})[entry.arch] = entry
        if key:
            sizes[name] = shared[key]
    archs = [f"sm_{arch}" for arch in arguments.arch]
    version = subprocess.run([arguments.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", version)
    lines = [
        "# What the CUDA kernels take",
        "",
        f"Registers of a thread by `ptxas -v` (nvcc {release[1] if release else '?'}), shared memory of a block of 128 "
        "threads; none spills. `tests/cuda_resources.py --table` writes this file.",
        "",
        "| kernel | " + " | ".join(f"registers, {arch}" for arch in archs) + " | shared memory, bytes |",
        "| --- | " + "---: | " * (len(archs) + 1),
    ]
    for name, by_arch in sorted(
        rows.items(), key=lambda row: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", row[0])]
    ):
        registers = " | ".join(str(by_arch[arch].registers) if arch in by_arch else "-" for arch in archs)
        lines.append(f"| {name} | {registers} | {sizes.get(name, '-')} |")
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    print(text)
    if arguments.table:
        arguments.table.write_text(text)

    bad = [f"{entry.kernel} for {entry.arch} spills {entry.spills} bytes" for entry in entries if entry.spills]
    bad += [
        f"{name} takes {size} bytes of shared memory, expected at most {MOST_SHARED}"
        for name, size in sizes.items()
        if size > MOST_SHARED
    ]
    if not entries:
        bad.append("ptxas named no kernel")
    print("\n".join(bad), file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
