"""The commands `sparsed eval`, `sparsed ablate` and `sparsed heads`."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from ...generation.preset import PRESETS
from .. import methods as settings
from ..environment import machine_info
from ..methods import METHODS, Method, default_sampler
from .ablation import ablations
from .heads import head_report, heads_table, write_heads
from .held_out import score_text
from .jsonl import read_samples, write_samples
from .records import Log, file_identity
from .report import summarise, table, write_report
from .run_context import Methods, RunContext, add_common_options, command_line
from .runner import Question, Record, run
from .tasks import kind_of, require_known

_CONTINUES = (
    "A run that was stopped continues in --out. It may also get more samples, methods, tasks and lengths there."
)


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sparsed eval`."""
    add_common_options(parser, out="eval-results", samples=10)
    parser.description = f"{parser.description}. {_CONTINUES}"
    parser.add_argument(
        "--methods",
        nargs="+",
        type=_method_argument,
        metavar="METHOD",
        help=f"(all) {', '.join(map(settings.slug, METHODS))}; and presets: {', '.join(PRESETS)}. "
        f"{settings.slug('SparseD + cache')} always has skip 0 and dense rows of the generation",
    )
    parser.add_argument(
        "--preset", nargs="+", choices=PRESETS, metavar="NAME", help="the same as --methods dense NAME ..."
    )
    parser.add_argument(
        "--jsonl",
        nargs="+",
        default=[],
        metavar="TASK=FILE",
        help="samples in RULER's format, instead of generated ones",
    )
    parser.add_argument(
        "--write-jsonl", type=Path, metavar="FOLDER", help="write the samples in RULER's format and stop"
    )
    parser.add_argument("--likelihood", type=Path, metavar="FILE", help="score this held-out text instead of tasks")
    parser.add_argument("--target", type=int, default=128, help="with --likelihood: tokens at the end that are scored")
    parser.add_argument("--draws", type=int, default=128, help="with --likelihood: Monte-Carlo draws")


def add_ablate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sparsed ablate`."""
    add_common_options(parser, out="ablation-results", samples=10)
    parser.description = f"{parser.description}. {_CONTINUES}"


def add_heads_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sparsed heads`."""
    add_common_options(parser, out="heads-results", samples=4)


def run_eval(args: argparse.Namespace) -> int:
    """Runs `sparsed eval`."""
    _refuse_unused(args)
    named = [*(args.methods or ()), *(("dense", *args.preset) if args.preset else ())]
    names = list(dict.fromkeys(named or METHODS))
    context = RunContext.of(args)

    def methods(length: int) -> list[Method]:
        kind: dict[str, Any] = {"sparse": context.sparse, "source": context.tokenizer}
        return [settings.method(name, context.scale, length, **kind) for name in names]

    if args.likelihood is not None:
        print(score_text(context, methods))
        return 0
    if args.write_jsonl is not None:
        for length in args.lengths:
            tasks = context.task_set(length)
            for task in context.tasks:
                path = args.write_jsonl / str(length) / task / "validation.jsonl"
                write_samples(path, [tasks.sample(task, index) for index in range(args.samples)])
                print(path)
        return 0
    if args.jsonl:
        return _run(context, methods, *_file_questions(context, methods))
    return _run(context, methods, *_questions(context, methods))


def run_ablate(args: argparse.Namespace) -> int:
    """Runs `sparsed ablate`."""
    context = RunContext.of(args)
    found = ablations(context.sparse)
    return _run(context, lambda length: found, *_questions(context, lambda length: found))


def run_heads(args: argparse.Namespace) -> int:
    """Runs `sparsed heads` over the samples of all tasks, all with the gen_length of the longest task."""
    if len(args.lengths) != 1:
        raise ValueError(f"heads: lengths has {len(args.lengths)} values, expected one")
    context = RunContext.of(args)
    tasks = context.task_set(args.lengths[0])
    samples = [tasks.sample(task, index) for task in context.tasks for index in range(args.samples)]
    prompts = [sample.prompt_ids(context.tokenizer) for sample in samples]
    for sample, prompt in zip(samples, prompts, strict=True):
        require_known(context.tokenizer, prompt, sample.task)
    report = head_report(
        context.model,
        prompts,
        gen_length=max(sample.gen_length for sample in samples),
        sparse=context.sparse,
        progress=sys.stderr.isatty(),
    )
    run_facts = {
        "command": command_line(),
        "settings": repr(context.sparse),
        "prompts": len(samples),
        "machine": machine_info(),
    }
    for path in write_heads(args.out, report, run_facts):
        print(path, file=sys.stderr)
    print(heads_table(report))
    return 0


def _refuse_unused(args: argparse.Namespace) -> None:
    """Raises ValueError for an option that another one makes useless."""
    for option, others in _UNUSED.items():
        if getattr(args, option):
            for name in others:
                if getattr(args, name):
                    raise ValueError(f"eval: {_option(name)} is given with {_option(option)}, which does not use it")
            return


def _method_argument(text: str) -> str:
    try:
        return settings.method_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


# Options that decide what runs, with the options that have no effect beside them.
_UNUSED = {
    "likelihood": ("tasks", "jsonl", "write_jsonl", "squad", "hotpotqa"),
    "write_jsonl": ("jsonl", "methods", "preset"),
    "jsonl": ("tasks", "squad", "hotpotqa"),
}

# By length and task: where the samples come from. It is a part of the plan.
_Sources = dict[str, dict[str, Any]]


def _questions(context: RunContext, methods: Methods) -> tuple[list[Question], _Sources]:
    """Questions on generated samples."""
    questions = []
    for length in context.args.lengths:
        tasks, methods_here = context.task_set(length), methods(length)
        for task in context.tasks:
            require_known(context.tokenizer, tasks.sample(task, 0).prompt_ids(context.tokenizer), task)
            questions += [
                Question(task, length, index, functools.partial(tasks.sample, task, index), methods_here)
                for index in range(context.args.samples)
            ]
    sources = {task: context.source(task) for task in context.tasks}
    return questions, {str(length): sources for length in context.args.lengths}


def _file_questions(context: RunContext, methods: Methods) -> tuple[list[Question], _Sources]:
    """Questions on the samples of files; the length is that of the longest sample of the file."""
    questions: list[Question] = []
    sources: _Sources = {}
    for option in context.args.jsonl:
        task, equals, path = option.partition("=")
        if not equals:
            raise ValueError(f"eval: jsonl is {option!r}, expected TASK=FILE")
        samples = read_samples(Path(path), task, context.style.gen_lengths.get(kind_of(task)))
        if not samples:
            raise ValueError(f"eval: {path} holds no sample, expected at least one")
        length = max(len(sample.prompt_ids(context.tokenizer)) + sample.gen_length for sample in samples)
        if task in sources.setdefault(str(length), {}):
            raise ValueError(f"eval: jsonl has two files of task {task} and length {length}, expected one")
        sources[str(length)][task] = file_identity(Path(path))
        methods_here = methods(length)
        questions += [
            Question(task, length, i, functools.partial(samples.__getitem__, i), methods_here)
            for i in range(min(len(samples), context.args.samples))
        ]
    return questions, sources


def _run(context: RunContext, methods: Methods, questions: list[Question], sources: _Sources) -> int:
    args = context.args
    plan = context.plan(methods, [question.length for question in questions]) | {"sources": sources}
    log = Log(args.out, plan, Record)
    # Threads and pages are ready before the first method is timed.
    context.model.forward([questions[0].sample().prompt_ids(context.tokenizer)], positions=[0])
    sampler = default_sampler(context.model.config, context.scale)
    run(context.model, context.tokenizer, questions, sampler, log, seed=args.seed, progress=sys.stderr.isatty())
    wanted = {(m.name, q.task, q.length, q.index) for q in questions for m in q.methods}
    rows = summarise([record for record in log.records if record.key in wanted])
    for path in write_report(args.out, rows, {"command": command_line(), "plan": plan, "machine": machine_info()}):
        print(path, file=sys.stderr)
    print(table(rows))
    return 0
