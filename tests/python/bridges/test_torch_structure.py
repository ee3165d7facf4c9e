"""`accelerate` on attention that is built otherwise, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest

import sparsed
from paths import DATA
from tolerances import ORDER

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import torch_models  # noqa: E402
from sparsed.torch import accelerate  # noqa: E402

TINY = sparsed.SparseConfig(skip=0.0, rho=0.3, block_size=16, min_length=0)


@pytest.fixture(scope="module")
def llada() -> nn.Module:
    return torch_models.load(DATA / "llada_b32")


class Fused(nn.Module):
    """One projection for queries, keys and values, as OLMo's sequential block has."""

    def __init__(self, rotary: bool = True, out: bool = True) -> None:
        super().__init__()
        self.att_proj = nn.Linear(64, 64 + 2 * 32)
        if out:
            self.attn_out = nn.Linear(64, 64)
        if rotary:
            self.rotary_emb = torch_models.Rotary(10000.0, 16)

    def forward(self, x: Any) -> Any:
        q, k, v = (part.unflatten(-1, (-1, 16)).transpose(1, 2) for part in self.att_proj(x).split((64, 32, 32), -1))
        q, k = self.rotary_emb(q, k)
        return self.attn_out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_fused_projections() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Fused(), Fused()), torch.randn(2, 90, 64)
    plain = model(x)
    everything = sparsed.SparseConfig(skip=0.0, rho=1.0, block_size=16, min_length=0)
    with accelerate(model, everything, steps=2, prompt_length=40) as acceleration:
        assert "att_proj, attn_out" in str(acceleration)
        for _ in range(2):
            torch.testing.assert_close(model(x), plain, rtol=0, atol=ORDER)
        assert acceleration.cache.pattern(1).heads == 4


class Eager(Fused):
    def forward(self, x: Any) -> Any:
        q, k, v = (part.unflatten(-1, (-1, 16)).transpose(1, 2) for part in self.att_proj(x).split((64, 32, 32), -1))
        k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        return self.attn_out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Variant(nn.Module):
    """Attention that is called as the test says."""

    def __init__(self, keys: int = 0, **kwargs: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(32, 32) for _ in range(4))
        self.rotary_emb = nn.Identity()
        self.keys, self.kwargs = keys, kwargs

    def forward(self, x: Any) -> Any:
        q, k, v = (proj(x)[:, None] for proj in (self.q_proj, self.k_proj, self.v_proj))
        return F.scaled_dot_product_attention(q, k[:, :, self.keys :], v[:, :, self.keys :], **self.kwargs)


BIAS = torch.linspace(0, 1, 48)[None, None, None]
CAUSAL = torch.ones(48, 48, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Eager,
            "accelerate: model called scaled_dot_product_attention 0 times, expected once (load the model with attn",
        ),
        (lambda: Variant(is_causal=True), "accelerate: the attention is causal, expected one that sees the whole sequ"),
        (lambda: Variant(attn_mask=CAUSAL), "hides different keys from different queries or heads, expected a padding"),
        (lambda: Variant(attn_mask=BIAS), "mask is a bias on the scores, expected only 0 (seen) and -inf (hidden)"),
        (lambda: Variant(dropout_p=0.1), "accelerate: dropout is 0.1, expected 0 (inference only: use model.eval())"),
        (
            lambda: Variant(keys=8),
            "accelerate: 48 queries meet 40 keys, expected as many (a KV cache: call the model wi",
        ),
    ],
)
def test_what_a_forward_pass_refuses(model: Any, message: str) -> None:
    holder = nn.Module()
    holder.model = model()
    with accelerate(holder, TINY, steps=2, prompt_length=9), torch.no_grad():
        with pytest.raises(ValueError, match=re.escape(message)):
            holder.model(torch.randn(1, 48, 64 if model is Eager else 32))


def test_training_is_refused(llada: nn.Module) -> None:
    with accelerate(llada, TINY, steps=2, prompt_length=9):
        with pytest.raises(
            ValueError, match=re.escape("attend: an input requires grad, expected none that does (infer")
        ):
            llada(torch.arange(48)[None])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: nn.Linear(2, 2),
            "accelerate: Linear has no attention layer that is known, expected modules with proje",
        ),
        (lambda: nn.Sequential(Fused(rotary=False)), "found: 0 (Fused) has att_proj, attn_out, but no rotary module"),
        (lambda: nn.Sequential(Fused(out=False)), "found: 0 (Fused) has att_proj, but no output projection"),
        (
            lambda: nn.Sequential(Fused(), Variant()),
            "accelerate: Sequential has attention layers of different kinds, ex",
        ),
    ],
)
def test_unknown_models_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        accelerate(model(), TINY, steps=2, prompt_length=9)


def test_wrong_arguments(llada: nn.Module) -> None:
    for changes, error, message in (
        ({"model": "LLaDA"}, TypeError, "accelerate: model is a str, expected a torch.nn.Module"),
        ({"sparse": 0.3}, TypeError, "accelerate: sparse is a float, expected a SparseConfig"),
        ({"steps": None}, TypeError, "accelerate: steps is None, expected the number of forward passes"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"prompt_length": -1}, ValueError, "prompt_length is -1"),
    ):
        arguments: dict[str, Any] = {"model": llada, "sparse": TINY, "steps": 2, "prompt_length": 9, **changes}
        with pytest.raises(error, match=re.escape(message)):
            accelerate(arguments.pop("model"), arguments.pop("sparse"), **arguments)
    with accelerate(llada, TINY, steps=2, prompt_length=99), torch.no_grad():
        with pytest.raises(ValueError, match="prompt_length"):
            llada(torch.arange(48)[None])
