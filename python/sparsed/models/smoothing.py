"""SmoothQuant: moves the outliers of a linear layer's input into its weight, so that both quantise well.

The input x of a layer W is divided by a factor per channel and the columns of W are multiplied by it, which leaves the
product as it is. What makes x takes the division: the norm before `qkv` and before `gate` and `up`, and the rows of
`up` before `down`, because silu(gate) * up is linear in `up`.

Source: Xiao et al., arXiv 2211.10438, equation 4 with alpha 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architecture import TensorNames
from .transformer import Transformer

Array = NDArray[Any]
FloatArray = NDArray[np.float32]

_ALPHA = 0.5
_SMALLEST = 1e-5
_CHUNK = 512  # tokens of a calibration pass
MAX_TOKENS = 32_768


@dataclass(frozen=True)
class Smoothed:
    """One input that is smoothed: the name that `Transformer.observe` gives it, what makes it and what reads it."""

    input: str
    producer: str
    consumers: tuple[str, ...]


def smoothed_inputs(names: TensorNames) -> tuple[Smoothed, ...]:
    """Returns the inputs of a layer that can be smoothed, with names of modules."""
    return (
        Smoothed("qkv", names.attention_norm, (names.query, names.key, names.value)),
        Smoothed("gate_up", names.mlp_norm, (names.gate, names.up)),
        Smoothed("down", names.up, (names.down,)),
    )


def calibrate(model: Transformer, ids: Sequence[int], seed: int = 0) -> list[dict[str, FloatArray]]:
    """Runs the model over a text, a different share of it masked in each pass, and notes its largest activations.

    Args:
        model: A model whose weights are not quantised.
        ids: The token ids of the text. Tokens beyond the first 32,768 are not used.
        seed: Decides which tokens are masked.

    Returns:
        For each layer, the largest absolute value of each channel by the name of the input.
    """
    largest: list[dict[str, FloatArray]] = [{} for _ in range(model.config.num_layers)]

    def note(layer: int, name: str, x: Array) -> None:
        found = np.abs(x.astype(np.float32)).max(axis=0)
        before = largest[layer].get(name)
        largest[layer][name] = found if before is None else np.maximum(before, found)

    model.observe = note
    try:
        for chunk in _masked_chunks(np.array(ids[:MAX_TOKENS], np.int64), model.config.mask_token_id, seed):
            model.forward(chunk[None], positions=[0])
    finally:
        model.observe = None
    return largest


def _masked_chunks(ids: NDArray[np.int64], mask: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yields parts of the text; the shares of masks are spread evenly over them, as over the steps of a generation."""
    rng = np.random.default_rng(seed)
    chunks = [ids[begin : begin + _CHUNK] for begin in range(0, len(ids), _CHUNK)]
    shares = rng.permutation((np.arange(len(chunks)) + 0.5) / len(chunks))
    for chunk, share in zip(chunks, shares, strict=True):
        yield np.where(rng.random(len(chunk)) < share, mask, chunk)


def smoothing_factors(activations: FloatArray, weights: Sequence[Array]) -> FloatArray:
    """Returns what each channel of an input is divided by, (K,).

    Args:
        activations: (K,), the largest absolute value of each channel.
        weights: Those that read the input, each (N_i, K).
    """
    columns = np.max([np.abs(weight.astype(np.float32)).max(axis=0) for weight in weights], axis=0)
    live = (activations > 0) & (columns > 0)
    ratio = np.divide(activations**_ALPHA, columns ** (1 - _ALPHA), out=np.ones_like(columns), where=live)
    factors: FloatArray = np.maximum(ratio, _SMALLEST).astype(np.float32)
    return factors


@dataclass
class Smoothing:
    """The factors of all tensors of a checkpoint, and how they apply."""

    divided: dict[str, FloatArray]  # the rows of a weight (N, K), or a norm (N,), by (N,)
    multiplied: dict[str, FloatArray]  # the columns of a weight (N, K), by (K,)

    def changes(self, name: str) -> bool:
        """Returns whether a tensor has factors."""
        return name in self.divided or name in self.multiplied

    def apply(self, name: str, array: Array) -> Array:
        """Returns a tensor with its factors, in float32, or as it is if it has none."""
        if not self.changes(name):
            return array
        result = array.astype(np.float32)
        if name in self.divided:
            result = (result.T / self.divided[name]).T
        if name in self.multiplied:
            result = result * self.multiplied[name]
        return result


def find_smoothing(
    activations: Sequence[Mapping[str, FloatArray]],
    names: TensorNames,
    inputs: Sequence[Smoothed],
    array: Callable[[str], Array],
) -> Smoothing:
    """Returns the factors for `inputs` of every layer.

    Args:
        activations: What `calibrate` returns.
        names: The names of the tensors.
        inputs: The inputs to smooth.
        array: Returns a tensor of the checkpoint by its name.
    """
    found = Smoothing({}, {})
    for number, largest in enumerate(activations):
        prefix = names.layer.format(number)
        for part in inputs:
            consumers = [f"{prefix}{name}.weight" for name in part.consumers]
            factors = smoothing_factors(largest[part.input], [array(name) for name in consumers])
            found.divided[f"{prefix}{part.producer}.weight"] = factors
            found.multiplied |= dict.fromkeys(consumers, factors)
    return found
