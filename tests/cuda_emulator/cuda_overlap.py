"""Machine code of the sm_90a kernels: exponentials must run while the values of the tile before are multiplied.

ptxas may move a wait for a product in front of whatever stands before it, up to the last jump: results stay right and
the overlap is gone. In the main loop no exponential may follow a wait for all products without a product begun between.

Needs cuobjdump and nvdisasm: a CUDA toolkit has them, `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm` too.
Ends with status 77 where there are none.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTION = re.compile(r"Function : (\w+)")
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;")
JUMP = re.compile(r"\bBRA\b.*?0x([0-9a-f]+)")
WITH_OUTPUT = re.compile(r"attention_sm90_kernel.*Lb[01]ELb1E")  # Sm90: its last argument; others have one product
SKIPPED = 77
Code = list[tuple[int, str]]  # address, instruction


def find_cuobjdump(nvcc: str) -> str | None:
    beside = Path(shutil.which(nvcc) or nvcc).resolve().parent / "cuobjdump"
    packages = [path for root in (Path(sys.prefix), ROOT / ".venv") for path in root.glob("lib/python3*/site-packages")]
    from_pypi = [path for package in packages for path in package.glob("nvidia/cu*/bin/cuobjdump")]
    return shutil.which("cuobjdump") or next((str(path) for path in [beside, *from_pypi] if path.exists()), None)


def kernels(nvcc: str, cuobjdump: str, source: Path) -> dict[str, Code]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_90a", f"-I{ROOT / 'csrc'}"]
        subprocess.run([nvcc, "-cubin", *flags, "-o", str(cubin), str(source)], check=True)
        text = subprocess.run([cuobjdump, "-sass", str(cubin)], check=True, capture_output=True, text=True).stdout
    found: dict[str, Code] = {}
    for line in text.splitlines():
        if function := FUNCTION.search(line):
            code = found.setdefault(function[1], [])
        elif instruction := INSTRUCTION.match(line):
            code.append((int(instruction[1], 16), instruction[2]))
    return found


def main_loop(code: Code) -> list[str]:
    """The shortest loop that begins both products, from its first instruction to the jump back."""
    place = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (_, text) in enumerate(code):
        jump = JUMP.search(text)
        start = place.get(int(jump[1], 16), len(code)) if jump else len(code)
        body = [instruction for _, instruction in code[start : i + 1]]
        products = [text for text in body if "HGMMA" in text]
        if any("tnspB" in text for text in products) and any("tnspB" not in text for text in products):
            loops.append(body)
    return min(loops, key=len, default=[])


def late_exponentials(loop: list[str]) -> tuple[int, int]:
    """How many exponentials the loop has, and how many of them have waited for every product."""
    total = late = 0
    under_way = True  # the loop is entered with nothing to wait for
    for text in loop:
        if "HGMMA" in text:
            under_way = True
        elif "WARPGROUP.DEPBAR.LE gsb0, 0x0" in text:
            under_way = False
        elif "MUFU.EX2" in text:
            total += 1
            late += not under_way
    return total, late


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default="nvcc")
    nvcc = parser.parse_args().nvcc
    cuobjdump = find_cuobjdump(nvcc)
    if not cuobjdump:
        print("there is no cuobjdump: not checked")
        return SKIPPED
    bad = checked = 0
    for source in sorted((ROOT / "csrc/cuda/sm90/instantiate").glob("*.cu")):
        for name, code in kernels(nvcc, cuobjdump, source).items():
            if not WITH_OUTPUT.search(name):
                continue
            total, late = late_exponentials(main_loop(code))
            checked += 1
            bad += total == 0 or late > 0
            print(f"{name}: {total} exponentials in the main loop, {late} after the products that they should overlap")
    return 1 if bad or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
