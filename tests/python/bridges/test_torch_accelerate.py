"""`accelerate` on modules that are built like LLaDA and Dream: golden cases, masks, guidance, names, compilation."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest

import sparsed
from goldens import Golden, golden_case
from paths import DATA
from tolerances import ENGINES, GOLDEN_LOGITS, check_golden_logits

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import torch_models  # noqa: E402
from sparsed import SlidingWindow, SparseConfig  # noqa: E402
from sparsed.torch import accelerate  # noqa: E402

TINY = sparsed.SparseConfig(skip=0.0, rho=0.3, block_size=16, min_length=0)


@pytest.fixture(scope="module")
def model(golden: Golden) -> nn.Module:
    return torch_models.load(golden.folder)


@pytest.fixture(scope="module")
def llada() -> nn.Module:
    return torch_models.load(DATA / "llada_b32")


@pytest.fixture(scope="module")
def dream() -> nn.Module:
    return torch_models.load(DATA / "dream_b32")


def check_steps(golden: Golden, kind: str, model: nn.Module, last: int = 0) -> None:
    """The golden logits of each step, or of the last ones, by `model`."""
    for step, (ids, expected) in enumerate(golden.steps(kind)[-last:]):
        logits = model(torch.from_numpy(ids))[0, golden.positions[0] :].numpy()
        check_golden_logits(logits, expected, step)


def settings(golden: Golden) -> dict[str, Any]:
    return {"steps": golden.meta["steps"], "prompt_length": golden.prompt_length}


def random_ids(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 190, shape))


@torch.no_grad()
def test_sparse_logits(golden: Golden, model: nn.Module) -> None:
    with accelerate(model, golden.sparse(), **settings(golden)) as acceleration:
        assert len(acceleration.layers) == golden.num_layers
        for _ in range(2):  # the second generation counts from 0 again
            check_steps(golden, "sparse", model)
            assert acceleration.cache.step == golden.meta["steps"] - 1
            golden.check_patterns(acceleration.cache)
    assert not any("forward" in module.__dict__ for module in model.modules())


@torch.no_grad()
def test_short_sequences_and_undone_models_are_dense(golden: Golden, model: nn.Module) -> None:
    acceleration = accelerate(model, sparsed.SparseConfig(min_length=100_000), **settings(golden))
    check_steps(golden, "dense", model, last=2)
    assert acceleration.cache.phase == "dense"
    acceleration.undo()
    check_steps(golden, "dense", model, last=2)
    assert acceleration.cache.step == 1
    acceleration.undo()


def neighbours(scores: Any, geometry: sparsed.BlockGeometry) -> Any:
    """An own rule that rounding cannot change."""
    blocks = np.arange(geometry.blocks)
    return np.broadcast_to(abs(blocks[:, None] - blocks) <= 1 + cast(int, geometry.layer), scores.shape)


@torch.no_grad()
@pytest.mark.parametrize("sparse", [TINY, dataclasses.replace(TINY, selection=neighbours)], ids=["rule", "own rule"])
@pytest.mark.parametrize("name", ["llada_b32", "dream_b32"])
def test_as_our_own_model(name: str, sparse: sparsed.SparseConfig) -> None:
    model, own = torch_models.load(DATA / name), sparsed.load_model(DATA / name, "float32")
    ids = random_ids(2, 300)
    cache = sparsed.PatternCache(sparse, steps=3, prompt_length=200)
    with accelerate(model, sparse, steps=3, prompt_length=200):
        for step in range(3):
            cache.begin_step(step)
            expected = own.forward(ids.numpy(), attend=cache.attend)
            np.testing.assert_allclose(model(ids).numpy(), expected, rtol=0, atol=GOLDEN_LOGITS)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llada", "bool", "2-axis float"])
def test_padding_masks(kind: str, llada: nn.Module, dream: nn.Module) -> None:
    ids = random_ids(2, 250)
    live = torch.arange(250)[None] >= torch.tensor([[0], [33]])
    positions = (live.long().cumsum(1) - 1).clamp(min=0)
    mask: Any = live[:, None, None, :] & live[:, None, :, None]  # Dream's own: padded queries see nothing
    if kind == "llada":
        mask, positions = live.long(), torch.arange(250).expand(2, -1)
    elif kind == "2-axis float":
        ids, live, positions = ids[1:], live[1:], positions[1:]
        mask = torch.zeros(250, 250).masked_fill(~live, -math.inf)
    model, arguments = (llada, (mask,)) if kind == "llada" else (dream, (mask, positions))
    own = sparsed.load_model(DATA / ("llada_b32" if kind == "llada" else "dream_b32"), "float32")
    cache = sparsed.PatternCache(TINY, steps=2, prompt_length=150)
    with accelerate(model, TINY, steps=2, prompt_length=150):
        for step in range(2):
            cache.begin_step(step)
            expected = own.forward(
                ids.numpy(), attend=cache.attend, key_mask=live.numpy(), position_ids=positions.numpy()
            )
            logits = model(ids, *arguments).numpy()
            np.testing.assert_allclose(logits[live.numpy()], expected[live.numpy()], rtol=0, atol=GOLDEN_LOGITS)


@torch.no_grad()
def test_guidance_doubles_the_batch(llada: nn.Module) -> None:
    ids = random_ids(1, 200)
    bare = ids.clone()
    bare[:, :120] = 197
    pair = torch.cat([ids, bare])
    with accelerate(llada, TINY, steps=2, prompt_length=120) as acceleration:
        both = [llada(pair) for _ in range(2)][1]
        assert acceleration.cache.pattern(0).batch == 2
        alone = [torch.cat([llada(row[None]) for _ in range(2)][1:]) for row in pair]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=ENGINES)


@torch.no_grad()
@pytest.mark.parametrize("repeated", [True, False])
def test_heads_that_the_model_repeats_are_shared_again(
    repeated: bool, dream: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, kv_heads = random_ids(1, 64), []
    attend = sparsed.PatternCache.attend

    def spy(self: Any, layer: int, q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
        kv_heads.append(k.shape[1])
        return attend(self, layer, q, k, *args, **kwargs)

    monkeypatch.setattr(sparsed.PatternCache, "attend", spy)
    if not repeated:  # another order of the same heads: each query head has a key head of its own
        monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda x, n, dim: torch.cat([x] * n, dim))
    plain = dream(ids)
    with accelerate(dream, sparsed.SparseConfig(min_length=100), steps=1, prompt_length=20):
        torch.testing.assert_close(dream(ids), plain, rtol=0, atol=ENGINES)
    assert kv_heads == [2 if repeated else 4] * 3


@torch.no_grad()
def test_when_the_count_starts_anew(llada: nn.Module) -> None:
    acceleration = accelerate(llada, TINY, steps=3, prompt_length=20)

    def step_after(*shape: int) -> int:
        llada(random_ids(*shape))
        return acceleration.cache.step

    assert [step_after(1, 64) for _ in range(4)] == [0, 1, 2, 0]
    assert [step_after(1, 80), step_after(1, 80), step_after(2, 80), step_after(1, 80)] == [0, 1, 0, 0]
    acceleration.restart()
    assert step_after(1, 80) == 0
    with acceleration as same:
        assert same is acceleration
        assert step_after(1, 80) == 0
    assert step_after(1, 80) == 0  # undone: nothing counts
    with acceleration:
        assert [step_after(1, 80), step_after(1, 80)] == [0, 1]


@pytest.mark.parametrize("place", ["inside the attention", "behind it"])
@torch.no_grad()
def test_a_forward_pass_that_died_is_forgotten(place: str, llada: nn.Module) -> None:
    transformer = llada.model.transformer
    where = transformer["ln_f"] if place == "behind it" else transformer["blocks"][1].rotary_emb
    with accelerate(llada, TINY, steps=3, prompt_length=20) as acceleration:
        expected = [llada(random_ids(1, 64)) for _ in range(3)]

        def die(module: Any, inputs: Any) -> None:
            raise KeyboardInterrupt

        hook = where.register_forward_pre_hook(die)
        for _ in range(2):  # twice: the pass after the first death dies too
            with pytest.raises(KeyboardInterrupt):
                llada(random_ids(1, 64))
        hook.remove()
        for logits in expected:
            assert torch.equal(llada(random_ids(1, 64)), logits)
        assert acceleration.cache.step == 2
    assert not llada._forward_hooks and not llada._forward_pre_hooks


@torch.no_grad()
def test_the_second_call_takes_the_place_of_the_first(llada: nn.Module) -> None:
    ids = random_ids(1, 64)
    plain = llada(ids)
    first = accelerate(llada, TINY, steps=3, prompt_length=20)
    with accelerate(llada, TINY, steps=5, prompt_length=30) as second:
        llada(ids)
        assert (first.cache.step, second.cache.step) == (-1, 0)
    first.undo()
    assert torch.equal(llada(ids), plain)


@torch.no_grad()
def test_other_wrappers_of_forward_stay(llada: nn.Module) -> None:
    block = llada.model.transformer["blocks"][0]
    calls = []

    def wrap(forward: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return forward(*args, **kwargs)

        return counted

    ids = random_ids(1, 64)
    plain = llada(ids)
    block.forward = inside = wrap(block.forward)
    with accelerate(llada, TINY, steps=3, prompt_length=20) as acceleration:
        llada(ids)
        block.forward = wrap(block.forward)
        llada(ids)
        assert acceleration.cache.step == 1
    assert len(calls) == 3
    assert torch.equal(llada(ids), plain)  # the outer wrapper still holds ours, which passes everything on
    assert len(calls) == 5
    assert acceleration.cache.step == 1
    with acceleration:
        llada(ids)
        assert acceleration.cache.step == 0
    block.forward = inside
    del block.forward


def test_what_it_says(llada: nn.Module, dream: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sparsed"), accelerate(llada, TINY, steps=3, prompt_length=20) as acceleration:
        text = str(acceleration)
    assert text in caplog.text
    assert "3 layers model.transformer.blocks.* (LLaDABlock): q_proj, k_proj, v_proj, attn_out" in text
    assert "rotary model.transformer.blocks.0.rotary_emb, width 128" in text
    with accelerate(dream, TINY, steps=3, prompt_length=20) as acceleration:
        assert "model.layers.*.self_attn (DreamAttention): q_proj, k_proj, v_proj, o_proj" in str(acceleration)
        assert "2 query heads share a key/value head" in str(acceleration)


@torch.no_grad()
def test_it_says_what_stays_dense(llada: nn.Module) -> None:
    with accelerate(llada, SparseConfig(min_length=100), steps=3, prompt_length=20) as acceleration:
        assert str(acceleration).endswith("; sequences below min_length 100 stay dense")
        llada(random_ids(1, 64))
        assert str(acceleration).endswith("; the sequence of 64 tokens is below min_length 100 and stays dense")
        llada(random_ids(1, 128))
        assert "stays dense" not in str(acceleration) and "stay dense" not in str(acceleration)
    with accelerate(llada, SlidingWindow(64), steps=3, prompt_length=20) as acceleration:
        assert "stay dense" not in str(acceleration)


def renamed(model: nn.Module, names: dict[str, str]) -> nn.Module:
    """A copy whose attention modules hold the same children under other names."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if "q_proj" in module._modules:
            old_names = {old: property(lambda self, new=new: self._modules[new]) for old, new in names.items()}
            for old, new in names.items():
                module._modules[new] = module._modules.pop(old)
            module.__class__ = type("Attention", (type(module),), old_names)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "names",
    [
        {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "attn_out": "wo", "rotary_emb": "rope"},
        {"q_proj": "query", "k_proj": "key", "v_proj": "value", "attn_out": "dense", "rotary_emb": "RotaryEmbedding"},
        {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "attn_out": "to_out", "rotary_emb": "pos"},
        {"q_proj": "Wq", "k_proj": "Wk", "v_proj": "Wv", "attn_out": "proj", "rotary_emb": "RoPE"},
        {"q_proj": "q_lin", "k_proj": "k_lin", "v_proj": "v_lin", "attn_out": "out_lin", "rotary_emb": "rotary"},
    ],
)
def test_models_that_rename_things(names: dict[str, str], llada: nn.Module) -> None:
    model = renamed(llada, names)
    golden = golden_case("llada_b32")
    with accelerate(model, golden.sparse(), **settings(golden)) as acceleration:
        assert acceleration.layers[0].projections == tuple(names.values())[:4]
        assert acceleration.layers[0].rotary.endswith(names["rotary_emb"])
        check_steps(golden, "sparse", model)


def test_patterns_are_no_settings() -> None:
    model = torch_models.load(DATA / "llada_b32")
    pattern = sparsed.BlockPattern.full(1, 4, block_size=16, q_len=48, kv_len=48)
    for wrong in (None, pattern, sparsed.PatternCache(pattern, steps=3, prompt_length=20), "window"):
        message = (
            f"^accelerate: sparse is a {type(wrong).__name__}, expected a SparseConfig, SlidingWindow or Streaming"
        )
        with pytest.raises(TypeError, match=message):
            accelerate(model, wrong, steps=3, prompt_length=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llada_b32", "dream_b32"])
def test_autocast_and_inference_mode(name: str) -> None:
    model, ids = torch_models.load(DATA / name), random_ids(1, 200)
    everything = sparsed.SparseConfig(skip=0.0, rho=1.0, block_size=16, min_length=0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = model(ids)
        with accelerate(model, everything, steps=2, prompt_length=100):
            for _ in range(2):
                logits = model(ids)
                assert logits.dtype == plain.dtype
                assert (logits - plain).float().std() < 0.03 * plain.float().std()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("first", ["accelerate", "compile"])
def test_compiled_models(first: str) -> None:
    torch.compiler.reset()
    model, ids = torch_models.load(DATA / "llada_b32"), random_ids(1, 200)
    plain = model(ids)
    with accelerate(model, TINY, steps=3, prompt_length=100):
        expected = [model(ids) for _ in range(3)]
    compiled = torch.compile(model, backend="eager")
    if first == "compile":
        compiled(ids)
    with accelerate(model, TINY, steps=3, prompt_length=100) as acceleration:
        for logits in expected * 2:
            torch.testing.assert_close(compiled(ids), logits, rtol=0, atol=ENGINES)
        assert acceleration.cache.phase == "sparse"
    torch.testing.assert_close(compiled(ids), plain, rtol=0, atol=ENGINES)
