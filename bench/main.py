"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

import sparsed

from .arrays import DTYPES
from .cases import LAYER_SHAPES
from .machine import CHILD, PEER_LIMITS, limited_environment, run_module
from .options import Options
from .peers import PEERS
from .report import Report

# Name: (module, what it measures, groups of options in addition to the common ones).
_BENCHMARKS = {
    "attention": ("attention", "dense and sparse attention against torch", ("shape", "sparsity", "peers")),
    "selection": ("selection", "the cost of a selection, fused with a dense pass and separate", ("shape", "blocks")),
    "gqa": ("gqa", "grouped key/value heads against one per query head", ("shape",)),
    "cached-step": ("cached_step", "a few rows against keys and values that stay packed", ("shape", "peers")),
    "linear": ("linear", "packed linear layers against torch", ("model", "peers")),
    "step": ("step", "a denoising step by part", ("length", "model", "layers", "blocks")),
    "generate": (
        "generate",
        "whole generations: dense, SparseD, caches, presets",
        ("length", "model", "layers", "whole"),
    ),
    "amdahl": (
        "amdahl",
        "SparseD's speed-up from measured steps, and the bound of Amdahl's law",
        ("length", "model", "layers", "peers"),
    ),
    "torch": (
        "torch_model",
        "a step of a torch model: SDPA, flex, sparsed",
        ("length", "model", "layers", "peers"),
    ),
    "memory": ("memory", "the peak memory of one call", ("shape",)),
    "shared-cores": ("shared_cores", "a step with and without a second busy process", ("length", "baseline")),
    "scaling": ("scaling", "a sparse step from 4k to 256k tokens", ("shape", "sparsity")),
    "peers": (
        "full_pass",
        "a pass over all tokens: bfloat16 and int8, torch, llama.cpp",
        ("length", "model", "layers", "llama"),
    ),
    "errors": ("errors", "the peers that can run here, and their errors against float64", ("peers",)),
}

# These benchmarks choose the dtypes themselves; that of the checkpoints is bfloat16.
_BFLOAT16_ONLY = ("generate", "amdahl", "torch", "peers")


def main(argv: Sequence[str]) -> int:
    """Runs a benchmark and returns the exit status.

    Args:
        argv: The arguments after `sparsed bench`.

    Raises:
        ValueError: An option does not fit, or a result is wrong.
    """
    args = _parser().parse_args(argv)
    if args.command == "plot":
        from .plots import plot

        return plot(args.results, args.out, dict(args.peak or ()))
    if args.command == "tables":
        from .tables import print_tables

        return print_tables(args.results)
    limits = limited_environment(args.isa, args.threads)
    if limits and CHILD not in os.environ:
        return run_module("", argv, {**limits, CHILD: "1"})
    if args.threads is not None:
        sparsed.set_num_threads(args.threads)
    options = Options.parse(args)
    report = Report(args.command, options.json)
    importlib.import_module(f"{__package__}.{_BENCHMARKS[args.command][0]}").run(options, report)
    report.write()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparsed bench", description="Benchmarks of sparsed.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text, groups) in _BENCHMARKS.items():
        command = commands.add_parser(name, help=text, description=text)
        _add_common(command)
        if name not in _BFLOAT16_ONLY:
            command.add_argument("--dtype", dest="dtypes", nargs="+", choices=tuple(DTYPES))
        for group in groups:
            _GROUPS[group](command)
    plot = commands.add_parser("plot", help="roofline and density curves as PNG, from JSON (needs matplotlib)")
    plot.add_argument("results", type=Path, nargs="+", help="JSON files of attention and linear")
    plot.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    plot.add_argument(
        "--peak", nargs="+", type=_peak, metavar="DTYPE=TFLOP/s", help="limits of the machine, drawn as roofs"
    )
    tables = commands.add_parser("tables", help="Markdown tables from JSON")
    tables.add_argument("results", type=Path, nargs="+", help="JSON files")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="small shapes and few rounds, to see whether everything works"
    )
    parser.add_argument("--repeat", dest="repeats", type=_positive, help="number of rounds; the median counts")
    parser.add_argument("--threads", type=_positive, help="threads of sparsed and of the peers (default: all cores)")
    parser.add_argument("--isa", choices=tuple(PEER_LIMITS), help="limit sparsed and the peers to this instruction set")
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def _add_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", dest="lengths", nargs="+", type=_positive, help="tokens")


def _add_shape(parser: argparse.ArgumentParser) -> None:
    _add_length(parser)
    parser.add_argument("--head-dim", dest="head_dims", nargs="+", type=_positive)
    parser.add_argument("--heads", type=_positive)
    parser.add_argument("--kv-heads", type=_positive, help="(default: as many as --heads)")


def _add_blocks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block-size", dest="block_sizes", nargs="+", type=int, choices=(16, 32, 64, 128, 256))


def _add_sparsity(parser: argparse.ArgumentParser) -> None:
    _add_blocks(parser)
    parser.add_argument("--density", dest="densities", nargs="+", type=_share)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", dest="models", nargs="+", choices=tuple(LAYER_SHAPES))


def _add_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=_positive, help="layers of the random checkpoint")
    parser.add_argument("--folder", type=Path, help="keep the random checkpoints here")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--peers", nargs="+", choices=tuple(PEERS))
    group.add_argument("--no-peers", dest="peers", action="store_const", const=[])


def _add_whole(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--whole", action="store_true", help="run generations to their end where that takes minutes")
    parser.add_argument("--int8", action="store_true", help="also generations with int8 weights")
    parser.add_argument(
        "--fast-dllm", type=Path, metavar="FOLDER", help="a checkout of NVlabs/Fast-dLLM, whose own code is a peer then"
    )


def _add_llama(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--llama-cpp",
        type=Path,
        metavar="FOLDER",
        help="the folder that contains the package llama_cpp (llama-cpp-python), which is a peer then",
    )


def _add_baseline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="a compiled module (_core*.so) to compare with")


_GROUPS = {
    "length": _add_length,
    "shape": _add_shape,
    "blocks": _add_blocks,
    "sparsity": _add_sparsity,
    "model": _add_model,
    "layers": _add_layers,
    "peers": _add_peers,
    "whole": _add_whole,
    "llama": _add_llama,
    "baseline": _add_baseline,
}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
    return value


def _peak(text: str) -> tuple[str, float]:
    dtype, _, value = text.partition("=")
    if dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text}, expected {'=..., '.join(DTYPES)}=...")
    return dtype, float(value)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value}, expected above 0 and at most 1")
    return value
