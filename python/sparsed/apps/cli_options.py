"""The options of the commands that choose what runs a model, and where."""

from __future__ import annotations

import argparse
import os
import sys

from ..models import Model
from ..models.loader import load_model


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """--dtype, --engine, --device and --device-map, as `load_model` has them."""
    group = parser.add_argument_group("model and device")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what is computed in")
    group.add_argument(
        "--engine", choices=("native", "torch"), default="native", help="matrix products: sparsed's own, or torch's"
    )
    group.add_argument("--device", help="with --engine torch: where the model lies, such as cuda (default: the CPU)")
    group.add_argument("--device-map", help="with --engine torch, for --device: auto, balanced ... over all devices")


def load_chosen(folder: str | os.PathLike[str], args: argparse.Namespace, *, progress: bool | None = None) -> Model:
    """The model under these options; `progress` None: shown where stderr is a terminal."""
    model: Model = load_model(
        folder,
        args.dtype,
        engine=args.engine,
        device=args.device,
        device_map=args.device_map,
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    return model
