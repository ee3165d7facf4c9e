"""The command line: `sparsed demo | generate | eval | ablate | heads | bench | lm-eval | info`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from ..config import BLOCK_SIZES, SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ..generation.generate import generate
from ..generation.kv_cache import DelayedCache, DualCache, KVCache, PrefixCache
from ..generation.sampling import SAMPLERS, Sampler
from ..kernels.attention import set_num_threads
from ..models.files import read_text
from ..models.tokenizer import load_tokenizer
from .cli_options import add_engine_options, load_chosen
from .demo import DemoOptions, run_demo
from .environment import machine_info
from .eval.command import add_ablate_options, add_eval_options, add_heads_options, run_ablate, run_eval, run_heads
from .pictures.live import LiveText, can_draw

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as a shell reports the signals
_DEBUG = "SPARSED_DEBUG"
_CACHES: dict[str, type[KVCache]] = {"prefix": PrefixCache, "dual": DualCache, "delayed": DelayedCache}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. Errors are one line on stderr and status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = bool(os.environ.get(_DEBUG))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal lacks is no reason to lose a text
        sys.stdout.reconfigure(errors="replace")
    try:
        if arguments[:1] == ["bench"]:
            return _bench(arguments[1:])
        if arguments[:1] == ["lm-eval"]:
            return _lm_eval(arguments[1:])
        args = _parser().parse_args(arguments)
        debug = debug or args.debug
        status = _run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has what it wants, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left fails no more
        return _BROKEN_PIPE
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, ImportError) as error:
        if debug:
            raise
        print(f"sparsed: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        set_num_threads(args.threads)
    return int(args.run(args))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sparsed",
        description="Block-sparse attention for diffusion language models.",
        epilog=f"{_DEBUG}=1 in the environment shows the traceback of an error, in bench and lm-eval too.",
    )
    parser.add_argument("--version", action="version", version=f"sparsed {version('sparsed')}")
    metavar = "{demo,generate,eval,ablate,heads,bench,lm-eval,info}"
    commands = parser.add_subparsers(dest="command", metavar=metavar, required=True)
    for name, add_options, run, text in (
        ("demo", _add_demo_options, _demo, "questions about a long text: dense, SparseD and sliding window"),
        ("generate", _add_generate_options, _generate, "text from a checkpoint folder"),
        ("eval", add_eval_options, run_eval, "accuracy and cost of dense, SparseD and baselines on RULER-style tasks"),
        ("ablate", add_ablate_options, run_ablate, "SparseD without its parts, and sweeps of its settings"),
        ("heads", add_heads_options, run_heads, "how steady and how complete each head's pattern is"),
        ("info", _add_info_options, _info, "version, kernels and machine"),
    ):
        command = commands.add_parser(name, help=text, description=text, formatter_class=_Formatter)
        command.add_argument("--threads", type=int, help="threads of the kernels")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add_options(command)
        command.set_defaults(run=run)
    # main() takes these two first.
    commands.add_parser("bench", help="benchmarks: sparsed bench --help", add_help=False)
    commands.add_parser("lm-eval", help="lm-evaluation-harness with the model sparsed", add_help=False)
    return parser


# --- demo ------------------------------------------------------------------------------------------------------------


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    defaults = DemoOptions()
    parser.add_argument("--length", type=int, default=defaults.length, help="tokens of each text")
    parser.add_argument("--prompts", type=int, default=defaults.prompts, help="texts")
    parser.add_argument("--needles", type=int, default=defaults.needles, help="facts in each text")
    parser.add_argument("--questions", type=int, default=defaults.questions, help="facts asked for, of each text")
    parser.add_argument("--gen-length", type=int, help="tokens to generate (room for the answers)")
    parser.add_argument("--steps", type=int, help="denoising steps (one per token)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=defaults.dtype)
    parser.add_argument("--window", type=int, help="tokens of the sliding window (a quarter of the length)")
    sparse = defaults.sparse
    parser.add_argument("--rho", type=float, default=sparse.rho, help="share of the key blocks that SparseD keeps")
    parser.add_argument("--skip", type=float, default=sparse.skip, help="share of the steps before the selection")
    parser.add_argument("--block-size", type=int, choices=BLOCK_SIZES, default=sparse.block_size)


def _demo(args: argparse.Namespace) -> int:
    names = [field.name for field in dataclasses.fields(DemoOptions) if field.name != "sparse"]
    sparse = dataclasses.replace(DemoOptions().sparse, rho=args.rho, skip=args.skip, block_size=args.block_size)
    options = DemoOptions(**{name: getattr(args, name) for name in names}, sparse=sparse)
    print(run_demo(options, progress=sys.stderr.isatty()))
    return 0


# --- generate --------------------------------------------------------------------------------------------------------


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    # No option of a sampler or of SparseConfig has a default here: what is not given is theirs to choose.
    parser.add_argument("model", metavar="MODEL_DIR", help="checkpoint folder: config.json, safetensors, tokenizer")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt's text; without it and --prompt-file: stdin")
    source.add_argument("--prompt-file", type=Path, help="a UTF-8 file with the prompt")
    parser.add_argument("--gen-length", type=int, default=128, help="tokens to generate")
    parser.add_argument("--steps", type=int, default=128, help="denoising steps")
    add_engine_options(parser)
    parser.add_argument("--seed", type=int, help="repeats a run")
    parser.add_argument(
        "--chat", action=argparse.BooleanOptionalAction, help="chat template around the prompt (where there is one)"
    )
    parser.add_argument(
        "--raw", dest="chat", action="store_false", default=argparse.SUPPRESS, help="the same as --no-chat"
    )
    parser.add_argument("--stats", action="store_true", help="seconds, densities and tokens by phase, on stderr")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that plays the generation")
    display = parser.add_mutually_exclusive_group()
    display.add_argument("--progress", action="store_true", help="a bar on stderr")
    display.add_argument("--live", action="store_true", help="show the text filling in (in a terminal)")

    attention_options = parser.add_argument_group("attention")
    method = attention_options.add_mutually_exclusive_group()
    method.add_argument("--sparse", action="store_true", help="SparseD (this is the default)")
    method.add_argument("--dense", action="store_true", help="dense attention")
    method.add_argument("--window", type=int, help="a sliding window of this many tokens")
    method.add_argument("--cache", choices=tuple(_CACHES), help="dense, keys and values kept: Fast-dLLM, dKV-Cache")
    attention_options.add_argument("--sinks", type=int, help="with --window: first tokens that all see (StreamingLLM)")
    attention_options.add_argument("--rho", type=float, help="share of the key blocks that is kept")
    attention_options.add_argument("--skip", type=float, help="share of the steps before the selection")
    attention_options.add_argument("--block-size", type=int, choices=BLOCK_SIZES, help="tokens per block")
    attention_options.add_argument("--selection", choices=("paper", "reference"))
    attention_options.add_argument("--min-length", type=int, help="shorter sequences stay dense")
    attention_options.add_argument("--refresh", type=int, help="with --cache: forwards from one refresh to the next")

    sampling = parser.add_argument_group("sampling", "each model family has its own options")
    sampling.add_argument("--temperature", type=float)
    sampling.add_argument("--block-length", type=int, help="tokens per block")
    sampling.add_argument("--cfg-scale", type=float, help="LLaDA: classifier-free guidance")
    sampling.add_argument("--remasking", choices=("low_confidence", "random"), help="LLaDA")
    sampling.add_argument("--threshold", type=float, help="LLaDA: fill what is at least this confident")
    sampling.add_argument("--alg", choices=("entropy", "maskgit_plus", "topk_margin", "origin"), help="Dream")
    sampling.add_argument("--top-p", type=float, help="Dream")
    sampling.add_argument("--top-k", type=int, help="Dream")
    sampling.add_argument("--alg-temp", type=float, help="Dream: temperature of the positions")
    sampling.add_argument("--eps", type=float, help="Dream: the last timestep")


def _generate(args: argparse.Namespace) -> int:
    if args.html is not None and (args.html.is_dir() or not args.html.absolute().parent.is_dir()):
        raise FileNotFoundError(f"--html is {args.html}, expected a file in a folder that exists")
    sparse = _sparse_config(args)
    text = _prompt_text(args)
    tokenizer = load_tokenizer(args.model)
    model = load_chosen(args.model, args)
    chat = tokenizer.chat_template is not None if args.chat is None else args.chat
    live = LiveText(sys.stdout, tokenizer, args.gen_length) if args.live and can_draw(sys.stdout) else None
    with live or contextlib.nullcontext():
        result = generate(
            model,
            tokenizer.chat(text) if chat else tokenizer.encode(text),
            gen_length=args.gen_length,
            steps=args.steps,
            sparse=sparse,
            cache=None if args.cache is None else _CACHES[args.cache](**_given(args, ("refresh",))),
            sampler=_sampler(args, model.config.family),
            seed=args.seed,
            on_step=live,
            progress=args.progress,
        )
    if result.interrupted:
        print(f"sparsed: interrupted after {len(result.stats)} steps", file=sys.stderr)
    if args.html is not None:
        args.html.write_text(result.page(tokenizer, title=Path(args.model).resolve().name), encoding="utf-8")
    print(tokenizer.text(result.generated[0]))
    if args.stats:
        print(result.stats.table(), file=sys.stderr)
    result.require_whole()
    return 0


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among `names` that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _refuse(options: dict[str, Any], why: str) -> None:
    if options:
        names = ", ".join("--" + name.replace("_", "-") for name in options)
        raise ValueError(f"{names} given, expected only options that apply ({why})")


def _sparse_config(args: argparse.Namespace) -> Sparse | None:
    selecting = ("rho", "skip", "selection", "min_length")
    if args.cache is None:
        _refuse(_given(args, ("refresh",)), "there is no --cache")
    if args.dense or args.cache is not None:
        _refuse(_given(args, (*selecting, "block_size", "sinks")), "attention is dense")
        return None
    if args.window is None:
        _refuse(_given(args, ("sinks",)), "there is no --window")
        return SparseConfig(**_given(args, (*selecting, "block_size")))
    _refuse(_given(args, selecting), "attention is a window")
    if args.sinks is None:
        return SlidingWindow(**_given(args, ("window", "block_size")))
    return StreamingLLM(**_given(args, ("window", "sinks", "block_size")))


def _sampler(args: argparse.Namespace, family: str) -> Sampler:
    options = {name: {field.name for field in dataclasses.fields(cls)} for name, cls in SAMPLERS.items()}
    foreign = sorted(set().union(*options.values()) - options[family])
    _refuse(_given(args, foreign), f"the model is of the {family} family")
    return SAMPLERS[family](**_given(args, sorted(options[family])))


def _prompt_text(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return str(args.prompt)
    if args.prompt_file is not None:
        return read_text(args.prompt_file)
    if sys.stdin.isatty():
        raise ValueError("generate: no prompt, expected --prompt, --prompt-file or text on stdin")
    return sys.stdin.read()


# --- bench -----------------------------------------------------------------------------------------------------------


def _bench(arguments: Sequence[str]) -> int:
    """Hands everything behind `bench` to the benchmarks of a checkout, which parse it themselves."""
    if not (Path("bench") / "check_peers.py").exists():
        raise ImportError("the benchmarks are not part of the package: run `sparsed bench` in a checkout of sparsed")
    sys.path.insert(0, str(Path.cwd()))
    return int(importlib.import_module("bench").main(arguments))


# --- lm-eval ---------------------------------------------------------------------------------------------------------


def _lm_eval(arguments: Sequence[str]) -> int:
    """Hands everything behind `lm-eval` to lm-eval's own command line."""
    try:
        harness = importlib.import_module("sparsed.apps.lm_eval")
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise ImportError("lm-eval is not installed, expected the extra eval (pip install '.[eval]')") from error
    return int(harness.main(arguments))


# --- info ------------------------------------------------------------------------------------------------------------


def _add_info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _info(args: argparse.Namespace) -> int:
    machine = machine_info()
    if args.json:
        print(json.dumps(machine, indent=1))
        return 0
    width = max(len(key) for key in machine)
    for key, value in machine.items():
        if key != "backends":
            print(f"{key:{width}}  {value}")
    for name, state in machine["backends"].items():
        print(f"{'backend':{width}}  {name}: {state}")
    return 0
