"""Runs one call in a separate process and prints, as JSON, how much it adds to the peak of the resident memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sparsed

from .arrays import random_blocks, random_qkv
from .cases import AttentionCase

# Writing this to /proc/self/clear_refs resets the peak in /proc/self/status, see proc_pid_clear_refs(5).
_RESET_PEAK = "5"


def main(text: str) -> None:
    """Measures the call that `text` describes: JSON with an AttentionCase, `call`, `block_size` and `density`."""
    given = json.loads(text)
    call, block_size, density = given.pop("call"), given.pop("block_size"), given.pop("density")
    case = AttentionCase(**given)
    q, k, v = random_qkv(case)
    pattern = random_blocks(case.length, case.heads, block_size, density).pattern if call == "sparse" else None
    # This call starts the threads, so that their stacks exist before the measurement.
    sparsed.attention(q[:, :, :256], k[:, :, :256], v[:, :, :256])
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    before = _status("VmRSS")
    if call == "select":
        sparsed.attention_and_select(q, k, v, prompt_length=case.length * 15 // 16, block_size=block_size)
    else:
        sparsed.attention(q, k, v, pattern)
    print(json.dumps({"inputs": q.nbytes + k.nbytes + v.nbytes, "extra": _status("VmHWM") - before}))


def _status(field: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main(sys.argv[1])
