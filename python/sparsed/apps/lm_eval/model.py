"""`SparsedLM`: the requests of lm-eval's tasks, answered by a checkpoint of a diffusion language model.

The file is long because lm-eval's interface is one class, and half of it documents its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ...checks import Checker
from ...generation.generate import generate
from ...generation.kv_cache import KVCachePolicy
from ...generation.likelihood import is_greedy, log_likelihood
from ...generation.prompts import pad_left
from ...kernels.config import Sparse
from ...models.loader import load_model
from ...models.tokenizer import load_tokenizer
from . import chat
from . import options as arguments
from .batches import BatchSize, largest_divisor
from .texts import Answers, read_gen_kwargs

_log = logging.getLogger(__name__)

Pair = tuple[str, str]


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
    """A checkpoint of a diffusion language model, dense or sparse, for lm-eval's tasks of every output type.

    Prompts, stop strings, truncation and the arguments that both have follow lm-eval's `hf` backend. Likelihoods are
    Monte-Carlo estimates over masks, for all families as LLaDA's evaluation makes them.

    Args:
        pretrained: The checkpoint's folder.
        dtype: As in `load_model`.
        weights: As in `load_model`.
        engine: As in `load_model`.
        device: As in `load_model`; the native engine runs on the CPU. Not used beside `device_map`.
        device_map: As in `load_model`.
        rope_scaling: As in `load_model`; or a type and its number, such as "ntk:14" or "yarn:4", or the text of a JSON
            object. `max_length` is then the scaled length unless it is given.
        subfolder: The folder within `pretrained` that has the files.
        tokenizer: Another folder whose tokenizer is used; None: the checkpoint's.
        batch_size: Texts generated, or masks drawn, in one forward pass. "auto": as many as fit into memory, the number
            of masks a divisor of `mc_num`; "auto:N": found N times.
        max_batch_size: The largest batch of "auto"; None: 64.
        max_length: The most tokens of a sequence; longer contexts lose their beginning. None: the model's maximum.
        gen_length: Tokens to generate; None: what the task asks for (max_gen_toks, 256 where it names none).
        steps: Denoising steps; None: one per token.
        mc_num: Masks drawn per likelihood, a multiple of batch_size.
        is_check_greedy: Also find out whether a continuation is the model's first choice, with one forward pass per
            token; only metrics such as LAMBADA's accuracy read it. False reports False.
        escape_until: Ignore the task's stop strings (as Dream's evaluation of code does); end tokens end a text.
        add_bos_token: True: contexts begin with the bos token. False: the tokenizer's marks are left out. None: as the
            tokenizer does it. A text that begins with a bos token gets no second one.
        prefix_token_id: The token that stands for an empty context; None: the tokenizer's bos, else its eos.
        chat_template_args: More variables of the chat template, by name.
        enable_thinking: A variable of the chat template; with True likelihoods are refused.
        think_end_token: A token or its id: the answer begins behind it.
        seed: Of sampling and of masks; lm-eval's --seed does not change it. None: drawn from numpy's global generator,
            which --seed seeds.
        sparse: False: dense; True or "sparsed", "sliding_window", "streaming_llm", with the fields of `SparseConfig`,
            `SlidingWindow` or `StreamingLLM` among `options`; or one of these objects. Rolling likelihoods need
            generation="sparse": their texts are all target, whose rows are dense by default.
        kv_cache: None, "prefix", "dual" or "delayed", with the fields of the cache among `options`; or one of these
            objects. Likelihoods compute whole passes and do not use it.
        preset: One of `sparsed.preset`, in place of sparse and kv_cache; fields of its sampler may be among `options`.
        options: Fields of the sampler of the model's family, such as `LLaDASampler`, and of `sparse`; and
            other arguments of the `hf` backend with the values that ask for nothing special (trust_remote_code has no
            effect, since no code of a checkpoint is run).

    Raises:
        TypeError, ValueError, FileNotFoundError: As `load_model`; an option that does not apply.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str],
        dtype: str = "auto",
        weights: str = "auto",
        engine: str = "native",
        device: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        rope_scaling: str | Mapping[str, Any] | None = None,
        subfolder: str = "",
        tokenizer: str | os.PathLike[str] | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        gen_length: int | None = None,
        steps: int | None = None,
        mc_num: int = 128,
        is_check_greedy: bool = True,
        escape_until: bool = False,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        seed: int | None = 0,
        sparse: bool | str | Sparse = False,
        kv_cache: str | KVCachePolicy | None = None,
        preset: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._batches = BatchSize(batch_size, max_batch_size)
        self.batch_size = "auto" if self._batches.is_auto else self._batches.number
        arguments.take_options_of_hf(options)
        arguments.check_numbers(max_length=max_length, gen_length=gen_length, steps=steps, mc_num=mc_num)
        check = Checker("SparsedLM")
        check.integer("seed", seed, low=0, optional=True)
        check.integer("prefix_token_id", prefix_token_id, low=0, optional=True)
        check.flag("is_check_greedy", is_check_greedy)
        check.flag("escape_until", escape_until)
        check.flag("add_bos_token", add_bos_token, optional=True)
        self._variables = arguments.template_variables(chat_template_args, enable_thinking, think_end_token)
        folder = Path(pretrained, subfolder)
        self.model = load_model(
            folder,
            dtype,
            weights=weights,
            engine=engine,
            rope_scaling=arguments.rope_scaling_of(rope_scaling),
            **arguments.placement(engine, device, device_map),
        )
        self._tokenizer_folder = Path(tokenizer or folder)
        self.tokenizer = load_tokenizer(self._tokenizer_folder)
        self.sparse, self.kv_cache, own = arguments.attention_of(preset, self.model, sparse, kv_cache, options)
        family = self.model.config.family
        self.sampler, self._sampler_options = arguments.sampler_of(family, own, options)
        arguments.refuse_rest(options, family, sparse, preset)
        self.max_length = max_length or self.model.config.max_length
        self._prefix_token_id = prefix_token_id
        self._enable_thinking = bool(enable_thinking)
        self._gen_length = gen_length
        self._steps = steps
        self._mc_num = mc_num
        self._is_check_greedy = is_check_greedy
        self._add_bos_token = add_bos_token
        if add_bos_token and self.tokenizer.bos_token_id is None:
            _log.warning("add_bos_token has no effect: the tokenizer has no bos token")
        self._given_seed = seed
        self._answers = Answers(
            self.tokenizer,
            eos=None if self.tokenizer.eos_token_id is None else self._token_text(self.tokenizer.eos_token_id),
            think_end=arguments.end_of_thinking(self.tokenizer, think_end_token),
            escape_until=escape_until,
        )
        self._warned: set[str] = set()  # options of tasks without effect that a warning has named

    @functools.cached_property
    def _seed(self) -> int:
        """The seed; if none is given it is drawn at the first request, when lm-eval has seeded numpy."""
        return int(np.random.randint(2**31)) if self._given_seed is None else self._given_seed

    # --- the tokenizer ---

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            ValueError: Neither the tokenizer nor the model names one.
        """
        return self._first_token("eos token", self.tokenizer.eos_token_id, self.model.config.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context.

        Raises:
            ValueError: Neither the tokenizer nor the model names a bos or eos token.
        """
        tokenizer, config = self.tokenizer, self.model.config
        given = (self._prefix_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        return self._first_token("bos or eos token", *given, config.bos_token_id, config.eos_token_id)

    def _first_token(self, name: str, *tokens: int | None) -> int:
        token = next((token for token in tokens if token is not None), None)
        if token is None:
            raise ValueError(f"SparsedLM: {self._tokenizer_folder} has no {name}, expected one (or prefix_token_id)")
        return token

    def _token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)

    @property
    def tokenizer_name(self) -> str:
        """The name by which lm-eval's cache of requests knows tokenizer and chat template."""
        name = str(self._tokenizer_folder).replace("/", "__")
        return f"{name}-{chat.fingerprint(self.tokenizer, self._variables)}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the chat template; a name selects one of several for all conversations that follow.

        Raises:
            ValueError: The tokenizer has several templates, but none of this name.
        """
        selected = super().chat_template(chat_template)
        if isinstance(chat_template, str) and isinstance(self.tokenizer.chat_template, Mapping):
            self._variables["chat_template"] = chat_template
        return selected

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the conversation as text; without `add_generation_prompt` its last message is left open.

        Raises:
            ValueError: The template fails, also without the messages of the system.
        """
        return chat.conversation_text(self.tokenizer, chat_history, add_generation_prompt, self._variables)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Returns the token ids, at most the last `left_truncate_len`.

        `add_special_tokens` True: with the tokenizer's marks, or those that `add_bos_token` says; None: likewise, but
        without marks where the text begins with the token of an empty context.
        """
        marks = add_special_tokens is not False
        if add_special_tokens is None and string.startswith(self._token_text(self.prefix_token_id)):
            marks = False
        # lm-eval decides by the text whether bos is repeated.
        ids = self.tokenizer.encode(string, marks and self._add_bos_token is None, repeat_bos=True)
        if marks and self._add_bos_token and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    # --- likelihood ---

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context and of its continuation, as lm-eval splits them.

        If the last token of the context swallows the whole continuation, lm-eval has no token left to score. Then the
        continuation is encoded without the context.

        Raises:
            ValueError: The continuation is empty or has no tokens.
        """
        prefix = [self.prefix_token_id]
        if context:
            before, behind = super()._encode_pair(context, continuation)
            if not behind:
                spaces = context[len(context.rstrip()) :]
                behind = self.tok_encode(spaces + continuation, add_special_tokens=False)
        else:
            before, behind = [], self.tok_encode(continuation, add_special_tokens=False)
            if behind[:1] == prefix:
                behind = behind[1:]
        if not behind:
            raise ValueError(
                f"loglikelihood: the continuation {continuation!r} of {context[-50:]!r} has no tokens, expected at "
                "least one (nothing has the probability 1)"
            )
        return before or prefix, behind

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation, and whether it is the model's first choice."""
        if self._enable_thinking:
            tasks = sorted({request.task_name for request in requests if request.task_name})
            raise ValueError(f"loglikelihood: enable_thinking is True, expected tasks that generate, not {tasks}")
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Pair | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        check_greedy: bool | None = None,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        check_greedy = self._is_check_greedy if check_greedy is None else check_greedy
        if self._batches.is_auto and self.sparse is not None:
            raise ValueError(
                f'loglikelihood: batch_size is "auto", expected a number with {self.sparse} (the batches of masks are '
                "its steps)"
            )
        results = []
        for key, context, continuation in tqdm(requests, desc="Likelihoods", disable=disable_tqdm):
            prefix = self._truncated(context, len(continuation))
            value = self._log_likelihood(prefix, continuation)
            options: dict[str, Any] = {"cfg_scale": self.sampler.cfg_scale, "sparse": self.sparse}
            greedy = check_greedy and is_greedy(self.model, prefix, continuation, **options)
            results.append((value, greedy))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, results[-1])
        return results

    def _log_likelihood(self, prefix: list[int], continuation: list[int]) -> float:
        size = self._batches.number
        if self._batches.is_auto:
            size = largest_divisor(self._mc_num, size)
        while True:
            try:
                return log_likelihood(
                    self.model,
                    prefix,
                    continuation,
                    samples=self._mc_num,
                    batch_size=size,
                    cfg_scale=self.sampler.cfg_scale,
                    sparse=self.sparse,
                    seed=self._seed,
                )
            except (MemoryError, RuntimeError) as error:
                size = largest_divisor(self._mc_num, self._batches.smaller(size, error))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows of max_length that follow each other."""
        results = []
        for request in tqdm(requests, desc="Texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            values = self._loglikelihood_tokens(parts, disable_tqdm=True, check_greedy=False)
            results.append(sum((value for value, _ in values), 0.0))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    # --- generation ---

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the model's continuations, each up to an end token or the first of the request's stop strings."""
        jobs = [self._job(index, *request.args) for index, request in enumerate(requests)]
        # Prompts of equal length run as one batch without padding. Long ones come first, so that memory fails early.
        jobs.sort(key=lambda job: (job.gen_length, job.sampling, len(job.ids)), reverse=True)
        texts = [""] * len(jobs)
        with tqdm(total=len(jobs), desc="Generations", disable=disable_tqdm) as bar:
            for _, alike in itertools.groupby(jobs, key=lambda job: (job.gen_length, job.sampling)):
                for batch, answers in self._batches.run(list(alike), self._generate):
                    for job, text in zip(batch, answers, strict=True):
                        texts[job.index] = text
                        self.cache_hook.add_partial("generate_until", requests[job.index].args, text)
                    bar.update(len(batch))
        return texts

    def _job(self, index: int, context: str, gen_kwargs: dict[str, Any]) -> _Job:
        wanted = read_gen_kwargs(gen_kwargs)
        gen_length = self._gen_length or wanted.max_gen_toks
        ids = self._truncated(self.tok_encode(context) or [self.prefix_token_id], gen_length)
        if self._gen_length is None and wanted.max_length is not None:
            gen_length = wanted.max_length - len(ids)
            if gen_length < 1:
                raise ValueError(
                    f"generate_until: max_length is {wanted.max_length}, expected more than the {len(ids)} tokens of "
                    "the context (max_gen_toks counts the new tokens)"
                )
        fields = vars(self.sampler).keys()
        for name, value in sorted((wanted.without_effect | wanted.sampling).items()):
            if name not in fields and name not in self._warned:
                self._warned.add(name)
                _log.warning("a task's %s=%r has no effect: not an option of %s", name, value, self.sampler)
        sampling = tuple(
            (name, value)
            for name, value in wanted.sampling.items()
            if name in fields and name not in self._sampler_options
        )
        return _Job(index, ids, wanted.until, gen_length, sampling)

    def _generate(self, batch: Sequence[_Job]) -> list[str]:
        prompts, mask = pad_left([job.ids for job in batch])
        first = batch[0]
        sampler: Any = self.sampler
        result = generate(
            self.model,
            prompts,
            gen_length=first.gen_length,
            steps=self._steps or first.gen_length,
            sparse=self.sparse,
            kv_cache=self.kv_cache,
            # Answers end at these tokens, so that stopping there changes no text.
            stop=None if self.sampler.block_length is None else self.tokenizer.end_token_ids,
            sampler=dataclasses.replace(sampler, **dict(first.sampling)),
            prompt_mask=mask,
            seed=self._seed + first.index,
        )
        rows = result.require_whole().generated
        return [self._answers.text(row, job.until) for row, job in zip(rows, batch, strict=True)]

    def _truncated(self, context: list[int], room: int) -> list[int]:
        """The end of the context, so short that `room` tokens fit behind it."""
        keep = self.max_length - room
        if keep < 1:
            raise ValueError(
                f"SparsedLM: {room} tokens follow the context, expected less than max_length {self.max_length}"
            )
        if len(context) > keep:
            _log.warning("a context of %d tokens loses all but its last %d (max_length)", len(context), keep)
        return context[-keep:]
