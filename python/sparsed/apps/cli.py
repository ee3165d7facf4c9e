"""The command line: `sparsed demo | generate | quantize | eval | ablate | heads | bench | lm-eval | info`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..checks import SparsedWarning
from ..kernels.attention import set_num_threads
from ..models.files import demo_model_folder, find_folder
from .demo import add_demo_options, run_demo
from .environment import available_memory, machine_info
from .eval.command import add_ablate_options, add_eval_options, add_heads_options, run_ablate, run_eval, run_heads
from .generate_command import add_generate_options, run_generate
from .model_info import model_info
from .parser import HelpFormatter, Parser, in_terms_of_options
from .quantize_command import add_quantize_options, run_quantize

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as a shell reports the signals
_DEBUG = "SPARSED_DEBUG"
_POSITIONALS = ("command", "model", "text", "out", "run")  # entries of the namespace that are not options


class _Command(NamedTuple):
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. Errors are one line on stderr and status 2; no command is help and 0."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = bool(os.environ.get(_DEBUG))
    options: dict[str, Any] = {}
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal cannot show must not lose the text
        sys.stdout.reconfigure(errors="replace")
    try:
        if arguments[:1] == ["bench"]:
            return _bench(arguments[1:])
        if arguments[:1] == ["lm-eval"]:
            return _lm_eval(arguments[1:])
        args = _parse(arguments)
        debug = debug or args.debug
        options = {name: value for name, value in vars(args).items() if name not in _POSITIONALS}
        # A command that runs many generations says once what all of them have in common.
        with _notes_on_stderr(logging.DEBUG if args.command == "generate" else logging.INFO), _warnings_in_one_line():
            status = _run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader stopped early, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit does not fail
        return _BROKEN_PIPE
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, ImportError) as error:
        if debug:
            raise
        print(f"sparsed: error: {in_terms_of_options(error, options)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        set_num_threads(args.threads)
    return int(args.run(args))


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default", SparsedWarning)
        show = warnings.showwarning

        def show_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, SparsedWarning):
                print(f"sparsed: warning: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = show_line
        yield


@contextlib.contextmanager
def _notes_on_stderr(level: int) -> Iterator[None]:
    """Shows what the library logs: settings that have no effect."""
    logger, handler = logging.getLogger("sparsed"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("sparsed: note: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


# --- parser ----------------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed options of a command; exits if there is no command, or if it does not have such options."""
    parser, commands = _parsers()
    args, extras = parser.parse_known_args(arguments)
    if args.command is None:
        if extras:
            parser.refuse(extras)
        parser.print_help()
        parser.exit()
    # Before Python 3.12 an optional positional has to stand right behind the one before it.
    if len(extras) == 1 and vars(args).get("text", "") is None:
        (extra,) = extras
        if extra == "-" or not extra.startswith("-") or " " in extra:
            args.text = extras.pop()
    if extras:
        commands[args.command].refuse(extras)
    return args


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """That of the program, and those of the commands."""
    examples = [example for command in _COMMANDS.values() for example in command.examples[:1]]
    examples += ["sparsed bench attention --quick", "sparsed lm-eval --model sparsed --model_args pretrained=demo ..."]
    parser = Parser(
        prog="sparsed",
        description="Block-sparse attention for diffusion language models. "
        f"{_DEBUG}=1 in the environment shows the traceback of an error, in bench and lm-eval too.",
        epilog=_example_text(examples) + "\n\n`sparsed COMMAND --help` shows the options of a command.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparsed {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:],
            epilog=_example_text(command.examples),
            formatter_class=HelpFormatter,
        )
        command.add_options(sub)
        general = sub.add_argument_group("general")
        general.add_argument(
            "--threads", type=int, help="threads of the kernels (default: OMP_NUM_THREADS, or all cores)"
        )
        general.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=command.run)
    # main() takes these two first.
    commands.add_parser("bench", help="benchmarks: sparsed bench --help", add_help=False)
    commands.add_parser("lm-eval", help="lm-evaluation-harness with the model sparsed", add_help=False)
    return parser, commands.choices


def _example_text(examples: Sequence[str]) -> str:
    return "\n  ".join([f"example{'s' * (len(examples) > 1)}:", *examples])


# --- bench, lm-eval --------------------------------------------------------------------------------------------------


def _bench(arguments: Sequence[str]) -> int:
    """Hands everything behind `bench` to the benchmarks of a checkout, which parse it themselves."""
    if not (Path("bench") / "harness.py").exists():
        raise ImportError("the benchmarks are not part of the package: run `sparsed bench` in a checkout of sparsed")
    sys.path.insert(0, str(Path.cwd()))
    return int(importlib.import_module("bench").main(arguments))


def _lm_eval(arguments: Sequence[str]) -> int:
    """Hands everything behind `lm-eval` to the command line of lm-eval."""
    try:
        harness = importlib.import_module("sparsed.apps.lm_eval")
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise ImportError("lm-eval is not installed, expected the extra eval (pip install '.[eval]')") from error
    return int(harness.main(arguments))


# --- info ------------------------------------------------------------------------------------------------------------


def _add_info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL_DIR", help="a checkpoint folder, for what it holds")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _info(args: argparse.Namespace) -> int:
    if args.model is not None:
        facts = model_info(find_folder(args.model, "info"))
    else:
        facts = machine_info() | {"memory available": available_memory(), "demo model": str(demo_model_folder())}
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if key != "backends":
            print(f"{key:{width}}  {value}")
    for name, state in facts.get("backends", {}).items():
        print(f"{'backend':{width}}  {name}: {state}")
    return 0


_QUESTION = '"the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"'

_COMMANDS = {
    "demo": _Command(
        "questions about a long text: dense, SparseD and sliding window",
        add_demo_options,
        run_demo,
        ("sparsed demo --length 2048 --prompts 3",),
    ),
    "generate": _Command(
        "text from a checkpoint folder",
        add_generate_options,
        run_generate,
        (
            f"sparsed generate demo {_QUESTION} --gen-length 8 --steps 8",
            "sparsed generate LLaDA-8B-Instruct --prompt-file report.txt --weights int8 --stats",
            "cat report.txt | sparsed generate LLaDA-8B-Instruct --html page.html",
        ),
    ),
    "quantize": _Command(
        "a checkpoint folder with int8 weights, which needs half of the memory",
        add_quantize_options,
        run_quantize,
        (
            "sparsed quantize LLaDA-8B-Instruct LLaDA-8B-Instruct-int8",
            "sparsed quantize LLaDA-8B-Instruct LLaDA-8B-Instruct-int8 --calibrate text.txt",
        ),
    ),
    "eval": _Command(
        "accuracy and cost of dense, SparseD and baselines on RULER-style tasks",
        add_eval_options,
        run_eval,
        ("sparsed eval demo --tasks niah_single_1 --lengths 1024 2048 --samples 5 --methods dense sparsed",),
    ),
    "ablate": _Command(
        "SparseD without its parts, and sweeps of its settings",
        add_ablate_options,
        run_ablate,
        ("sparsed ablate demo --tasks niah_single_1 --samples 3",),
    ),
    "heads": _Command(
        "how steady and how complete each head's pattern is",
        add_heads_options,
        run_heads,
        ("sparsed heads demo --tasks niah_single_1 --samples 2",),
    ),
    "info": _Command(
        "version, kernels and machine; or what a checkpoint folder holds",
        _add_info_options,
        _info,
        ("sparsed info --json", "sparsed info LLaDA-8B-Instruct"),
    ),
}
