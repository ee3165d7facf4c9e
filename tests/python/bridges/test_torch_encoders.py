"""Encoders inside transformers: `attn_implementation="sparsed"` and `accelerate` on BERT, ModernBERT and their like."""

from __future__ import annotations

import re
from typing import Any

import pytest

import sparsed
from tolerances import ENGINES, ORDER

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.masking_utils", reason="transformers is older than 4.53")

from torch.nn import functional as F  # noqa: E402

from sparsed.torch import accelerate, hf  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # so that heads differ between keys
}
LOCAL = {"num_hidden_layers": 4, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTILBERT = {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4}
GEMMA = {"use_bidirectional_attention": True, "head_dim": 16, "num_key_value_heads": 2, "sliding_window": 32}
CHANGES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Electra": {"embedding_size": 32},
    "DistilBert": DISTILBERT,
    "Albert": {"embedding_size": 32},
    "LayoutLM": {},
    "Esm": {"position_embedding_type": "rotary", "mask_token_id": 4, "token_dropout": False},
    "ModernBert": {**LOCAL, "local_attention": 32, "global_attn_every_n_layers": 2},
    "Gemma3Text": {**GEMMA, "num_hidden_layers": 6},
}
NUM_WHOLE = {"ModernBert": 2, "Gemma3Text": 1}  # layers that see the whole sequence, where others do not
LENGTH, PROMPT = 130, 80
TINY = sparsed.SparseConfig(skip=0.0, rho=0.3, block_size=16, min_length=0, generation="sparse")
EVERYTHING = sparsed.SparseConfig(skip=0.0, rho=1.0, block_size=16, min_length=0)


def build(name: str, attention: str, **changes: Any) -> Any:
    """A tiny model with random weights, the same ones for every `attention`."""
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **CHANGES.get(name, {}), **changes})
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config, attn_implementation=attention).eval()


IDS = torch.randint(5, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))
PADDED = (torch.arange(LENGTH)[None] < torch.tensor([[LENGTH], [100]])).long()
MASKS = pytest.mark.parametrize("mask", [None, PADDED], ids=["all keys", "padding"])


def run(model: Any, mask: Any) -> Any:
    """What the real tokens come to."""
    states = model(IDS, attention_mask=mask).last_hidden_state
    return states if mask is None else states[mask.bool()]


@torch.no_grad()
@MASKS
@pytest.mark.parametrize("name", CHANGES)
def test_as_sdpa(name: str, mask: Any) -> None:
    torch.testing.assert_close(
        run(build(name, "sparsed"), mask), run(build(name, "sdpa"), mask), rtol=ENGINES, atol=ENGINES
    )


@torch.no_grad()
@MASKS
@pytest.mark.parametrize("name", CHANGES)
def test_accelerate(name: str, mask: Any) -> None:
    expected, results = run(build(name, "sdpa"), mask), []
    for attention in ("sdpa", "sparsed"):
        model = build(name, attention)
        with accelerate(model, EVERYTHING, steps=2, prompt_length=PROMPT):
            for _ in range(2):
                torch.testing.assert_close(run(model, mask), expected, rtol=ENGINES, atol=ENGINES)
        with accelerate(model, TINY, steps=3, prompt_length=PROMPT) as acceleration:
            results.append([run(model, mask) for _ in range(3)])
            cache = acceleration.cache
            assert (cache.step, cache.phase) == (2, "sparse")
            assert cache.layers == list(range(NUM_WHOLE.get(name, SIZES["num_hidden_layers"])))
            assert all(cache.density(layer) < 0.6 for layer in cache.layers)
        torch.testing.assert_close(results[-1][0], expected, rtol=ENGINES, atol=ENGINES)
        assert not torch.allclose(results[-1][-1], expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(run(model, mask), expected, rtol=ENGINES, atol=ENGINES)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=ENGINES, atol=ENGINES)


@torch.no_grad()
@MASKS
@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Albert"])
def test_sparse_steps_see_the_blocks_of_their_pattern(name: str, mask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name, "sdpa")
    with accelerate(model, TINY, steps=2, prompt_length=PROMPT) as acceleration:
        sparse = [run(model, mask) for _ in range(2)][1]
    blocks = [torch.from_numpy(acceleration.cache.pattern(layer).to_mask()) for layer in acceleration.cache.layers]
    sdpa = F.scaled_dot_product_attention

    def masked(q: Any, k: Any, v: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
        seen = blocks.pop(0).repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :LENGTH, :LENGTH]
        return sdpa(q, k, v, attn_mask=seen if attn_mask is None else seen & attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", masked)
    torch.testing.assert_close(run(model, mask), sparse, rtol=ENGINES, atol=ENGINES)
    assert not blocks


@torch.no_grad()
def test_it_says_which_layers_stay_local() -> None:
    with accelerate(build("ModernBert", "sparsed"), TINY, steps=3, prompt_length=PROMPT) as acceleration:
        assert "2 layers layers.*.attn (ModernBertAttention): Wqkv, Wo, rotary rotary_emb" in str(acceleration)
        assert "; 2 layers with a sliding window stay as they are" in str(acceleration)
    with accelerate(build("Bert", "sdpa"), TINY, steps=3, prompt_length=PROMPT) as acceleration:
        assert "(BertSelfAttention): query, key, value, width 64" in str(acceleration)
    with pytest.raises(ValueError, match="every attention layer of Gemma3TextModel has a sliding window, expected"):
        local = ["sliding_attention"] * 3
        model = build("Gemma3Text", "sdpa", num_hidden_layers=3, layer_types=local)
        accelerate(model, TINY, steps=3, prompt_length=PROMPT)


@torch.no_grad()
def test_a_part_of_a_model_is_called() -> None:
    head = transformers.AutoModelForMaskedLM.from_config(build("Bert", "sdpa").config).eval()
    with accelerate(head, TINY, steps=3, prompt_length=PROMPT) as acceleration:
        head.bert(IDS)
        head.bert(IDS)
        assert acceleration.cache.step == 1
    shared = transformers.AutoModelForMaskedLM.from_config(build("Albert", "sdpa").config).eval()
    with accelerate(shared, TINY, steps=3, prompt_length=PROMPT) as acceleration:
        for _ in range(2):
            shared(IDS)
        assert (acceleration.cache.step, acceleration.cache.layers) == (1, [0, 1, 2])
        with pytest.raises(ValueError, match="may serve several layers and was called from outside, expected calls of"):
            shared.albert(IDS)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "sparsed"])
def test_what_is_refused(attention: str) -> None:
    for name, changes, message in (
        ("Bert", {"is_decoder": True}, "is causal, expected"),
        (
            "Bert",
            {"is_decoder": True, "add_cross_attention": True},
            "has cross-attention (encoder.layer.0.cross",
        ),
        (
            "Bart",
            {"encoder_layers": 1, "decoder_layers": 1, "d_model": 64},
            "has cross-attention (decoder.layers.0.en",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            model = build(name, attention, **changes)
            with accelerate(model, TINY, steps=3, prompt_length=PROMPT):
                model(IDS)
    model = build("Bert", attention)
    with accelerate(model, TINY, steps=3, prompt_length=PROMPT):
        with pytest.raises(ValueError, match="got output_attentions, expected False"):
            model(IDS, output_attentions=True)
        with pytest.raises(ValueError, match=r"dropout"):
            model.train()(IDS)
        model.eval()
        with pytest.raises(ValueError, match="mask is a bias on the scores"):
            model(IDS, attention_mask=torch.linspace(0, 1, LENGTH).expand(2, 1, LENGTH, -1))
        with pytest.raises(ValueError, match="hides different keys from different queries"):
            model(IDS, attention_mask=torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril())
        with torch.enable_grad(), pytest.raises(ValueError, match="requires grad"):
            model(IDS)
    with pytest.raises(ValueError, match="called scaled_dot_product_attention 0 times, expected once"):
        eager = build("Bert", "eager")
        with accelerate(eager, TINY, steps=3, prompt_length=PROMPT):
            eager(IDS)


class Layer(torch.nn.Module):
    """What transformers hands to an attention function."""

    is_causal = False


@torch.no_grad()
def test_sliding_windows() -> None:
    q = torch.randn(1, 2, 40, 16)
    near = ((torch.arange(40)[:, None] - torch.arange(40)).abs() <= 4)[None, None]
    out, _ = hf.sparsed_attention(Layer(), q, q, q, near, sliding_window=5)
    torch.testing.assert_close(out.transpose(1, 2), F.scaled_dot_product_attention(q, q, q, attn_mask=near))
    out, _ = hf.sparsed_attention(Layer(), q, q, q, None, sliding_window=40)  # all are near
    torch.testing.assert_close(out.transpose(1, 2), F.scaled_dot_product_attention(q, q, q), rtol=ORDER, atol=ORDER)
    with pytest.raises(ValueError, match="Layer has sliding_window 5 for 40 keys and no attention_mask, expected"):
        hf.sparsed_attention(Layer(), q, q, q, None, sliding_window=5)
    for mask, message in ((None, "Layer is causal"), (near.tril(), "hides different keys from different queries")):
        with pytest.raises(ValueError, match=message):
            hf.sparsed_attention(Layer(), q, q, q, mask, sliding_window=5, is_causal=True)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"s_aux": torch.zeros(2)},
        {"position_bias": torch.zeros(1, 2, 40, 40)},
        {"head_mask": torch.ones(2)},
        {"cu_seq_lens_q": torch.tensor([0, 20, 40])},
        {"output_attentions": True},
        {"sliding_window": 5, "softcap": 30.0},
    ],
)
def test_what_the_kernels_do_not_know_is_refused(changes: dict[str, Any]) -> None:
    q = torch.randn(1, 2, 40, 16)
    with pytest.raises(ValueError, match=f'attn_implementation="sparsed": Layer (has|got) {list(changes)[-1]}'):
        hf.sparsed_attention(Layer(), q, q, q, torch.ones(1, 1, 40, 40, dtype=torch.bool), **changes)


@torch.no_grad()
def test_cross_attention_is_dense() -> None:
    q, k = torch.randn(1, 4, 40, 16), torch.randn(1, 2, 70, 16)
    out, _ = hf.sparsed_attention(Layer(), q, k, k, None)
    expected = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=ORDER, atol=ORDER)
