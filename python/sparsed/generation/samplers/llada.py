"""LLaDA's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...checks import Checker, store_plain_numbers
from ...kernels import ops
from .base import Request, steps_of_block
from .logits import FloatArray, IntArray, at, gumbel_max, in_parts, softmax, without
from .parallel import ParallelSampler


@dataclass(frozen=True)
class LLaDASampler(ParallelSampler):
    """LLaDA's semi-autoregressive sampler. The options of `ParallelSampler` are its options too.

    Attributes:
        block_length: Blocks of this many tokens are unmasked one after the other; None: the whole generation is one.
        temperature: Above 0, Gumbel noise (float64) enters the choice of tokens, not their confidence.
        cfg_scale: Above 0, classifier-free guidance: un + (cfg_scale + 1) * (cond - un), the prompt masked in `un`.
        remasking: "low_confidence" keeps the tokens of highest probability, "random" keeps random ones. A threshold,
            factor or entropy_bound needs "low_confidence".
        logits_eos_inf: The eos token is never chosen, so that the text fills gen_length.
        confidence_eos_eot_inf: Positions whose token ends the text (eos, or the end of a turn) have confidence 0, and
            the probabilities of other tokens leave end tokens out. Ends are then unmasked last. It needs remasking
            "low_confidence" and cannot be combined with entropy_bound.

    Raises:
        TypeError, ValueError: An option of another type or outside its range; options that exclude each other.

    Source: ML-GSAI/LLaDA generate.py. Above temperature 0 its confidence_eos_eot_inf lowers only the end of a turn;
        here the rule does not depend on the temperature. The end tokens are those that the checkpoint names.
    """

    block_length: int | None = None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check = Checker(owner)
        check.number("temperature", self.temperature, low=0)
        check.number("cfg_scale", self.cfg_scale, low=0)
        check.choice("remasking", self.remasking, ("low_confidence", "random"))
        check.flag("logits_eos_inf", self.logits_eos_inf)
        check.flag("confidence_eos_eot_inf", self.confidence_eos_eot_inf)
        if self.remasking == "random":
            self.refuse_with_rule("remasking", "random confidences say nothing about the tokens")
        if self.confidence_eos_eot_inf and self.remasking == "random":
            raise ValueError(
                f"{owner}: confidence_eos_eot_inf is True and remasking is 'random', expected only one of them (random "
                "confidences do not depend on the tokens)"
            )
        if self.confidence_eos_eot_inf and self.entropy_bound is not None:
            self.refuse_with_rule("confidence_eos_eot_inf", "an entropy belongs to a position, not to its token")
        store_plain_numbers(self)

    def check(self, request: Request) -> None:
        super().check(request)
        for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
            if getattr(self, name) and not request.end_token_ids:
                raise ValueError(
                    f"generate: {name} is True, expected a model whose config.json or generation_config.json names its "
                    "end tokens (eos_token_id)"
                )

    def scheduled(
        self, request: Request, step: int, positions: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, int]:
        """Returns all positions; the tokens of a block are spread evenly over its steps."""
        steps, i = steps_of_block(request, self.block_length, step)
        length = self.block_length or request.gen_length
        return positions, length // steps + (i < length % steps)

    def impossible(self, request: Request) -> tuple[int, ...]:
        """Returns the tokens that are never chosen, among them eos with logits_eos_inf."""
        return super().impossible(request) + request.end_token_ids[: self.logits_eos_inf]

    def score(self, request: Request, logits: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Returns the (noisy) arg-max, and its confidence without noise or a random one."""
        tokens, confidence = in_parts(lambda part: self._score_part(request, part, rng), logits)
        if self.remasking == "random":
            confidence = rng.random(len(tokens), dtype=np.float32)
        return tokens, confidence

    def _score_part(
        self, request: Request, logits: FloatArray, rng: np.random.Generator
    ) -> tuple[IntArray, FloatArray]:
        kind: ops.ConfidenceKind = "probability" if self.entropy_bound is None else "entropy"
        tokens, confidence = ops.token_confidence(logits, kind)
        if self.temperature > 0:
            tokens, probability = gumbel_max(logits, float(self.temperature), rng)
            confidence = probability if kind == "probability" else confidence
        if self.confidence_eos_eot_inf:
            other = ~np.isin(tokens, request.end_token_ids)
            confidence = np.zeros(len(tokens), np.float32)
            confidence[other] = at(softmax(without(logits[other], request.end_token_ids)), tokens[other])
        return tokens, confidence
