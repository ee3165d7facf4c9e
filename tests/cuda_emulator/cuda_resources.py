"""Compiles every CUDA kernel and reads what ptxas says. Writes the table of resources.

None may spill registers or keep arrays in local memory, nor may ptxas ignore or serialise what the code asks for.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# Notes of ptxas that cost speed: "setmaxnreg ignored to maintain minimum register requirement", "Potential Performance
# Loss: wgmma.mma_async instructions are serialized due to ...".
NOTE = re.compile(r"^.*(?:setmaxnreg[^\n]*ignored|wgmma[^\n]*serialized|Potential Performance Loss).*$", re.MULTILINE)
SUMS = ("none", "shared", "own")
# Bytes that a block gets: on every device from compute capability 8.0 on, and on 9.0.
MOST_SHARED = {80: 99 << 10, 90: 227 << 10}
Key = tuple[int, int, int, int, int]  # kernel family, head_dim, sums, split, output


@dataclass(frozen=True)
class Entry:
    kernel: str
    arch: str
    registers: int
    spills: int
    stack: int


def compile_entries(nvcc: str, source: Path, include: Path, arch: str) -> tuple[list[Entry], list[str]]:
    """Its kernels, and the notes that none should give."""
    command = [nvcc, "-cubin", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", f"-I{include}", "-o", "/dev/null", str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    found = [
        Entry(m["name"], m["arch"], int(m["registers"]), int(m["stores"]) + int(m["loads"]), int(m["stack"]))
        for m in ENTRY.finditer(result.stderr)
    ]
    names = subprocess.run(["c++filt"], input="\n".join(e.kernel for e in found), capture_output=True, text=True)
    short = [
        re.sub(r"^void |\(\w*Args\)$", "", re.sub(r"\(anonymous namespace\)::|sparsed::cuda::", "", name))
        for name in names.stdout.splitlines()
    ]
    entries = [replace(entry, kernel=name) for name, entry in zip(short, found, strict=True)]
    return entries, [f"{source.name} for {arch}: {note.strip()}" for note in NOTE.findall(result.stderr)]


def shared_bytes(program: str) -> dict[Key, int]:
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    numbers = [[int(word) for word in line.split()] for line in lines]
    return {(family, d, sums, split, output): size for family, d, sums, split, output, size in numbers}


def readable(kernel: str) -> tuple[str, Key | None]:
    """Name for the table, and which kernel of the families sm_80 and sm_90a it is."""
    match = re.search(r"Sm80<(\w+), (\d+), \(Sums\)(\d)>", kernel)
    if match:
        name = f"sm_80 {match[1].lower()} head_dim {match[2]}, sums {SUMS[int(match[3])]}"
        return name, (80, int(match[2]), int(match[3]), 0, 1)
    match = re.search(r"Sm90<(\w+), (\d+), \(Sums\)(\d), (true|false), (true|false)>", kernel)
    if match:
        split, output = match[4] == "true", match[5] == "true"
        form = (", shared rows" if split else "") + ("" if output else ", no output")
        name = f"sm_90a {match[1].lower()} head_dim {match[2]}, sums {SUMS[int(match[3])]}{form}"
        return name, (90, int(match[2]), int(match[3]), int(split), int(output))
    match = re.search(r"Plain<(\w+), \(Sums\)(\d)>", kernel)
    return (f"plain {match[1].lower()}, sums {SUMS[int(match[2])]}" if match else kernel), None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--shared", required=True, help="the program cuda_shared")
    parser.add_argument("--arch", nargs="+", default=["80", "90a"])
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    include = Path(__file__).parents[2] / "csrc"
    sources = sorted((include / "cuda").rglob("*.cu"))
    jobs = [(source, arch) for source in sources for arch in arguments.arch]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: compile_entries(arguments.nvcc, job[0], include, job[1]), jobs))
    entries = [entry for group, _ in found for entry in group]
    shared = shared_bytes(arguments.shared)

    rows: dict[str, dict[str, Entry]] = {}
    sizes: dict[str, int] = {}
    most: dict[str, int] = {}
    for entry in entries:
        name, key = readable(entry.kernel)
        if key and key[0] == 90 and entry.arch != "sm_90a":
            continue  # empty there
        rows.setdefault(name, {})[entry.arch] = entry
        if key:
            sizes[name], most[name] = shared[key], MOST_SHARED[key[0]]
    archs = [f"sm_{arch}" for arch in arguments.arch]
    version = subprocess.run([arguments.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", version)
    lines = [
        "# What the CUDA kernels take",
        "",
        f"Registers of a thread by `ptxas -v` (nvcc {release[1] if release else '?'}), shared memory of a block of 128 "
        "threads (sm_90a: 384, whose computing warps then claim 232 registers); none spills. "
        "`tests/cuda_emulator/cuda_resources.py --table` writes this file.",
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

    bad = [note for _, notes in found for note in notes]
    bad += [f"{entry.kernel} for {entry.arch} has a stack of {entry.stack} bytes" for entry in entries if entry.stack]
    bad += [f"{entry.kernel} for {entry.arch} spills {entry.spills} bytes" for entry in entries if entry.spills]
    bad += [
        f"{name} takes {size} bytes of shared memory, expected at most {most[name]}"
        for name, size in sizes.items()
        if size > most[name]
    ]
    if not entries:
        bad.append("ptxas named no kernel")
    print("\n".join(bad), file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
