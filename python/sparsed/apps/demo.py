"""`sparsed demo`: a preset of `sparsed eval` that asks the model of the package about facts in a long text.

Dense attention, SparseD, SparseD with a key/value cache and a sliding window answer the same questions. The command
prints one table and one example.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any

from ..checks import Checker
from ..kernels.attention import active_backend, get_num_threads
from ..kernels.config import BLOCK_SIZES, SlidingWindow
from ..models.files import demo_model_folder
from ..models.tokenizer import Tokenizer, load_tokenizer
from ..tables import format_table
from .cli_options import add_engine_options, load_chosen
from .eval.runner import Question, Record, answers
from .eval.styles import SmallStyle
from .eval.tasks import Niah, Sample, TaskSet, niah
from .methods import Method, default_sampler, method, sparse_config, window_of

_TASK = "niah_demo"
_ANSWER_TOKENS = 4  # KEY is 107 ;
_PHASES = ("dense", "select", "sparse", "cached")
_LEGEND = (
    "seconds: of all answers; density: share of the attention that was computed (1: dense); "
    "dense, select, sparse, cached s: seconds of the steps of that phase (cached: steps that compute some tokens)"
)


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sparsed demo`."""
    parser.add_argument("--length", type=int, default=4096, help="tokens of each text")
    parser.add_argument("--prompts", type=int, default=10, help="texts")
    parser.add_argument("--needles", type=int, default=8, help="facts in each text")
    parser.add_argument("--questions", type=int, default=1, help="facts asked for, of each text")
    parser.add_argument("--gen-length", type=int, help="tokens to generate (default: room for the answers)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: one per token)")
    parser.add_argument("--seed", type=int, default=0, help="other numbers make other texts")
    add_engine_options(parser)
    group = parser.add_argument_group("attention")
    group.add_argument("--window", type=int, help="tokens of the sliding window (default: a quarter of the length)")
    defaults = sparse_config("demo")
    group.add_argument("--rho", type=float, default=defaults.rho, help="share of the key blocks that SparseD keeps")
    group.add_argument("--skip", type=float, default=defaults.skip, help="share of the steps before the selection")
    group.add_argument(
        "--block-size", type=int, choices=BLOCK_SIZES, default=defaults.block_size, help="tokens per block"
    )


def run_demo(args: argparse.Namespace) -> int:
    """Runs `sparsed demo`."""
    folder = demo_model_folder()
    tokenizer = load_tokenizer(folder)
    samples = demo_samples(tokenizer, args)
    methods = _methods(args)
    model = load_chosen(folder, args)
    questions = [
        Question(_TASK, args.length, sample.index, functools.partial(samples.__getitem__, i), methods, args.steps)
        for i, sample in enumerate(samples)
    ]
    # Threads and pages are ready before the first method is timed.
    model.forward([samples[0].prompt_ids(tokenizer)], positions=[0])
    sampler = default_sampler(model.config, "demo")
    records = list(answers(model, tokenizer, questions, sampler, progress=sys.stderr.isatty()))
    print(_setting(args, model, samples[0], records[0], methods))
    print(f"\n{demo_table(records)}\n\n{_LEGEND}\n\n{_example(samples[0], records)}")
    return 0


def demo_samples(tokenizer: Tokenizer, args: argparse.Namespace) -> list[Sample]:
    """Returns texts in the words of the demo model with facts at random places, and a question for some of them.

    Raises:
        ValueError: A number is out of its range, or the length has no room for the facts and the question.
    """
    check = Checker("demo")
    for name in ("prompts", "needles", "questions"):
        check.integer(name, getattr(args, name), low=1)
    if args.questions > args.needles:
        raise ValueError(f"demo: questions is {args.questions}, expected at most the {args.needles} needles")
    style = SmallStyle.of(tokenizer)
    maker = niah(style, Niah(hay="noise", keys=args.needles, queries=args.questions))
    tasks = TaskSet(tokenizer, style, args.length, seed=args.seed)
    gen_length = args.questions * _ANSWER_TOKENS + 4 if args.gen_length is None else args.gen_length
    samples = [tasks.custom(_TASK, index, maker, gen_length=0) for index in range(args.prompts)]
    return [
        # A right answer names the key, its number and the end: "zileba is 107 ;".
        dataclasses.replace(sample, outputs=tuple(_split(sample.answer)), gen_length=gen_length)
        for sample in samples
    ]


def _split(answer: str) -> list[str]:
    return [f"{fact} ;" for fact in answer.removesuffix(" ;").split(" ; ")]


def _methods(args: argparse.Namespace) -> list[Method]:
    given = {"rho": args.rho, "skip": args.skip, "block_size": args.block_size}
    sparse = dataclasses.replace(sparse_config("demo"), **given)
    window = window_of("demo", args.length) if args.window is None else args.window
    return [
        Method("dense"),
        Method("SparseD", sparse=sparse),
        method("SparseD + cache", "demo", args.length, sparse=sparse),
        Method("sliding window", sparse=SlidingWindow(window, args.block_size, sparse.generation)),
    ]


def _setting(args: argparse.Namespace, model: Any, sample: Sample, record: Record, methods: Sequence[Method]) -> str:
    window = methods[-1].settings()["sparse"]["window"]
    return (
        f"{args.prompts} texts of {record.tokens} tokens with {args.needles} facts each, "
        f"{args.questions} of them asked for; "
        f"{sample.gen_length} tokens in {sample.gen_length if args.steps is None else args.steps} steps\n"
        f"SparseD: block_size {args.block_size}, rho {args.rho}, skip {args.skip}; sliding window: {window} tokens; "
        f"{model.dtype}, {model.weights} weights, backend {active_backend()}, {get_num_threads()} threads"
    )


def demo_table(records: Sequence[Record]) -> str:
    """Returns a row per method: the questions that it answered right, and the seconds of all answers by phase."""
    by_method = {name: [r for r in records if r.method == name] for name in dict.fromkeys(r.method for r in records)}
    baseline = sum(record.seconds for record in records if record.method == records[0].method)
    rows = []
    for name, found in by_method.items():
        seconds = sum(record.seconds for record in found)
        right = sum(round(record.score * record.answers) for record in found)
        phases = [sum(record.phase_seconds.get(phase, 0.0) for record in found) for phase in _PHASES]
        rows.append(
            (
                name,
                f"{right} / {sum(record.answers for record in found)}",
                f"{seconds:.1f}",
                f"{baseline / seconds:.2f}x",
                f"{sum(record.density for record in found) / len(found):.2f}",
                *(f"{phase:.1f}" if phase else "-" for phase in phases),
            )
        )
    header = ("method", "questions right", "seconds", "speed-up", "density", *(f"{phase} s" for phase in _PHASES))
    return format_table(header, rows)


def _example(sample: Sample, records: Sequence[Record]) -> str:
    """The first question, the right answer and the answer of each method."""
    shown = [("(right)", sample.answer), *((r.method, r.prediction) for r in records if r.index == sample.index)]
    width = max(len(name) for name, _ in shown)
    question = sample.input.rpartition("question : ")[2]
    return "\n".join([f"Example: {question}", *(f"{name:{width}}  {text}" for name, text in shown)])
