"""`sparsed eval`, `sparsed ablate` and `sparsed heads`: options, and what they run."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import BLOCK_SIZES, SparseConfig
from ..demo import demo_model_folder
from ..files import read_text
from ..loader import load_model
from ..machine import machine_info
from ..models import Transformer
from ..tokenizer import Tokenizer, load_tokenizer
from . import methods as settings
from .ablation import ablations
from .heads import head_report, heads_table, write_heads
from .jsonl import read_samples, write_samples
from .likelihood import likelihood
from .methods import METHODS, Method, default_sampler, sparse_config
from .report import summarise, table, write_report
from .runner import Log, Question, run
from .scoring import bootstrap
from .styles import RulerStyle, SmallStyle, Style
from .tasks import TaskSet

# Makes the methods for a length.
Methods = Callable[[int], Sequence[Method]]


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sparsed eval`."""
    _add_common(parser, out="eval-results", samples=10)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=", ".join(METHODS)
    )
    parser.add_argument(
        "--jsonl",
        nargs="+",
        default=[],
        metavar="TASK=FILE",
        help="samples in RULER's format, instead of generated ones",
    )
    parser.add_argument("--squad", type=Path, help="SQuAD's JSON file, for task qa_1")
    parser.add_argument("--hotpotqa", type=Path, help="HotpotQA's JSON file, for task qa_2")
    parser.add_argument(
        "--write-jsonl", type=Path, metavar="FOLDER", help="write the samples in RULER's format and stop"
    )
    parser.add_argument("--likelihood", type=Path, metavar="FILE", help="score this held-out text instead of tasks")
    parser.add_argument("--target", type=int, default=128, help="with --likelihood: tokens at the end that are scored")
    parser.add_argument("--draws", type=int, default=128, help="with --likelihood: Monte-Carlo draws")


def add_ablate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sparsed ablate`."""
    _add_common(parser, out="ablation-results", samples=10)


def add_heads_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sparsed heads`."""
    _add_common(parser, out="heads-results", samples=4)


def _add_common(parser: argparse.ArgumentParser, *, out: str, samples: int) -> None:
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR", help="checkpoint folder (the demo model)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="(all that need no file)")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[2048], metavar="N", help="tokens, the answer's included"
    )
    parser.add_argument("--samples", type=int, default=samples, help="per task and length (RULER: 500)")
    parser.add_argument("--out", type=Path, default=Path(out), help="results; a run that stopped goes on there")
    parser.add_argument("--preset", choices=("paper", "demo"), help="settings of the methods (demo for the demo model)")
    parser.add_argument("--style", choices=("ruler", "small"), help="wording (small for the demo model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rho", type=float, help="SparseD: share of the key blocks that is kept")
    parser.add_argument("--skip", type=float, help="SparseD: share of the steps before the selection")
    parser.add_argument("--block-size", type=int, choices=BLOCK_SIZES, help="SparseD: tokens per block")


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What both commands begin with."""

    model: Transformer
    tokenizer: Tokenizer
    style: Style
    preset: settings.Preset
    sparse: SparseConfig
    folder: Path


def _setup(args: argparse.Namespace) -> _Setup:
    folder = demo_model_folder() if args.model is None else args.model
    demo = args.model is None
    preset: settings.Preset = args.preset or ("demo" if demo else "paper")
    tokenizer = load_tokenizer(folder)
    small = (args.style or ("small" if demo else "ruler")) == "small"
    style = SmallStyle.of(tokenizer) if small else RulerStyle("paper" if preset == "paper" else "ruler")
    given = {name: getattr(args, name) for name in ("rho", "skip", "block_size") if getattr(args, name) is not None}
    sparse = dataclasses.replace(sparse_config(preset), **given)
    if args.samples < 1:
        raise ValueError(f"eval: samples is {args.samples}, expected at least 1")
    return _Setup(load_model(folder, dtype=args.dtype), tokenizer, style, preset, sparse, Path(folder))


def run_eval(args: argparse.Namespace) -> int:
    """Runs `sparsed eval`."""
    setup = _setup(args)

    def methods(length: int) -> list[Method]:
        found = [settings.method(name, setup.preset, length) for name in args.methods]
        return [dataclasses.replace(m, sparse=setup.sparse) if m.name == "SparseD" else m for m in found]

    if args.likelihood is not None:
        return _likelihood(args, setup, methods)
    if args.write_jsonl is not None:
        for length in args.lengths:
            tasks = _task_set(args, setup, length)
            for task in _tasks(args, setup):
                path = args.write_jsonl / str(length) / task / "validation.jsonl"
                write_samples(path, [tasks.sample(task, index) for index in range(args.samples)])
                print(path)
        return 0
    return _run(args, setup, _questions(args, setup, methods), methods)


def run_ablate(args: argparse.Namespace) -> int:
    """Runs `sparsed ablate`."""
    setup = _setup(args)
    found = ablations(setup.sparse)
    return _run(args, setup, _questions(args, setup, lambda length: found), lambda length: found)


def run_heads(args: argparse.Namespace) -> int:
    """Runs `sparsed heads`: at the first length, over the samples of all tasks with the budget of the longest."""
    setup = _setup(args)
    tasks = _task_set(args, setup, args.lengths[0])
    samples = [tasks.sample(task, index) for task in _tasks(args, setup) for index in range(args.samples)]
    report = head_report(
        setup.model,
        [sample.prompt_ids(setup.tokenizer) for sample in samples],
        gen_length=max(sample.gen_length for sample in samples),
        sparse=setup.sparse,
    )
    command = shlex.join(["sparsed", *sys.argv[1:]])
    context = {"command": command, "settings": repr(setup.sparse), "prompts": len(samples), "machine": machine_info()}
    for path in write_heads(args.out, report, context):
        print(path, file=sys.stderr)
    print(heads_table(report))
    return 0


def _tasks(args: argparse.Namespace, setup: _Setup) -> list[str]:
    given = {"qa_1": getattr(args, "squad", None), "qa_2": getattr(args, "hotpotqa", None)}
    return args.tasks or [task for task in setup.style.tasks if given.get(task, args) is not None]


def _task_set(args: argparse.Namespace, setup: _Setup, length: int) -> TaskSet:
    files = {"qa_1": getattr(args, "squad", None), "qa_2": getattr(args, "hotpotqa", None)}
    given = {task: path for task, path in files.items() if path is not None}
    return TaskSet(setup.tokenizer, setup.style, length, seed=args.seed, files=given)


def _questions(args: argparse.Namespace, setup: _Setup, methods: Methods) -> list[Question]:
    if getattr(args, "jsonl", []):
        return _file_questions(args, setup, methods)
    questions = []
    for length in args.lengths:
        tasks, own = _task_set(args, setup, length), methods(length)
        for task in _tasks(args, setup):
            tasks.sample(task, 0)  # an impossible one shows before the first answer
            questions += [
                Question(task, length, index, functools.partial(tasks.sample, task, index), own)
                for index in range(args.samples)
            ]
    return questions


def _file_questions(args: argparse.Namespace, setup: _Setup, methods: Methods) -> list[Question]:
    """Samples of files; their length is that of the longest one."""
    questions = []
    for option in args.jsonl:
        task, equals, path = option.partition("=")
        if not equals:
            raise ValueError(f"eval: jsonl is {option!r}, expected TASK=FILE")
        samples = read_samples(Path(path), task, setup.style.gen_lengths.get(task.split("_")[0]))[: args.samples]
        if not samples:
            raise ValueError(f"eval: {path} holds no sample, expected at least one")
        length = max(len(sample.prompt_ids(setup.tokenizer)) + sample.gen_length for sample in samples)
        own = methods(length)
        questions += [
            Question(task, length, i, functools.partial(samples.__getitem__, i), own) for i in range(len(samples))
        ]
    return questions


def _run(args: argparse.Namespace, setup: _Setup, questions: list[Question], methods: Methods) -> int:
    plan = {
        "model": setup.folder.name,
        "dtype": args.dtype,
        "style": setup.style.name,
        "seed": args.seed,
        "jsonl": getattr(args, "jsonl", []),
        "settings": {
            str(length): {method.name: repr(method) for method in methods(length)}
            for length in sorted({question.length for question in questions})
        },
    }
    log = Log(args.out, plan)
    sampler = default_sampler(setup.model.config, setup.preset)
    if questions:  # threads and pages are ready before the first method is timed
        first = questions[0].sample().prompt_ids(setup.tokenizer)
        setup.model.forward([first], positions=[0])
    run(setup.model, setup.tokenizer, questions, sampler, log, seed=args.seed, progress=sys.stderr.isatty())
    wanted = {(q.task, q.length, q.index, m.name) for q in questions for m in q.methods}
    records = [r for r in log.records if (r.task, r.length, r.index, r.method) in wanted]
    rows = summarise(records)
    command = shlex.join(["sparsed", *sys.argv[1:]])
    for path in write_report(args.out, rows, {"command": command, "plan": plan, "machine": machine_info()}):
        print(path, file=sys.stderr)
    print(table(rows))
    return 0


def _likelihood(args: argparse.Namespace, setup: _Setup, methods: Methods) -> int:
    """Nats per token of a text's last tokens, for each length and method without a cache."""
    ids = setup.tokenizer.encode(read_text(args.likelihood))
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        if len(ids) < length:
            raise ValueError(f"eval: {args.likelihood} has {len(ids)} tokens, expected at least {length}")
        texts = [ids[i * length : (i + 1) * length] for i in range(min(args.samples, len(ids) // length))]
        dense: np.ndarray[Any, np.dtype[np.float64]] | None = None
        for method in (m for m in methods(length) if m.cache is None):
            draws = np.concatenate(
                [
                    likelihood(
                        setup.model,
                        text,
                        target=args.target,
                        draws=args.draws,
                        sparse=method.sparse,
                        seed=args.seed + i,
                    ).draws
                    for i, text in enumerate(texts)
                ]
            )
            dense = draws if method.name == "dense" else dense
            row = {"method": method.name, "length": length, "texts": len(texts), "nats": bootstrap(draws)}
            if dense is not None and method.name != "dense":
                row["minus_dense"] = bootstrap(draws - dense)
            rows.append(row)
            line = f"{method.name:15} {length:6} {row['nats'].mean:.4f} nats per token"
            difference = row.get("minus_dense")
            if difference is not None:
                line += f"  {difference.mean:+.4f} ({difference.low:+.4f} ... {difference.high:+.4f})"
            print(line, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"command": shlex.join(["sparsed", *sys.argv[1:]]), "machine": machine_info(), "rows": rows}
    text = json.dumps(content, indent=1, default=dataclasses.asdict)
    (args.out / "likelihood.json").write_text(text + "\n", encoding="utf-8")
    return 0
