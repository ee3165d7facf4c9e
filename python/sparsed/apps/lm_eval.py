"""`SparsedLM`: sparsed as a model of EleutherAI's lm-evaluation-harness; `sparsed lm-eval` runs its command line."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..config import SlidingWindow, Sparse, SparseConfig, StreamingLLM
from ..generation.generate import generate
from ..generation.likelihood import is_greedy, log_likelihood
from ..generation.prompts import pad_left
from ..generation.sampling import SAMPLERS, Sampler
from ..models.loader import load_model
from ..models.tokenizer import load_tokenizer

_log = logging.getLogger(__name__)

_METHODS: dict[str, type[Sparse]] = {
    "sparsed": SparseConfig,
    "sliding_window": SlidingWindow,
    "streaming_llm": StreamingLLM,
}


# What a task may say of sampling, and what else lm-eval puts beside it.
_OF_SAMPLING: dict[str, Callable[[Any], float]] = {"temperature": float, "top_p": float, "top_k": int}
_NOT_SAMPLING = ("until", "max_gen_toks", "do_sample")


@dataclasses.dataclass(frozen=True)
class _Job:
    """One text to generate."""

    index: int
    ids: list[int]
    until: list[str]
    gen_length: int
    sampling: tuple[tuple[str, float], ...]  # fields of the sampler that the task decides


@register_model("sparsed")
class SparsedLM(TemplateLM):
    """A LLaDA or Dream checkpoint, dense or sparse, for lm-eval's tasks of every output type.

    Likelihoods are Monte-Carlo estimates over masks, for both families as LLaDA's evaluation makes them.

    Args:
        pretrained: the checkpoint's folder.
        dtype, engine, device_map: as in `load_model`.
        device: as in `load_model`; not used by the native engine and beside `device_map`.
        batch_size: texts generated, or masks drawn, in one forward pass.
        max_batch_size: not used; lm-eval gives it.
        max_length: the most tokens of a sequence; longer contexts lose their beginning. None: the model's own.
        gen_length: tokens to generate; None: what the task asks for (max_gen_toks, 256 where it names none).
        steps: denoising steps; None: one per token.
        mc_num: masks drawn per likelihood, a multiple of batch_size.
        is_check_greedy: also find out whether a continuation is the model's own first choice, one forward pass per
            token; only metrics such as LAMBADA's accuracy read it. False reports False.
        escape_until: ignore the task's stop strings (as Dream's evaluation of code does); end tokens end a text.
        add_bos_token: begin every context with the bos token, where the tokenizer has not.
        seed: of sampling and of masks.
        sparse: False: dense; True or "sparsed", "sliding_window", "streaming_llm", with the fields of `SparseConfig`,
            `SlidingWindow` or `StreamingLLM` among `options`; or one of these objects.
        options: fields of the sampler of the model's family, `LLaDASampler` or `DreamSampler`, and of `sparse`.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `load_model`; an option that does not apply.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str],
        dtype: str = "float32",
        engine: str = "native",
        device: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        gen_length: int | None = None,
        steps: int | None = None,
        mc_num: int = 128,
        is_check_greedy: bool = True,
        escape_until: bool = False,
        add_bos_token: bool = False,
        seed: int = 0,
        sparse: bool | str | Sparse = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"SparsedLM: batch_size is {batch_size!r}, expected an integer of at least 1")
        placement = _placement(engine, device, device_map)
        self.model = load_model(pretrained, dtype, engine=engine, **placement)
        self.tokenizer = load_tokenizer(pretrained)
        self.sparse = _sparse(sparse, options)
        self.sampler, self._sampler_options = _sampler(self.model.config.family, options)
        if options:
            raise ValueError(
                f"SparsedLM: {', '.join(sorted(options))} given, expected only options that apply "
                f"(the model is of the {self.model.config.family} family, sparse is {sparse!r})"
            )
        self.batch_size = int(batch_size)
        self.max_length = max_length or self.model.config.max_length
        self._name = os.fspath(pretrained)
        self._gen_length = gen_length
        self._steps = steps
        self._mc_num = mc_num
        self._is_check_greedy = is_check_greedy
        self._escape_until = escape_until
        self._add_bos_token = add_bos_token
        self._seed = seed
        self._warned: set[str] = set()  # options of tasks that were named as without effect

    # --- the tokenizer ---

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return next(
            token for token in (self.tokenizer.eos_token_id, self.model.config.eos_token_id, 0) if token is not None
        )

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        bos = (self.tokenizer.bos_token_id, self.model.config.bos_token_id)
        return next((token for token in bos if token is not None), self.eot_token_id)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests knows the tokenizer by."""
        return self._name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; without `add_generation_prompt` its last message is left open."""
        text = self.tokenizer.apply_chat_template(chat_history, add_generation_prompt)
        if not add_generation_prompt:
            last = chat_history[-1]["content"].strip()
            text = text[: text.rindex(last) + len(last)]
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; None as True: with the tokenizer's own marks."""
        ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)
        bos = self.tokenizer.bos_token_id
        if self._add_bos_token and add_special_tokens is not False and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids

    # --- likelihood ---

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        check_greedy: bool | None = None,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        check_greedy = self._is_check_greedy if check_greedy is None else check_greedy
        results = []
        for key, context, continuation in tqdm(requests, desc="Likelihoods", disable=disable_tqdm):
            prefix = self._truncated(context, len(continuation)) or [self.prefix_token_id]
            options: dict[str, Any] = {"cfg_scale": self.sampler.cfg_scale, "sparse": self.sparse}
            value = log_likelihood(
                self.model,
                prefix,
                continuation,
                samples=self._mc_num,
                batch_size=self.batch_size,
                seed=self._seed,
                **options,
            )
            greedy = check_greedy and is_greedy(self.model, prefix, continuation, **options)
            results.append((value, greedy))
            if any(key):
                self.cache_hook.add_partial("loglikelihood", key, results[-1])
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of max_length that follow each other."""
        results = []
        for request in tqdm(requests, desc="Texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            parts = [(("", ""), *make_disjoint_window(window)) for window in windows]
            values = self._loglikelihood_tokens(parts, disable_tqdm=True, check_greedy=False)
            results.append(sum((value for value, _ in values), 0.0))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    # --- generation ---

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The model's continuations, each up to an end token or the first of the request's stop strings."""
        jobs = [self._job(index, *request.args) for index, request in enumerate(requests)]
        # Equal lengths side by side: they run as one batch without padding.
        jobs.sort(key=lambda job: (job.gen_length, job.sampling, len(job.ids)))
        texts = [""] * len(jobs)
        with tqdm(total=len(jobs), desc="Generations", disable=disable_tqdm) as bar:
            for _, alike in itertools.groupby(jobs, key=lambda job: (job.gen_length, job.sampling)):
                remaining = list(alike)
                for start in range(0, len(remaining), self.batch_size):
                    batch = remaining[start : start + self.batch_size]
                    for job, text in zip(batch, self._generate(batch), strict=True):
                        texts[job.index] = text
                        self.cache_hook.add_partial("generate_until", requests[job.index].args, text)
                    bar.update(len(batch))
        return texts

    def _job(self, index: int, context: str, gen_kwargs: dict[str, Any]) -> _Job:
        options = normalize_gen_kwargs(gen_kwargs)
        gen_length = self._gen_length or int(options["max_gen_toks"])
        ids = self._truncated(self.tok_encode(context), gen_length) or [self.prefix_token_id]
        return _Job(index, ids, options["until"], gen_length, self._sampling(dict(options)))

    def _sampling(self, options: dict[str, Any]) -> tuple[tuple[str, float], ...]:
        """What a task that samples asks for; an option of the model goes before it."""
        wanted = {name: value for name, value in options.items() if name not in _NOT_SAMPLING and value is not None}
        if options["do_sample"]:
            wanted.setdefault("temperature", 1.0)  # as transformers does
        else:
            wanted = {name: value for name, value in wanted.items() if name not in _OF_SAMPLING}
        fields = vars(self.sampler).keys()
        for name in sorted(wanted.keys() - (fields & _OF_SAMPLING.keys()) - self._warned):
            self._warned.add(name)
            _log.warning("a task's %s=%r has no effect: not an option of %s", name, wanted[name], self.sampler)
        return tuple(
            (name, number(wanted[name]))
            for name, number in _OF_SAMPLING.items()
            if name in wanted and name in fields and name not in self._sampler_options
        )

    def _generate(self, batch: Sequence[_Job]) -> list[str]:
        prompts, mask = pad_left([job.ids for job in batch])
        first = batch[0]
        sampler: Any = self.sampler
        sampler = dataclasses.replace(sampler, **dict(first.sampling))
        result = generate(
            self.model,
            prompts,
            gen_length=first.gen_length,
            steps=self._steps or first.gen_length,
            sparse=self.sparse,
            sampler=sampler,
            prompt_mask=mask,
            seed=self._seed + first.index,
        )
        rows = result.require_whole().generated
        return [self._cut(self.tokenizer.text(row), job) for row, job in zip(rows, batch, strict=True)]

    def _cut(self, text: str, job: _Job) -> str:
        """`text` up to the first stop string."""
        stops = [] if self._escape_until else [stop for stop in job.until if stop and stop in text]
        return text[: min((text.index(stop) for stop in stops), default=len(text))]

    def _truncated(self, context: list[int], room: int) -> list[int]:
        """The end of the context that leaves room for `room` tokens."""
        keep = self.max_length - room
        if keep < 1:
            raise ValueError(
                f"SparsedLM: {room} tokens follow the context, expected less than max_length {self.max_length}"
            )
        if len(context) > keep:
            _log.warning("a context of %d tokens loses all but its last %d (max_length)", len(context), keep)
        return context[-keep:]


def _placement(engine: str, device: str | None, device_map: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of `load_model`; lm-eval's command line gives the device "cuda:0" where the user gives none."""
    if device_map is not None:
        return {"device_map": device_map}
    if engine != "torch" or device is None:
        return {}
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        _log.warning("device is %s, but torch finds no CUDA device: the model runs on the CPU", device)
        device = "cpu"
    return {"device": device}


def _sparse(sparse: bool | str | Sparse, options: dict[str, Any]) -> Sparse | None:
    """The sparse attention that is asked for, with its fields taken out of `options`."""
    if isinstance(sparse, Sparse):
        return sparse
    if not isinstance(sparse, (bool, str)):
        raise TypeError(f"SparsedLM: sparse is {sparse!r}, expected True, False, a name or SparseConfig and its like")
    if sparse is False:
        return None
    name = "sparsed" if sparse is True else sparse
    if name not in _METHODS:
        raise ValueError(f"SparsedLM: sparse is {sparse!r}, expected True, False or one of {list(_METHODS)}")
    return _METHODS[name](**_taken(_METHODS[name], options))


def _sampler(family: str, options: dict[str, Any]) -> tuple[Sampler, set[str]]:
    """The family's sampler with its fields taken out of `options`, and their names."""
    given = _taken(SAMPLERS[family], options)
    return SAMPLERS[family](**given), set(given)


def _taken(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind) if field.name in options]
    return {name: options.pop(name) for name in names}


def main(arguments: Sequence[str]) -> int:
    """lm-eval's command line, with the model "sparsed"."""
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0
