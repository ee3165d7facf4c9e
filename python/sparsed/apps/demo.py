"""The demo: questions about a long text, answered by the shipped model with dense, SparseD and windowed attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..checks import Checker
from ..generation.generate import generate
from ..generation.stats import GenerationStats, format_table
from ..kernels.attention import active_backend, get_num_threads
from ..kernels.config import SlidingWindow, Sparse, SparseConfig
from ..models.files import demo_model_folder
from ..models.loader import load_model
from ..models.tokenizer import Tokenizer, load_tokenizer
from ..progress import progress_bar
from .eval.methods import sparse_config, window_of
from .eval.styles import SmallStyle
from .eval.tasks import Niah, TaskSet, niah

_PHASES = ("dense", "select", "sparse")
_ANSWER_TOKENS = 4  # KEY is 107 ;
_SPARSED = sparse_config("demo")


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs.

    Attributes:
        length: Tokens of each prompt, at most.
        prompts: Texts to ask about.
        needles: Facts hidden in each text.
        questions: Facts asked for, of each text.
        gen_length: Tokens to generate; None: room for the answers.
        steps: Denoising steps; None: one per token.
        sparse: The settings of SparseD.
        window: Tokens of the sliding window; None: a quarter of `length`.
    """

    length: int = 4096
    prompts: int = 10
    needles: int = 8
    questions: int = 1
    gen_length: int | None = None
    steps: int | None = None
    seed: int = 0
    dtype: str = "float32"
    sparse: SparseConfig = _SPARSED
    window: int | None = None

    def __post_init__(self) -> None:
        """Checks what nothing behind it checks."""
        for name in ("prompts", "needles", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"demo: {name} is {getattr(self, name)}, expected at least 1")
        check = Checker("demo")
        check.integer("length", self.length, low=1)
        check.integer("seed", self.seed, low=0)
        if self.questions > self.needles:
            raise ValueError(f"demo: questions is {self.questions}, expected at most the {self.needles} needles")

    @property
    def answer_tokens(self) -> int:
        """Tokens that are generated."""
        return self.questions * _ANSWER_TOKENS + 4 if self.gen_length is None else self.gen_length

    @property
    def num_steps(self) -> int:
        """Denoising steps."""
        return self.answer_tokens if self.steps is None else self.steps

    @property
    def window_tokens(self) -> int:
        """Tokens of the sliding window."""
        return window_of("demo", self.length) if self.window is None else self.window


class Prompt(NamedTuple):
    """A text with its question: token ids, the question in words, and the right answers ("KEY is 107")."""

    ids: list[int]
    question: str
    answers: tuple[str, ...]


@dataclass
class MethodResult:
    """What one method did with all prompts.

    Attributes:
        right: Questions answered right, a whole answer each.
        phase_seconds: Seconds by phase ("dense", "select", "sparse").
        densities: Mean density of each prompt's steps.
        texts: What it answered, per prompt.
    """

    name: str
    right: int = 0
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PHASES, 0.0))
    densities: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return sum(self.phase_seconds.values())

    def add(self, prompt: Prompt, text: str, stats: GenerationStats) -> None:
        """Takes in the answer to one prompt."""
        self.right += sum(f"{answer} ;" in text for answer in prompt.answers)
        for phase in _PHASES:
            self.phase_seconds[phase] += stats.phase_seconds[phase]
        self.densities.append(stats.density)
        self.texts.append(text)


@dataclass(frozen=True)
class DemoReport:
    """The prompts and what each method made of them; `str()` of it is the demo's output."""

    options: DemoOptions
    prompts: list[Prompt]
    results: list[MethodResult]
    machine: str

    def __str__(self) -> str:
        options, sparse = self.options, self.options.sparse
        asked = sum(len(prompt.answers) for prompt in self.prompts)
        dense_seconds = self.results[0].seconds
        rows = [
            (
                result.name,
                f"{result.right} / {asked}",
                f"{result.seconds:.1f}",
                f"{dense_seconds / result.seconds:.2f}x",
                f"{sum(result.densities) / len(result.densities):.2f}",
                *(f"{result.phase_seconds[phase]:.1f}" if result.phase_seconds[phase] else "-" for phase in _PHASES),
            )
            for result in self.results
        ]
        header = ("method", "questions right", "seconds", "speed-up", "density", *(f"{phase} s" for phase in _PHASES))
        example, texts = self.prompts[0], [result.texts[0] for result in self.results]
        width = max(len(result.name) for result in self.results)
        lines = [
            f"{len(self.prompts)} texts of {len(example.ids)} tokens with {options.needles} facts each, "
            f"{options.questions} of them asked for; {options.answer_tokens} tokens in {options.num_steps} steps",
            f"SparseD: block_size {sparse.block_size}, rho {sparse.rho}, skip {sparse.skip}; "
            f"sliding window: {options.window_tokens} tokens; {self.machine}",
            "",
            format_table(header, rows),
            "",
            "seconds: of all answers; density: share of the attention that was computed (1: dense); "
            "dense, select, sparse s: seconds of the steps of that phase",
            "",
            f"Example: {example.question}",
            f"{'(right)':{width}}  {' ; '.join(example.answers)} ;",
            *(f"{result.name:{width}}  {text}" for result, text in zip(self.results, texts, strict=True)),
        ]
        return "\n".join(lines)


def build_prompts(tokenizer: Tokenizer, options: DemoOptions) -> list[Prompt]:
    """Texts of the model's own vocabulary with facts at random places, and a question for some of them.

    Raises:
        ValueError: The length has no room for the needles and the question.
    """
    style = SmallStyle.of(tokenizer)
    maker = niah(style, Niah(hay="noise", keys=options.needles, queries=options.questions))
    tasks = TaskSet(tokenizer, style, options.length, seed=options.seed)
    prompts = []
    for index in range(options.prompts):
        sample = tasks.custom("niah_demo", index, maker, gen_length=0)
        question = sample.input.rpartition("question : ")[2]
        answers = tuple(sample.answer.removesuffix(" ;").split(" ; "))
        prompts.append(Prompt(sample.prompt_ids(tokenizer), question, answers))
    return prompts


def run_demo(options: DemoOptions, *, progress: bool = False) -> DemoReport:
    """Answers the same prompts with each method; the methods take turns, so that the machine's load meets all alike.

    Raises:
        ValueError, TypeError: An option that does not fit.
    """
    model = load_model(demo_model_folder(), dtype=options.dtype)
    tokenizer = load_tokenizer(demo_model_folder())
    prompts = build_prompts(tokenizer, options)
    methods: list[tuple[MethodResult, Sparse | None]] = [
        (MethodResult("dense"), None),
        (MethodResult("SparseD"), options.sparse),
        (MethodResult("sliding window"), SlidingWindow(options.window_tokens, options.sparse.block_size)),
    ]
    model.forward([prompts[0].ids], positions=[0])  # threads and pages are ready before the first method is timed
    with progress_bar(progress, total=len(prompts) * len(methods), unit="text", leave=False) as bar:
        for prompt in prompts:
            for result, sparse in methods:
                bar.set_description(result.name)
                answer = generate(
                    model, prompt.ids, gen_length=options.answer_tokens, steps=options.num_steps, sparse=sparse
                )
                result.add(prompt, tokenizer.text(answer.require_whole().generated[0]), answer.stats)
                bar.update()
    machine = f"{options.dtype}, backend {active_backend()}, {get_num_threads()} threads"
    return DemoReport(options, prompts, [result for result, _ in methods], machine)
