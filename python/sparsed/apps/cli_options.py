"""The options of the commands that choose the engine and the device of a model."""

from __future__ import annotations

import argparse
import os
import sys

from ..models import DTYPES, Model
from ..models.loader import WEIGHTS, load_model
from ..models.precision import AUTO


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype, --weights, --engine, --device and --device-map, which mean the same as in `load_model`."""
    group = parser.add_argument_group("model and device")
    group.add_argument(
        "--dtype",
        choices=(AUTO, *DTYPES),
        default=AUTO,
        help="dtype of the computation; auto: bfloat16 if the checkpoint has it and the processor multiplies it",
    )
    group.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=AUTO,
        help="int8: quantise the linear layers; auto: as the folder has them",
    )
    group.add_argument(
        "--engine",
        choices=("native", "torch"),
        default="native",
        help="which library multiplies matrices",
    )
    group.add_argument("--device", help="with --engine torch: where the model lies, such as cuda (default: the CPU)")
    group.add_argument("--device-map", help="with --engine torch, for --device: auto, balanced ... over all devices")


def load_chosen(folder: str | os.PathLike[str], args: argparse.Namespace, *, progress: bool | None = None) -> Model:
    """Loads the model with these options; `progress` None: a bar is shown if stderr is a terminal."""
    model: Model = load_model(
        folder,
        args.dtype,
        weights=args.weights,
        engine=args.engine,
        device=args.device,
        device_map=args.device_map,
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    return model
