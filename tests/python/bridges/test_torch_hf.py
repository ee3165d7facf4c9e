"""`attn_implementation="sparsed"` for models inside transformers, and `accelerate` on top of it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import sparsed
from tolerances import ENGINES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.masking_utils", reason="transformers is older than 4.53")

from sparsed.torch import accelerate, hf  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = sparsed.SparseConfig(skip=0.0, rho=0.3, block_size=16, min_length=0)
LENGTH = 130


def build(name: str, attention: str) -> Any:
    """A tiny model with random weights that sees the whole sequence, the same ones for every `attention`."""
    config_class = getattr(transformers, f"{name}Config", None)
    if config_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = config_class(**SIZES, attn_implementation=attention)
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM if name == "EuroBert" else transformers.AutoModelForCausalLM
    model = model.from_config(config, attn_implementation=attention).eval()
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    return model


def inputs(name: str, padded: bool) -> dict[str, Any]:
    """Ids and a mask: of keys where the model makes its own out of it, else (B, 1, L, L) for a decoder."""
    ids = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    live = torch.arange(LENGTH)[None] >= torch.tensor([[0], [21 if padded else 0]])
    square = live[:, None, None, :].expand(-1, 1, LENGTH, -1)
    arguments = {"input_ids": ids, "attention_mask": live.long() if name == "EuroBert" else square}
    return arguments if name == "EuroBert" else {**arguments, "use_cache": False}


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["EuroBert", "Qwen2", "Llama", "Qwen3"])
def test_as_sdpa(name: str, padded: bool) -> None:
    arguments = inputs(name, padded)
    expected = build(name, "sdpa")(**arguments).logits
    model = build(name, "sparsed")
    assert model.config._attn_implementation == "sparsed"
    logits = model(**arguments).logits
    real = slice(21, None) if padded else slice(None)
    torch.testing.assert_close(logits[:, real], expected[:, real], rtol=ENGINES, atol=ENGINES)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["EuroBert", "Qwen2"])
def test_accelerate(name: str, padded: bool) -> None:
    arguments = inputs(name, padded)
    results = []
    for attention in ("sdpa", "sparsed"):
        model = build(name, attention)
        with accelerate(model, TINY, steps=3, prompt_length=80) as acceleration:
            assert "model.rotary_emb" in str(acceleration)
            assert "2 query heads share a key/value head" in str(acceleration)
            results.append([model(**arguments).logits for _ in range(3)])
            assert acceleration.cache.phase == "sparse"
            assert acceleration.cache.density(1) < 1
        dense = model(**arguments).logits
        assert not torch.equal(dense, results[-1][-1])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=ENGINES, atol=ENGINES)


@pytest.mark.slow
@torch.no_grad()
def test_compile_has_no_graph_break() -> None:
    torch.compiler.reset()
    arguments = inputs("Qwen2", True)
    model = build("Qwen2", "sparsed")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**arguments).logits, model(**arguments).logits, rtol=ENGINES, atol=ENGINES)


@torch.no_grad()
def test_causal_models_are_refused() -> None:
    model = build("Qwen2", "sparsed")
    for layer in model.model.layers:
        layer.self_attn.is_causal = True
    ids = inputs("Qwen2", False)["input_ids"]
    with pytest.raises(ValueError, match="Qwen2Attention is causal|hides different keys"):  # with or without a mask
        model(ids, use_cache=False)
    live = torch.ones_like(ids)
    live[1, :9] = 0
    with pytest.raises(ValueError, match="hides different keys from different queries"):
        model(ids, attention_mask=live, use_cache=False)
    sdpa = build("Qwen2", "sdpa")
    with accelerate(sdpa, TINY, steps=3, prompt_length=80), pytest.raises(ValueError, match="hides different keys"):
        sdpa(ids, attention_mask=live, use_cache=False)


@torch.no_grad()
def test_a_kv_cache_is_refused() -> None:
    model = build("Qwen2", "sdpa")
    ids = inputs("Qwen2", False)["input_ids"]
    cache = model(ids[:, :9], use_cache=True).past_key_values
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # the older name
    with accelerate(model, TINY, steps=3, prompt_length=80), pytest.raises(ValueError, match="use_cache=False"):
        model(ids[:, 9:], attention_mask=torch.ones(2, 1, LENGTH - 9, LENGTH) > 0, **{name: cache})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, "Module has dropout 0.1, expected 0 (use model.eval())"),
        ({"softcap": 50.0}, "Module has softcap, expected plain softmax attention"),
        ({"is_causal": True}, "Module is causal, expected a layer that sees every key"),
    ],
)
def test_what_the_kernels_do_not_know_is_refused(changes: dict[str, Any], message: str) -> None:
    q = torch.randn(1, 2, 20, 16)
    with pytest.raises(ValueError, match=re.escape(message)):
        hf.sparsed_attention(torch.nn.Module(), q, q, q, None, **changes)
    out, weights = hf.sparsed_attention(torch.nn.Module(), q, q, q, None, scaling=0.1, sliding_window=None)
    assert out.shape == (1, 20, 2, 16)
    assert weights is None


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "sparsed"])
def test_a_mask_that_is_written_to_between_forward_passes(attention: str) -> None:
    model, arguments = build("Qwen2", attention), inputs("Qwen2", True)
    mask = arguments["attention_mask"].contiguous()
    with accelerate(model, TINY, steps=1, prompt_length=80):
        for hidden in (21, 40, 60):
            mask.numpy()[1, ..., :hidden] = False  # no version counter of torch sees this
            logits = model(arguments["input_ids"], attention_mask=mask, use_cache=False).logits
            expected = build("Qwen2", "sdpa")(arguments["input_ids"], attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(logits[1, 60:], expected[1, 60:], rtol=ENGINES, atol=ENGINES)
