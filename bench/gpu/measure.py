"""Times dense, sparse and selecting attention on a GPU in turns with torch's, and writes JSON and a table."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import sparsed
from sparsed import BlockPattern

Run = Callable[[], Any]
PROMPT_SHARE = 15 / 16
RHO = 0.3
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}  # relative errors of outputs
cuda: Any = torch.cuda  # its events are not typed


def time_alternating(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Times the contenders in turns, in milliseconds per call, and leaves out those that fail."""
    times: dict[str, list[float]] = {}
    for name, run in list(runs.items()):
        try:
            run()
            torch.cuda.synchronize()
        except Exception as error:  # some backends of torch refuse these inputs
            print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        times[name] = []
    for _ in range(rounds):
        for name in times:
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            cuda._sleep(3_000_000)  # in these cycles, the host queues the kernels, so that its time is not measured
            start.record()
            runs[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return times


def random_qkv(heads: int, length: int, head_dim: int, dtype: Any) -> list[Any]:
    return [torch.randn(1, heads, length, head_dim, device="cuda", dtype=dtype) for _ in range(3)]


def random_pattern(heads: int, length: int, block_size: int, density: float) -> BlockPattern:
    blocks = (length + block_size - 1) // block_size
    keep = max(1, round(blocks * density))
    order = np.random.default_rng(0).random((1, heads, blocks, blocks)).argsort(-1)
    return BlockPattern.from_mask(order < keep, block_size=block_size, q_len=length, kv_len=length)


def block_scores(q: Any, k: Any, block_size: int) -> Any:
    """Returns the probability mass of each (query block, key block) in float64, [1, heads, blocks, blocks]."""
    length = q.shape[2]
    padding = -length % block_size
    mass: Any = (q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    mass = functional.pad(mass, (0, padding, 0, padding))
    return mass.unflatten(3, (-1, block_size)).sum(4).unflatten(2, (-1, block_size)).sum(3)


def selection_error(pattern: BlockPattern, scores: Any, first_generation: int) -> str:
    """Checks the selected blocks against the paper's rule, and describes an error or returns "".

    Blocks with nearly equal scores may be swapped.
    """
    mask = torch.from_numpy(pattern.to_mask())
    for kind, columns in (("prompt", slice(0, first_generation)), ("generation", slice(first_generation, None))):
        chosen: Any = mask[..., columns]
        part: Any = scores[..., columns].cpu()
        blocks = part.shape[-1]
        keep = min(blocks, int(blocks * RHO) + 1)
        if not bool((chosen.sum(-1) == keep).all()):
            return f"rows keep {chosen.sum(-1).unique().tolist()} of {blocks} {kind} blocks, expected {keep}"
        left_out = part.masked_fill(chosen, -1).amax(-1)
        if not bool((part.masked_fill(~chosen, math.inf).amin(-1) >= left_out * (1 - 1e-4)).all()):
            return f"a {kind} block with a higher score is left out"
    return ""


def check(dtypes: list[str], head_dims: list[int]) -> list[str]:
    """Checks small calls against float64 attention and selection, and describes the errors."""
    length, prompt = 333, 250
    wrong: list[str] = []
    for dtype, head_dim, block_size in itertools.product(dtypes, head_dims, (16, 32, 64, 128, 256)):
        q, k, v = random_qkv(2, length, head_dim, getattr(torch, dtype))
        wide = [x.double() for x in (q, k, v)]
        what = f"{dtype}, head_dim {head_dim}, block {block_size}"

        def expect(out: Any, tokens: Any, what: str, wide: Any = wide, most: float = TOLERANCE[dtype]) -> None:
            right = functional.scaled_dot_product_attention(wide[0], wide[1], wide[2], attn_mask=tokens)
            error = float((out.double() - right).norm() / right.norm())
            if not error < most:
                wrong.append(f"{what}: relative error {error}, expected below {most}")

        selection: dict[str, Any] = {"prompt_length": prompt, "block_size": block_size, "rho": RHO}
        selection["generation"] = "sparse"
        expect(sparsed.attention(q, k, v), None, f"{what}, dense")
        pattern = random_pattern(2, length, block_size, 0.4)
        mask = torch.from_numpy(pattern.to_mask()).cuda()
        tokens = mask.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)[:, :, :length, :length]
        expect(sparsed.attention(q, k, v, pattern), tokens, f"{what}, sparse")
        out, selected = sparsed.attention_and_select(q, k, v, **selection)
        expect(out, None, f"{what}, selecting")
        scores = block_scores(q, k, block_size)
        error = selection_error(selected, scores, min(-(-prompt // block_size), scores.shape[-1] - 1))
        if error:
            wrong.append(f"{what}, selecting: {error}")
        if sparsed.select(q, k, **selection) != selected:
            wrong.append(f"{what}: `select` keeps other blocks than `attention_and_select`")
    return wrong


def flex_run(pattern: BlockPattern, q: Any, k: Any, v: Any) -> Run:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    device_mask: Any = torch.from_numpy(pattern.to_mask()).cuda().int()
    counts = device_mask.sum(-1).int()
    indices = device_mask.argsort(-1, descending=True, stable=True).int()
    none = torch.zeros_like(counts)
    blocks = BlockMask.from_kv_blocks(none, indices, counts, indices, BLOCK_SIZE=pattern.block_size)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=blocks)


def torch_sdpa(backend: Any, q: Any, k: Any, v: Any) -> Any:
    with sdpa_kernel(backend):
        return functional.scaled_dot_product_attention(q, k, v)


def contenders(args: argparse.Namespace, head_dim: int, length: int) -> dict[str, Run]:
    q, k, v = random_qkv(args.heads, length, head_dim, torch.bfloat16)
    selection: dict[str, Any] = {
        "prompt_length": int(length * PROMPT_SHARE), "block_size": args.block_size, "rho": RHO, "generation": "sparse",
    }  # fmt: skip
    runs: dict[str, Run] = {
        "sparsed dense": partial(sparsed.attention, q, k, v),
        "sparsed select": partial(sparsed.attention_and_select, q, k, v, **selection),
        "sparsed select only": partial(
            sparsed.select, q, k, **selection
        ),  # its rate counts the FLOPs of a whole dense pass
        "torch cudnn": partial(torch_sdpa, SDPBackend.CUDNN_ATTENTION, q, k, v),
        "torch flash": partial(torch_sdpa, SDPBackend.FLASH_ATTENTION, q, k, v),
    }
    for density in (0.5, 0.3, 0.1):
        pattern = random_pattern(args.heads, length, args.block_size, density)
        runs[f"sparsed {density}"] = partial(sparsed.attention, q, k, v, pattern)
        if args.flex and density == 0.3:
            runs["torch flex 0.3"] = flex_run(pattern, q, k, v)
    return runs


def measure(args: argparse.Namespace, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Times every case, and writes the JSON file after each."""
    records: list[dict[str, Any]] = []
    deadline = time.monotonic() + args.seconds
    for head_dim, length in itertools.product(args.head_dim, args.length):
        if time.monotonic() > deadline:
            print("out of time: the remaining cases are left out", file=sys.stderr)
            break
        flops = 4 * args.heads * length * length * head_dim
        for name, runs in time_alternating(contenders(args, head_dim, length), args.rounds).items():
            last = name.split()[-1]
            density = float(last) if last.startswith("0.") else 1.0
            median = statistics.median(runs)
            records.append(
                {
                    "name": name,
                    "head_dim": head_dim,
                    "length": length,
                    "milliseconds": median,
                    "spread": (max(runs) - min(runs)) / median,
                    "runs": runs,
                    "tflops": flops * density / median / 1e9,
                }
            )
        args.json.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")
    return records


def output_of(*command: str) -> str:
    """Returns the output of a program, or "" if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe() -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "sparsed": version("sparsed"),
        "commit": output_of("git", "describe", "--always", "--dirty"),
        "date": datetime.date.today().isoformat(),
        "command": "bench/gpu/run.sh",
    }


def table(records: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(record["name"] for record in records))
    lines = ["| head_dim, tokens | " + " | ".join(f"{name}, TFLOP/s" for name in names) + " |"]
    lines.append("| --- | " + "---: | " * len(names))
    for case in dict.fromkeys((record["head_dim"], record["length"]) for record in records):
        by_name = {r["name"]: r["tflops"] for r in records if (r["head_dim"], r["length"]) == case}
        cells = " | ".join(f"{by_name[name]:.0f}" if name in by_name else "-" for name in names)
        lines.append(f"| {case[0]}, {case[1]} | {cells} |")
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--head-dim", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--dtype", choices=TOLERANCE, nargs="+", default=["bfloat16"], help="dtypes to check")
    parser.add_argument("--length", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=150, help="no new case begins after this time")
    parser.add_argument("--check-only", action="store_true", help="check against float64 without timing")
    parser.add_argument("--flex", action="store_true", help="also time compiled flex_attention with the same pattern")
    args = parser.parse_args()
    missing = next(backend.reasons for backend in sparsed.backends() if backend.name == "cuda")
    if missing:
        sys.exit("; ".join(missing))
    torch.manual_seed(0)
    wrong = check(args.dtype, args.head_dim)
    if wrong:
        sys.exit("wrong results:\n" + "\n".join(wrong))
    if args.check_only:
        print("all results are right")
        return
    machine = describe()
    records = measure(args, machine)
    print(f"{machine['gpu']}, torch {machine['torch']}, {machine['date']}\n\n{table(records)}")


if __name__ == "__main__":
    main()
