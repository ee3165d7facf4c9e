"""What `sparsed eval`, `ablate` and `heads` share: common options, the model, the samples and the plan."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...checks import Checker
from ...kernels.config import BLOCK_SIZES, SparseConfig
from ...models import Model
from ...models.files import demo_model_folder, find_folder
from ...models.loader import read_config
from ...models.tokenizer import Tokenizer, load_tokenizer
from ..cli_options import add_engine_options, load_chosen
from ..methods import Method, Scale, default_sampler, settings_of, sparse_config
from .records import file_identity, model_identity
from .styles import RulerStyle, SmallStyle, Style
from .tasks import TaskSet

# Returns the methods for a length.
Methods = Callable[[int], Sequence[Method]]

# By task: the option that names its file.
_FILE_OPTIONS = {"qa_1": "squad", "qa_2": "hotpotqa"}


def add_common_options(parser: argparse.ArgumentParser, *, out: str, samples: int) -> None:
    """Adds the options that all three commands have; `out` is the default folder."""
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR", help="folder or GGUF file (the demo model)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="(all that need no file)")
    parser.add_argument("--squad", type=Path, help="SQuAD's JSON file, for task qa_1")
    parser.add_argument("--hotpotqa", type=Path, help="HotpotQA's JSON file, for task qa_2")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[2048], metavar="N", help="tokens, the answer's included"
    )
    parser.add_argument("--samples", type=int, default=samples, help="per task and length (RULER: 500)")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results")
    parser.add_argument(
        "--scale", choices=("paper", "demo"), help="settings of the methods (demo for the demo model's vocabulary)"
    )
    parser.add_argument("--style", choices=("ruler", "small"), help="wording (small for the demo model's vocabulary)")
    parser.add_argument("--seed", type=int, default=0)
    add_engine_options(parser)
    parser.add_argument("--rho", type=float, help="SparseD: share of the key blocks that is kept")
    parser.add_argument("--skip", type=float, help="SparseD: share of the steps before the selection")
    parser.add_argument("--block-size", type=int, choices=BLOCK_SIZES, help="SparseD: tokens per block")
    parser.add_argument(
        "--generation", choices=("dense", "sparse"), help="SparseD: the generation's rows (sparse: as published)"
    )


@dataclasses.dataclass(frozen=True)
class RunContext:
    """The checked options, and what they name.

    Attributes:
        model: The loaded model.
        tokenizer: Its tokenizer.
        style: The wording of the tasks.
        scale: Settings of the methods.
        sparse: Settings of SparseD, with the options that were given.
        folder: Folder of the checkpoint.
        files: By task: the file that its samples come from.
        args: All options.
    """

    model: Model
    tokenizer: Tokenizer
    style: Style
    scale: Scale
    sparse: SparseConfig
    folder: Path
    files: dict[str, Path]
    args: argparse.Namespace

    @classmethod
    def of(cls, args: argparse.Namespace) -> RunContext:
        """Checks the options and loads the model."""
        check = Checker("eval")
        args.lengths = list(dict.fromkeys(args.lengths))
        args.tasks = list(dict.fromkeys(args.tasks or ()))
        check.integer("samples", args.samples, low=1)
        check.integer("seed", args.seed, low=0)
        for length in args.lengths:
            check.integer("lengths", length, low=1)
        found = {task: getattr(args, option) for task, option in _FILE_OPTIONS.items()}
        for task in args.tasks:
            if task in found and found[task] is None:
                raise ValueError(f"eval: task {task} needs a file, expected --{_FILE_OPTIONS[task]} FILE")
        folder = demo_model_folder() if args.model is None else find_folder(args.model, "eval")
        read_config(folder)  # as in `sparsed generate`
        tokenizer = load_tokenizer(folder)
        fits = SmallStyle.fits(tokenizer)
        scale: Scale = args.scale or ("demo" if fits else "paper")
        small = (args.style or ("small" if fits else "ruler")) == "small"
        style = SmallStyle.of(tokenizer) if small else RulerStyle("paper" if scale == "paper" else "ruler")
        options = ("rho", "skip", "block_size", "generation")
        given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
        sparse = dataclasses.replace(sparse_config(scale), **given)
        files = {task: path for task, path in found.items() if path is not None}
        return cls(load_chosen(folder, args), tokenizer, style, scale, sparse, folder, files, args)

    @property
    def tasks(self) -> list[str]:
        """The tasks that the user asked for, or all for which no file is missing."""
        return self.args.tasks or [task for task in self.style.tasks if task in self.files or task not in _FILE_OPTIONS]

    def task_set(self, length: int) -> TaskSet:
        """Returns the samples of a length."""
        return TaskSet(self.tokenizer, self.style, length, seed=self.args.seed, files=self.files)

    def source(self, task: str) -> dict[str, Any] | str:
        """Returns where the samples of a task come from, for the plan."""
        return file_identity(self.files[task]) if task in self.files else "generated"

    def plan(self, methods: Methods, lengths: Sequence[int]) -> dict[str, Any]:
        """Returns everything that decides the answers, except for the samples."""
        args = self.args
        return {
            "model": model_identity(self.folder),
            "dtype": getattr(self.model, "dtype", args.dtype),
            "weights": getattr(self.model, "weights", args.weights),
            "engine": [args.engine, args.device, args.device_map],
            **({} if args.rope_scaling is None else {"rope_scaling": args.rope_scaling}),
            "style": self.style.name,
            "scale": self.scale,
            "budgets": self.style.gen_lengths,
            "sampler": settings_of(default_sampler(self.model.config, self.scale)),
            "seed": args.seed,
            "settings": {
                str(length): {m.name: m.settings() for m in methods(length)} for length in sorted(set(lengths))
            },
        }


def command_line() -> str:
    """Returns the command as it was typed, for reports."""
    return shlex.join(["sparsed", *sys.argv[1:]])
