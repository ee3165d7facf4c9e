"""The command `sparsed generate`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..generation.generate import generate
from ..generation.kv_cache import DelayedCache, KVCachePolicy
from ..generation.preset import PRESETS, preset
from ..generation.sampling import SAMPLERS, DreamSampler, LLaDASampler, Sampler
from ..kernels.config import BLOCK_SIZES, SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ..models.files import decode_text, demo_model_folder, find_folder, read_text
from ..models.loader import read_config
from ..models.tokenizer import Tokenizer, load_tokenizer
from .cli_options import add_engine_options, load_chosen
from .methods import CACHE_KINDS, changed_sampler, made_cache
from .parser import option
from .pictures.live import LiveText, can_draw


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sparsed generate`."""
    parser.add_argument(
        "model",
        metavar="MODEL_DIR",
        help='checkpoint folder (config.json, safetensors, tokenizer) or GGUF file; "demo": the model that comes with '
        "sparsed",
    )
    parser.add_argument("text", metavar="PROMPT", nargs="?", help="the prompt's text; - or no prompt at all: stdin")
    parser.add_argument("--gen-length", type=int, default=128, help="tokens to generate")
    parser.add_argument("--steps", type=int, default=128, help="denoising steps")
    parser.add_argument("--seed", type=int, help="repeats a run (default: another one each time)")

    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="the same as PROMPT")
    source.add_argument("--prompt-file", type=Path, metavar="FILE", help="a UTF-8 file with the prompt")
    prompt.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="chat template around the prompt (default: where the model has one)",
    )
    prompt.add_argument(
        "--raw", dest="chat", action="store_false", default=argparse.SUPPRESS, help="the same as --no-chat"
    )

    output = parser.add_argument_group("output")
    output.add_argument("--stats", action="store_true", help="seconds, densities and tokens by phase, on stderr")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page that plays the generation")
    display = output.add_mutually_exclusive_group()
    display.add_argument(
        "--progress", action="store_true", help="progress on stderr (default: where stderr is a terminal)"
    )
    display.add_argument("--quiet", action="store_true", help="no progress")
    display.add_argument("--live", action="store_true", help="show the text while it is unmasked (in a terminal)")

    add_engine_options(parser)
    _add_attention_options(parser.add_argument_group("attention"))
    _add_sampling_options(parser.add_argument_group("sampling", "the options depend on the model family"))
    _add_parallel_options(
        parser.add_argument_group("fewer steps", "all families; with one of the first three --steps is not used")
    )


# Options of samplers and of SparseConfig have no default here: those classes have the defaults.


def _add_attention_options(group: argparse._ArgumentGroup) -> None:
    method = group.add_mutually_exclusive_group()
    method.add_argument("--sparse", action="store_true", help="SparseD (this is the default)")
    method.add_argument("--dense", action="store_true", help="dense attention")
    method.add_argument("--window", type=int, help="a sliding window of this many tokens")
    method.add_argument(
        "--preset",
        choices=PRESETS,
        help="settings that belong together, from the same text as dense attention to the fastest one (sparsed.preset)",
    )
    group.add_argument(
        "--kv-cache",
        "--cache",
        choices=tuple(CACHE_KINDS),
        help="steps compute some tokens and reuse keys and values, as in Fast-dLLM (prefix, dual) or dKV-Cache "
        "(delayed); attention is dense unless --sparse or --window is given too",
    )
    defaults = SparseConfig()
    group.add_argument("--sinks", type=int, help="with --window: first tokens that all see (StreamingLLM)")
    group.add_argument("--rho", type=float, help=f"share of the key blocks that is kept (default: {defaults.rho})")
    group.add_argument("--skip", type=float, help=f"share of the steps before the selection (default: {defaults.skip})")
    group.add_argument(
        "--block-size", type=int, choices=BLOCK_SIZES, help=f"tokens per block (default: {defaults.block_size})"
    )
    group.add_argument(
        "--selection",
        choices=("paper", "reference"),
        help=f"the paper's rule, or that of its published code (default: {defaults.selection})",
    )
    group.add_argument(
        "--generation",
        choices=("dense", "sparse"),
        help="whether the generation's rows attend to everything (default: dense; sparse with --selection reference)",
    )
    group.add_argument("--min-length", type=int, help=f"shorter sequences stay dense (default: {defaults.min_length})")
    group.add_argument(
        "--refresh",
        type=int,
        help="with --kv-cache: forwards from one refresh to the next "
        f"(default: {DelayedCache.refresh} with delayed, else never)",
    )
    group.add_argument(
        "--refresh-every",
        type=int,
        help="with --kv-cache: blocks from one that begins with all tokens to the next; 0: only the first one does "
        f"(default: {DelayedCache.refresh_every})",
    )


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    llada, dream = LLaDASampler(), DreamSampler()
    group.add_argument("--temperature", type=float, help=f"0: the likeliest token (default: {llada.temperature})")
    group.add_argument("--block-length", type=int, help="tokens per block (default: one block)")
    group.add_argument("--cfg-scale", type=float, help=f"LLaDA, A2D: guidance (default: {llada.cfg_scale})")
    group.add_argument(
        "--remasking",
        choices=("low_confidence", "random"),
        help=f"LLaDA, A2D: which tokens stay masked (default: {llada.remasking})",
    )
    group.add_argument(
        "--logits-eos-inf",
        action="store_true",
        default=None,
        help="LLaDA, A2D: never choose the eos token, so that the text fills --gen-length",
    )
    group.add_argument(
        "--confidence-eos-eot-inf",
        action="store_true",
        default=None,
        help="LLaDA, A2D: unmask the tokens that end the text last",
    )
    group.add_argument(
        "--alg",
        choices=("entropy", "maskgit_plus", "topk_margin", "origin"),
        help=f"Dream: the confidence (default: {dream.alg})",
    )
    group.add_argument("--top-p", type=float, help="Dream: the likeliest tokens of this mass (default: all)")
    group.add_argument("--top-k", type=int, help="Dream: this number of the likeliest tokens (default: all)")
    group.add_argument(
        "--alg-temp", type=float, help=f"Dream: temperature of the positions (default: {dream.alg_temp})"
    )
    group.add_argument("--eps", type=float, help=f"Dream: the last timestep (default: {dream.eps})")


def _add_parallel_options(group: argparse._ArgumentGroup) -> None:
    rule = group.add_mutually_exclusive_group()
    rule.add_argument(
        "--threshold",
        type=float,
        help="unmask every token with at least this probability (Fast-dLLM; its value: 0.9)",
    )
    rule.add_argument(
        "--factor",
        type=float,
        help="unmask the n likeliest tokens for the largest n with (n + 1) * (1 - probability of the n-th) at most "
        "this (Fast-dLLM; its value: 1)",
    )
    rule.add_argument(
        "--entropy-bound",
        type=float,
        help="unmask the surest tokens while the sum of their entropies less the largest one is at most this "
        "(EB-Sampler, DiffusionGemma; its value: 0.1)",
    )
    group.add_argument(
        "--early-commit",
        action="store_true",
        default=None,
        help="unmask all that is left once the two largest logits are 7.5, 5 or 2.5 apart in the mean, in the first, "
        "second or last third of the generation (Prophet)",
    )


def run_generate(args: argparse.Namespace) -> int:
    """Runs `sparsed generate`."""
    if args.html is not None and (args.html.is_dir() or not args.html.absolute().parent.is_dir()):
        raise FileNotFoundError(f"--html is {args.html}, expected a file in a folder that exists")
    sparse, kv_cache = _sparse_config(args), _kv_cache(args)
    folder = find_folder(args.model, "generate")
    text = _prompt_text(args)
    read_config(folder)  # what a folder is that holds no model here counts before its tokenizer
    tokenizer = load_tokenizer(folder)
    _check_known(tokenizer, text, folder)
    progress = args.progress or (sys.stderr.isatty() and not args.quiet)
    model = load_chosen(folder, args, progress=progress)
    chat = tokenizer.chat_template is not None if args.chat is None else args.chat
    settings: dict[str, Any] = {"sparse": sparse, "kv_cache": kv_cache}
    if args.preset is not None:
        settings = preset(args.preset, tokenizer)
    live = LiveText(sys.stdout, tokenizer, args.gen_length) if args.live and can_draw(sys.stdout) else None
    with live or contextlib.nullcontext():
        result = generate(
            model,
            tokenizer.chat(text) if chat else tokenizer.encode(text),
            gen_length=args.gen_length,
            steps=args.steps,
            **settings | {"sampler": _sampler(args, model.config.family, settings.get("sampler"))},
            seed=args.seed,
            on_step=live,
            progress=progress and live is None,
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
        raise ValueError(f"{', '.join(map(option, options))} given, expected only options that apply ({why})")


_SELECTING = ("rho", "skip", "selection", "min_length")


def _kv_cache(args: argparse.Namespace) -> KVCachePolicy | None:
    given = _given(args, ("refresh", "refresh_every"))
    if args.preset is not None:
        _refuse(_given(args, ("kv_cache",)) | given, f"the preset {args.preset} decides it")
    if args.kv_cache is None:
        _refuse(given, "there is no --kv-cache")
        return None
    return made_cache(args.kv_cache, given)


def _sparse_config(args: argparse.Namespace) -> Sparse | None:
    of_sparse = ("block_size", "generation")
    if args.preset is not None:
        _refuse(_given(args, (*_SELECTING, *of_sparse, "sinks")), f"the preset {args.preset} decides them")
        return None
    cached_only = args.kv_cache is not None and not args.sparse and args.window is None
    if args.dense or cached_only:
        hint = ": --sparse is missing" if cached_only and not args.dense else ""
        _refuse(_given(args, (*_SELECTING, *of_sparse, "sinks")), f"attention is dense{hint}")
        return None
    if args.window is None:
        _refuse(_given(args, ("sinks",)), "there is no --window")
        return SparseConfig(**_given(args, (*_SELECTING, *of_sparse)))
    _refuse(_given(args, _SELECTING), "attention is a window")
    if args.sinks is None:
        return SlidingWindow(**_given(args, ("window", *of_sparse)))
    return StreamingLLM(**_given(args, ("window", "sinks", *of_sparse)))


def _sampler(args: argparse.Namespace, family: str, sampler: Sampler | None) -> Sampler:
    """The sampler of the preset, or else the family's default, with the options that were given."""
    options = {name: {field.name for field in dataclasses.fields(cls)} for name, cls in SAMPLERS.items()}
    foreign = sorted(set().union(*options.values()) - options[family])
    _refuse(_given(args, foreign), f"the model is of the {family} family")
    given = _given(args, sorted(options[family]))
    return changed_sampler(SAMPLERS[family]() if sampler is None else sampler, given)


# --- prompt ----------------------------------------------------------------------------------------------------------


def _prompt_text(args: argparse.Namespace) -> str:
    sources = {"PROMPT": args.text, "--prompt": args.prompt, "--prompt-file": args.prompt_file}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given, expected one of them")
    source = given[0] if given else "stdin"
    if given and str(sources[source]) == "-" and source != "--prompt":  # as in other programs
        text, source = _read_stdin(), "stdin"
    elif args.prompt_file is not None:
        text = read_text(args.prompt_file)
    elif given:
        text = str(sources[source]).removeprefix("\ufeff")  # $(cat FILE) hands on the mark of a file
    elif sys.stdin.isatty():
        raise ValueError("generate: no prompt, expected --prompt, --prompt-file, PROMPT or text on stdin")
    else:
        text = _read_stdin()
    if source == "PROMPT" and os.path.isfile(text):  # False if the text cannot be a file name
        print(f"sparsed: warning: PROMPT is the name of a file; --prompt-file {text} reads it", file=sys.stderr)
    if not text.strip():
        where = f"{source} {args.prompt_file}" if source == "--prompt-file" else source
        raise ValueError(f"{where} is empty, expected the text of a prompt")
    return text


def _read_stdin() -> str:
    """The text on stdin, read like a prompt file, whatever the encoding of the terminal."""
    stream = getattr(sys.stdin, "buffer", None)  # a stdin that a program put in its place may hold text only
    return decode_text(sys.stdin.read().encode() if stream is None else stream.read(), "stdin")


def _check_known(tokenizer: Tokenizer, text: str, folder: Path) -> None:
    """Warns if the prompt is mostly unknown to the tokenizer, because the answer then means little."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ValueError("the prompt holds nothing that the tokenizer knows, expected other text")
    unknown = tokenizer.count_unknown(ids)
    if 2 * unknown > len(ids):
        hint = " (the demo model knows 1,500 words, in lower case)" if folder == demo_model_folder() else ""
        print(
            f"sparsed: warning: {unknown} of {len(ids)} tokens of the prompt are unknown to the tokenizer{hint}: "
            "the answer means little",
            file=sys.stderr,
        )
