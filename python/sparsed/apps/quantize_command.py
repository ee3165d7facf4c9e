"""The command `sparsed quantize`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..models.checkpoint import SafetensorsCheckpoint
from ..models.files import find_folder, read_text
from ..models.quantize import MIN_TOKENS, PARTS, quantize
from ..tables import format_bytes


def add_quantize_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sparsed quantize`."""
    parser.add_argument("model", metavar="MODEL_DIR", help="checkpoint folder with floating-point weights")
    parser.add_argument("out", metavar="OUT_DIR", help="folder to write; it must be empty or not exist")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="a UTF-8 text like those that the model will see, "
        f"of {MIN_TOKENS} tokens or more: smooths the inputs of the layers for it (SmoothQuant)",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        choices=PARTS,
        default=["head"],
        help="linear layers whose weights stay as they are",
    )


def run_quantize(args: argparse.Namespace) -> int:
    """Runs `sparsed quantize`."""
    text = None if args.calibrate is None else read_text(args.calibrate)
    quantize(args.model, args.out, calibration=text, keep=args.keep, progress=sys.stderr.isatty())
    before, after = (
        format_bytes(SafetensorsCheckpoint(find_folder(folder, "quantize")).nbytes) for folder in (args.model, args.out)
    )
    print(f"{args.out}: {after} of weights, {before} before")
    return 0
