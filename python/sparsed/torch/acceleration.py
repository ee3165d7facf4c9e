"""Replaces the attention of a loaded torch model, such as LLaDA or Dream, by sparse attention."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sparsed import PatternCache

from ..kernels.config import Sparse
from .ops import attend, cache_handle
from .structure import AttentionLayer, find_layers

__all__ = ["Acceleration", "accelerate"]

_logger = logging.getLogger("sparsed")


def accelerate(
    model: nn.Module,
    sparse: Sparse,
    *,
    steps: int,
    prompt_length: int,
) -> Acceleration:
    """Makes the attention of a diffusion language model sparse, so that the model's ``generate`` runs faster.

    Attention layers are found by their projections and their rotary module. In models that are part of transformers
    (BERT, ModernBERT ...) they are found by their use of ``attn_implementation``, which has to be "sdpa" or "sparsed".
    Only the call of ``scaled_dot_product_attention`` is replaced; projections, rotation and norms stay as they are. A
    padding mask that the model passes to this call is respected. If the model's code ignores the mask, as LLaDA's
    published code does, it stays ignored. Layers with a sliding window stay as they are.

    Each forward pass of the model counts as one denoising step. The count starts again at 0 after ``steps`` passes,
    when the shape of the batch changes, after a forward pass that an error or Ctrl-C ended, and on entering ``with``.
    Use ``with`` if a sampler may stop early, or may be interrupted between two passes. Guidance that doubles the batch,
    as LLaDA's does, is one forward pass per step. A sampler that calls the model twice per step is not supported.

    Args:
        model: LLaDA or Dream as transformers loads them, a model that is built like them, or a model of transformers
            whose attention sees the whole sequence.
        sparse: The sparsity settings.
        steps: The number of forward passes of one generation.
        prompt_length: The number of tokens before the generation, including padding. For an encoder, which generates
            nothing, it is the length of the sequence: with ``generation="dense"`` all rows behind it are dense.

    Returns:
        An object that restores the model with ``.undo()``, or at the end of ``with accelerate(...):``. Print it to see
        which layers were found and whether ``SparseConfig.min_length`` keeps short sequences dense. A second call on
        the same model replaces the first.

    Raises:
        TypeError, ValueError: An argument has another type or is outside its range, or the model has no known
            attention layers. The forward pass raises for a causal mask, a KV cache, cross-attention, dropout,
            gradients, ``output_attentions``, or a layer that does not call ``scaled_dot_product_attention``.

    Example:
        >>> with accelerate(model, SparseConfig(), steps=128, prompt_length=prompt.shape[1]):
        ...     out = generate(model, prompt, steps=128, gen_length=128)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model is a {type(model).__name__}, expected a torch.nn.Module")
    if steps is None:
        raise TypeError("accelerate: steps is None, expected the number of forward passes of one generation")
    if not isinstance(sparse, Sparse):
        raise TypeError(
            f"accelerate: sparse is a {type(sparse).__name__}, expected a SparseConfig, SlidingWindow or StreamingLLM"
        )
    acceleration = Acceleration(model, sparse, steps, prompt_length)
    _logger.info("%s", acceleration)
    return acceleration


class Acceleration:
    """A model whose attention is replaced, see ``accelerate``.

    Attributes:
        layers: The attention layers whose attention is replaced.
        cache: The ``PatternCache`` of the current or the last generation, with its patterns, step and phase.
    """

    def __init__(
        self,
        model: nn.Module,
        sparse: Sparse,
        steps: int,
        prompt_length: int,
    ) -> None:
        self._new_cache = functools.partial(PatternCache, sparse, steps=steps, prompt_length=prompt_length)
        self.cache = self._new_cache()
        found = find_layers(model)
        self.layers = [layer for layer in found if not layer.is_local]
        self._num_local = len(found) - len(self.layers)
        # Layers that share one module, as in ALBERT, are distinguished by the order of their calls in a forward pass.
        declared = getattr(getattr(found[0].module, "config", None), "num_hidden_layers", None)
        self._shares_modules = isinstance(declared, int) and declared > len(found)
        self._calls = [0] * len(self.layers)  # calls of each module in the current forward pass
        self._model = model
        self._under_way = False  # whether a forward pass of the model is running
        self._hooks: list[Any] = []
        self._title = f"{type(model).__name__}: {sparse}, {steps} steps after a prompt of {prompt_length} tokens"
        self._steps = steps
        self._geometry: tuple[Any, ...] | None = None
        self._replaced: list[tuple[nn.Module, Callable[..., Any], Any]] = []
        self._handle = cache_handle(self)
        self._replace()

    def __enter__(self) -> Acceleration:
        """Starts again at step 0, and replaces the attention again if it was undone."""
        self.restart()
        self._replace()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        first = self.layers[0]
        rotary = f", rotary {first.rotary}" if first.rotary else ""
        shared = f", {first.groups} query heads share a key/value head" if first.groups > 1 else ""
        local = f"; {self._num_local} layers with a sliding window stay as they are" if self._num_local else ""
        return (
            f"{self._title}; {len(self.layers)} layers {first.place} ({type(first.module).__name__}): "
            f"{', '.join(first.projections)}{rotary}, width {first.q_width}{shared}{local}{self._dense}"
        )

    @property
    def _dense(self) -> str:
        """The end of the printed text, about sequences that stay dense."""
        least = getattr(self.cache.config, "min_length", 0)
        if self._geometry is not None and self._geometry[0][2] < least:
            length = self._geometry[0][2]
            return f"; the sequence of {length} tokens is below min_length {least} and stays dense"
        return f"; sequences below min_length {least} stay dense" if self._geometry is None and least else ""

    def restart(self) -> None:
        """Makes the next forward pass step 0 of a new generation."""
        self._geometry = None
        self._calls = [0] * len(self.layers)

    def undo(self) -> None:
        """Restores the model's original attention."""
        for module, forward, before in self._replaced:
            if module.__dict__.get("forward") is not forward:
                continue  # other code has wrapped ours since; once undone, ours only calls the original
            if before is None:
                del module.forward
            else:
                module.forward = before
        self._replaced = []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_mask: torch.Tensor | None,
        *,
        scale: float | None,
    ) -> torch.Tensor:
        """Computes one layer's attention; the first layer begins the next step."""
        if layer == 0:
            geometry = (q.shape, q.dtype, q.device)
            if geometry != self._geometry or self.cache.step + 1 == self._steps:
                self.cache = self._new_cache()
                self._geometry = geometry
            self.cache.begin_step(self.cache.step + 1)
        return self.cache.attend(layer, q, k, v, key_mask, scale=scale)

    def _replace(self) -> None:
        if self._replaced:
            return
        for number, layer in enumerate(self.layers):
            earlier = getattr(layer.module.__dict__.get("forward"), "_sparsed", None)
            if earlier is not None and earlier is not self:
                earlier.undo()
            before = layer.module.__dict__.get("forward")
            forward = self._forward(number, layer, layer.module.forward)
            layer.module.forward = forward
            self._replaced.append((layer.module, forward, before))
        # The hooks see where a pass of the whole model begins and ends. If one begins before the last has ended, the
        # last was interrupted, and the new pass is the first of another generation.
        self._under_way = False
        self._hooks = [
            self._model.register_forward_pre_hook(torch.compiler.disable(self._begin)),  # type: ignore[no-untyped-call, unused-ignore]
            self._model.register_forward_hook(torch.compiler.disable(self._end)),  # type: ignore[no-untyped-call, unused-ignore]
        ]

    def _begin(self, model: nn.Module, args: Any) -> None:
        if self._under_way:
            self.restart()
        self._calls = [0] * len(self.layers)
        self._under_way = True

    def _end(self, model: nn.Module, args: Any, result: Any) -> None:
        self._under_way = False

    def _next_layer(self, number: int, layer: AttentionLayer) -> int:
        """Returns the number of the layer that a module stands for in this call."""
        if not self._under_way:  # the sampler calls only a part of the model
            if self._shares_modules:
                raise ValueError(
                    f"accelerate: {layer.name} may serve several layers and was called from outside, expected calls of "
                    f"the whole {type(self._model).__name__} (its layers are counted from there)"
                )
            return number
        self._calls[number] += 1
        return (self._calls[number] - 1) * len(self.layers) + number

    def _forward(self, number: int, layer: AttentionLayer, original: Callable[..., Any]) -> Any:
        replaced = self._replaced

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._replaced is not replaced:  # undone
                return original(*args, **kwargs)
            try:
                _check_call(layer, kwargs)
                with _Replacement(self._handle, self._next_layer(number, layer), layer.groups) as replacement:
                    result = original(*args, **kwargs)
            except BaseException:  # the hooks do not see this if the sampler calls only a part of the model
                self.restart()
                raise
            if replacement.calls != 1:
                raise ValueError(
                    f"accelerate: {layer.name} called scaled_dot_product_attention {replacement.calls} times, expected "
                    'once (load the model with attn_implementation="sdpa", without flash attention)'
                )
            return result

        # Dynamo does not trace function modes reliably, so in a compiled model these layers run uncompiled.
        disabled: Any = torch.compiler.disable(forward)  # type: ignore[no-untyped-call, unused-ignore]
        disabled._sparsed = self
        return disabled


class _Replacement(TorchFunctionMode):
    """A mode in which ``scaled_dot_product_attention`` and ``sparsed::attention`` run one layer's sparse attention."""

    def __init__(self, handle: int, layer: int, groups: int) -> None:
        super().__init__()
        self.handle, self.layer, self.groups, self.calls = handle, layer, groups, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls += 1
            return self._attention(*args, **(kwargs or {}))
        if func is torch.ops.sparsed.attention:  # the layer already calls our operator
            self.calls += 1
            q, k, v, _, _, scale, key_mask = args
            return attend(self.handle, self.layer, q, k, v, key_mask, scale=scale)
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if is_causal:
            raise ValueError("accelerate: the attention is causal, expected one that sees the whole sequence")
        if dropout_p > 0:
            raise ValueError(f"accelerate: dropout is {dropout_p}, expected 0 (inference only: use model.eval())")
        if query.shape[2] != key.shape[2]:
            raise ValueError(
                f"accelerate: {query.shape[2]} queries meet {key.shape[2]} keys, expected as many "
                "(a KV cache: call the model with use_cache=False)"
            )
        if self.groups > 1 and key.shape[1] == value.shape[1] == query.shape[1]:
            key, value = _without_repeats(key, value, self.groups)
        if torch.is_autocast_enabled(query.device.type):  # scaled_dot_product_attention casts its inputs, too
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
        if attn_mask is not None and attn_mask.dim() < 4:
            attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
        return attend(self.handle, self.layer, query, key, value, attn_mask, scale=scale)


def _check_call(layer: AttentionLayer, kwargs: dict[str, Any]) -> None:
    """Refuses options that a layer handles outside of the attention call, where they would not be noticed."""
    for option in ("encoder_hidden_states", "key_value_states"):
        if kwargs.get(option) is not None:
            raise ValueError(f"accelerate: {layer.name} got {option}, expected no cross-attention")
    config = getattr(layer.module, "config", None)
    if kwargs.get("output_attentions") or getattr(config, "output_attentions", False):
        raise ValueError(f"accelerate: {layer.name} got output_attentions, expected False (no weights are computed)")


def _without_repeats(key: torch.Tensor, value: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns views of the key/value heads, (B, H_kv, S, D), if a model has repeated them to (B, H, S, D)."""
    shared = key[:, ::groups], value[:, ::groups]
    for heads, first in zip((key, value), shared, strict=True):
        if not all(torch.equal(heads[:, other::groups], first) for other in range(1, groups)):
            return key, value
    return shared
