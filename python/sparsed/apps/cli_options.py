"""The options of the commands that choose the engine, the device and the RoPE of a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from ..models import DTYPES, Model
from ..models.loader import WEIGHTS, load_model
from ..models.precision import AUTO


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `load_model`: --dtype, --weights, --engine, --device, --device-map and --rope-scaling."""
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
    group.add_argument(
        "--rope-scaling",
        type=_rope_scaling_argument,
        metavar="TYPE:NUMBER",
        help="for sequences longer than those of the training: linear:FACTOR, yarn:FACTOR, ntk:FACTOR (of the base: "
        "LongLLaDA), ultrallada:TOKENS, or a JSON object as in config.json",
    )


def rope_scaling_of(text: str) -> dict[str, Any]:
    """Returns the settings that a text means: those of a JSON object, or a type and its number, such as "yarn:4".

    Raises:
        ValueError: The text is neither of them.
    """
    expected = 'expected TYPE:NUMBER such as yarn:4, or a JSON object such as {"rope_type": "yarn", "factor": 4}'
    if text.lstrip().startswith("{"):
        try:
            settings: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"rope_scaling is {text!r:.200}, {expected} ({error})") from error
        return settings
    kind, _, number = text.partition(":")
    try:
        return {"rope_type": kind, "target_length" if kind == "ultrallada" else "factor": float(number)}
    except ValueError as error:
        raise ValueError(f"rope_scaling is {text!r:.200}, {expected}") from error


def _rope_scaling_argument(text: str) -> dict[str, Any]:
    try:
        return rope_scaling_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def load_chosen(folder: str | os.PathLike[str], args: argparse.Namespace, *, progress: bool | None = None) -> Model:
    """Loads the model with these options; `progress` None: a bar is shown if stderr is a terminal."""
    model: Model = load_model(
        folder,
        args.dtype,
        weights=args.weights,
        engine=args.engine,
        device=args.device,
        device_map=args.device_map,
        rope_scaling=args.rope_scaling,
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    return model
