"""Reads requests for text, and turns tokens into text, by the rules of lm-eval's `hf` backend."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from numpy.typing import NDArray

from ...models.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# The options of a task that concern sampling, as fields of the samplers.
SAMPLING: dict[str, Callable[[Any], float]] = {"temperature": float, "top_p": float, "top_k": int}
# Other options of a task for the hf backend, with the value that asks for nothing.
_NOT_HERE: dict[str, Any] = {
    "early_stopping": False,
    "length_penalty": 1.0,
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
    "use_cache": True,
}
_NO_FILTER = {"top_p": 1.0, "top_k": 0}
_READ = frozenset({"do_sample", "until", "max_gen_toks", "max_length"})


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """The options of a task.

    Attributes:
        until: Stop strings.
        max_gen_toks: Tokens to generate, where `max_length` is None.
        max_length: Tokens of context and answer together.
        sampling: Fields of a sampler by name; empty where the task does not sample.
        without_effect: Names and values of what samplers of diffusion models do not know.
    """

    until: list[str]
    max_gen_toks: int
    max_length: int | None
    sampling: dict[str, float]
    without_effect: dict[str, Any]


def read_gen_kwargs(gen_kwargs: Mapping[str, Any]) -> TextOptions:
    """Reads the `gen_kwargs` of a request as lm-eval's hf backend does; None means the same as an absent value.

    Raises:
        ValueError, TypeError: A name that the backend does not know, or a value of another type.
    """
    options: dict[str, Any] = dict(normalize_gen_kwargs({k: v for k, v in gen_kwargs.items() if v is not None}))
    unknown = sorted(options.keys() - _READ - SAMPLING.keys() - _NOT_HERE.keys())
    if unknown:
        raise ValueError(
            f"generate_until: {', '.join(unknown)} given, expected only gen_kwargs among "
            f"{sorted(_READ | SAMPLING.keys() | _NOT_HERE.keys())} (steps and the sampler's options are arguments of "
            "the model: --model_args)"
        )
    until = options["until"]
    if not all(isinstance(stop, str) for stop in until):
        raise TypeError(f"generate_until: until is {gen_kwargs['until']!r}, expected a string or a list of strings")
    for name in ("max_gen_toks", "max_length"):
        if name in options and int(options[name]) < 1:
            raise ValueError(f"generate_until: {name} is {options[name]}, expected at least 1")
    sampling = {
        name: number(options[name])
        for name, number in SAMPLING.items()
        if name in options and options[name] != _NO_FILTER.get(name)
    }
    if options["do_sample"]:
        sampling.setdefault("temperature", 1.0)  # as transformers does
    else:
        sampling = {}
    return TextOptions(
        until=until,
        max_gen_toks=options["max_gen_toks"],
        max_length=int(options["max_length"]) if "max_length" in options else None,
        sampling=sampling,
        without_effect={
            name: options[name] for name, neutral in _NOT_HERE.items() if options.get(name, neutral) != neutral
        },
    )


@dataclasses.dataclass(frozen=True)
class Answers:
    """Turns generated tokens into the text that a task gets.

    Attributes:
        tokenizer: What `load_tokenizer` returns.
        eos: The end token as text, a stop string of every request; None: there is none.
        think_end: A text or a token id: the answer begins behind the last one.
        escape_until: Ignore stop strings; end tokens still end a text.
    """

    tokenizer: Tokenizer
    eos: str | None
    think_end: str | int | None = None
    escape_until: bool = False

    def text(self, ids: NDArray[np.int64], until: Sequence[str]) -> str:
        """Returns the text of `ids` (n,), up to an end token or stop string, without the thinking before the answer.

        As a text that grows token by token would, it ends with the token that completes a stop string: special tokens
        are stop strings too, though the text leaves them out.
        """
        ends = self.tokenizer.end_token_ids
        row = list(itertools.takewhile(lambda token: token not in ends, map(int, ids)))
        stops = [] if self.escape_until else handle_stop_sequences(list(until), self.eos)
        thinking = 0
        if isinstance(self.think_end, int):
            row = row[len(row) - row[::-1].index(self.think_end) :] if self.think_end in row else row
        elif self.think_end:
            thinking = self._length(row, self.think_end, self._count(row, self.think_end))
        answer = row[thinking:]
        stopped = [self._length(answer, stop, 1) for stop in stops if stop and self._count(answer, stop)]
        text = self.tokenizer.decode(row[:thinking] + answer[: min(stopped, default=len(answer))])
        if isinstance(self.think_end, int):
            text = text.lstrip()
        return postprocess_generated_text(text, stops, self.think_end if isinstance(self.think_end, str) else None)

    def _length(self, row: list[int], text: str, times: int) -> int:
        """The smallest number of tokens of `row` from its beginning that hold `text` that many times."""
        return bisect.bisect_left(range(len(row)), times, key=lambda length: self._count(row[:length], text))

    def _count(self, row: list[int], text: str) -> int:
        return self.tokenizer.decode(row, skip_special_tokens=False).count(text)
