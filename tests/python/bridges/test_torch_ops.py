"""The torch operators: the same numbers as numpy's, fake implementations that agree, no graph breaks."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import sparsed
from conftest import random_qkv
from tolerances import ENGINES

torch = pytest.importorskip("torch")

import sparsed.torch as st  # noqa: E402
from sparsed.torch import masks  # noqa: E402
from sparsed.torch.masks import key_mask as to_key_mask  # noqa: E402

# torch's own: inductor on a CPU, opcheck.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def tensors(by_token: bool = False) -> tuple[Any, Any, Any]:
    q, k, v = (torch.from_numpy(array) for array in random_qkv(0, 2, 4, 2, 70, 70, 32))
    if by_token:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    return q, k, v


KEYS = torch.arange(70)[None] >= torch.tensor([[0], [9]])
SELECTION: dict[str, Any] = {"prompt_length": 40, "block_size": 16, "rho": 0.5}


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("keys", [None, KEYS], ids=["all keys", "padding"])
def test_as_numpy(by_token: bool, keys: Any) -> None:
    q, k, v = tensors(by_token)
    arrays = [x.numpy() for x in (q, k, v)]
    mask = None if keys is None else keys.numpy()
    assert np.array_equal(st.attention(q, k, v, key_mask=keys), sparsed.attention(*arrays, key_mask=mask))
    out, blocks = st.attention_and_select(q, k, v, key_mask=keys, **SELECTION)
    expected, pattern = sparsed.attention_and_select(*arrays, key_mask=mask, **SELECTION)
    assert np.array_equal(out, expected)
    assert np.array_equal(blocks, pattern.to_mask())
    out = st.attention(q, k, v, blocks, block_size=16, key_mask=keys, scale=0.2)
    assert np.array_equal(out, sparsed.attention(*arrays, pattern, key_mask=mask, scale=0.2))


class Stateless:
    """A cache whose steps never end: opcheck calls each operator several times."""

    def attend(self, layer: int, q: Any, k: Any, v: Any, key_mask: Any, *, scale: Any) -> Any:
        return sparsed.attention(q, k, v, key_mask=key_mask, scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize("by_token", [False, True])
def test_opcheck(by_token: bool) -> None:
    q, k, v = tensors(by_token)
    blocks = st.attention_and_select(q, k, v, **SELECTION)[1]
    cache = Stateless()
    handle = st.cache_handle(cache)
    for name, arguments in (
        ("attention", (q, k, v, blocks, 16, None, None)),
        ("attention", (q[:, :, :1], k, v, None, 128, 0.2, KEYS)),
        ("attention", (q[:, :1], k[:, :1], v[:, :1], None, 128, None, None)),
        ("attention_and_select", (q, k, v, 40, 16, 0.5, "paper", None, None, "dense", KEYS)),
        ("attend", (q, k, v, KEYS, None, handle, 0)),
    ):
        torch.library.opcheck(getattr(torch.ops.sparsed, name).default, arguments)


class Model(torch.nn.Module):
    """Three kinds of attention in one model."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(64, 64 * 3)
        self.handle = handle

    def forward(self, x: Any, keys: Any) -> Any:
        q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.proj(x).chunk(3, -1))
        out, blocks = st.attention_and_select(q, k, v, key_mask=keys, **SELECTION)
        out = st.attention(out, k, v, blocks, block_size=16, key_mask=keys)
        out = st.attend(self.handle, 0, out, k, v, keys)
        return out.transpose(1, 2).flatten(2) + x


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_has_no_graph_break(backend: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    cache = sparsed.PatternCache(
        sparsed.SparseConfig(skip=0.5, rho=0.3, block_size=16, min_length=0), steps=4, prompt_length=40
    )
    model = Model(st.cache_handle(cache))
    x = torch.randn(2, 70, 64)
    frames = []

    def counting(graph: Any, inputs: Any) -> Any:
        frames.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for generation in range(2):
        results = []
        for run in (model, compiled):
            cache.reset()
            results.append([])
            for step in range(4):
                cache.begin_step(step)
                results[-1].append(run(x + generation, KEYS))
            assert cache.phase == "sparse"
        for plain, other in zip(*results, strict=True):
            torch.testing.assert_close(other, plain, rtol=ENGINES, atol=ENGINES)
    assert len(frames) == 1  # nothing is compiled anew for another step or generation


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this release of torch has no such tag")
@pytest.mark.parametrize("name", ["attention", "attention_and_select", "attend"])
def test_stays_out_of_cuda_graphs(name: str) -> None:
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.sparsed, name).default.tags


def write_through_numpy(mask: Any) -> None:
    mask.numpy()[..., 1:] = False


def write_through_data(mask: Any) -> None:
    mask.data[..., 1:] = False


def write_through_dlpack(mask: Any) -> None:
    np.from_dlpack(mask)[..., 1:] = False


def write_in_inference_mode(mask: Any) -> None:
    with torch.inference_mode():
        mask[..., 1:] = False


def write_through_storage(mask: Any) -> None:
    other = torch.empty(0, dtype=torch.bool).set_(mask.untyped_storage(), 0, mask.shape, mask.stride())
    other[..., 1:] = False


def write_with_torch(mask: Any) -> None:
    mask[..., 1:] = False


WRITES = [
    write_through_numpy,
    write_through_data,
    write_through_dlpack,
    write_in_inference_mode,
    write_through_storage,
    write_with_torch,
]


@pytest.mark.parametrize("write", WRITES)
def test_a_block_mask_that_was_written_to(write: Any) -> None:
    q, k, v = tensors()
    for blocks in (torch.ones(2, 4, 5, 5, dtype=torch.bool), st.attention_and_select(q, k, v, **SELECTION)[1]):
        st.attention(q, k, v, blocks, block_size=16)
        write(blocks)
        pattern = sparsed.BlockPattern.from_mask(blocks.clone(), block_size=16, q_len=70, kv_len=70)
        assert 0 < pattern.density <= 0.2
        assert torch.equal(st.attention(q, k, v, blocks, block_size=16), sparsed.attention(q, k, v, pattern))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("shape", [(2, 70), (2, 1, 1, 70), (2, 1, 70, 70), (2, 4, 70, 70)])
def test_a_key_mask_that_was_written_to(write: Any, shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    assert to_key_mask("f", mask, 2) is None
    write(mask)
    first = torch.arange(70)[None].expand(2, -1) == 0
    assert torch.equal(to_key_mask("f", mask, 2), first)
    q, k, v = tensors()
    assert torch.equal(st.attention(q, k, v, key_mask=mask), st.attention(q, k, v, key_mask=first))


def test_masks_that_lie_where_others_lay() -> None:
    q, k, v = tensors()
    for seed in range(20):  # each is freed before the next: addresses and ids come again
        blocks = torch.from_numpy(np.random.default_rng(seed).random((2, 4, 5, 5)) < 0.5)
        live = torch.from_numpy(np.random.default_rng(seed).random((2, 1, 1, 70)) < 0.5)
        pattern = sparsed.BlockPattern.from_mask(blocks.numpy().copy(), block_size=16, q_len=70, kv_len=70)
        expected = sparsed.attention(q, k, v, pattern, key_mask=live.numpy()[:, 0, 0].copy())
        assert torch.equal(st.attention(q, k, v, blocks, block_size=16, key_mask=live), expected)
        del blocks, live


def test_handles() -> None:
    config = sparsed.SparseConfig(min_length=0)
    first, second = (sparsed.PatternCache(config, steps=1, prompt_length=4) for _ in range(2))
    handle = st.cache_handle(first)
    assert st.cache_handle(first) == handle != st.cache_handle(second)
    q, k, v = tensors()
    with pytest.raises(ValueError, match=re.escape("PatternCache.attend")):
        st.attend(handle, 0, q, k, v)  # no step yet
    del first
    with pytest.raises(ValueError, match=f"attend: handle {handle} belongs to no cache"):
        st.attend(handle, 0, q, k, v)


def test_gradients_are_refused() -> None:
    q, k, v = tensors()
    q.requires_grad_()
    for function in (st.attention, st.attention_and_select):
        with pytest.raises(ValueError, match=f"{function.__name__}: an input requires grad"):
            function(q, k, v, **(SELECTION if function is st.attention_and_select else {}))
    with torch.no_grad():
        assert not st.attention(q, k, v).requires_grad


def test_masks() -> None:
    live = KEYS.clone()
    square = live[:, None, None, :] & live[:, None, :, None]
    lowest = torch.finfo(torch.float32).min
    for mask in (
        live,
        live[:, None, None, :],
        square,
        square.expand(-1, 3, -1, -1),
        torch.zeros(2, 1, 1, 70).masked_fill(~live[:, None, None], lowest),
        torch.zeros(2, 1, 70, 70, dtype=torch.bfloat16).masked_fill(~square, -math.inf),
        square.expand(-1, 3, -1, -1).contiguous(),
    ):
        assert torch.equal(to_key_mask("f", mask, 2), live)
    one = live[1:, None, None]
    assert torch.equal(to_key_mask("f", one, 3), live[1:].expand(3, -1))
    assert to_key_mask("f", None, 2) is None
    assert to_key_mask("f", torch.ones(2, 70, dtype=torch.bool), 2) is None
    with torch.inference_mode():
        assert torch.equal(to_key_mask("f", live[:, None, None] & True, 2), live)
    nothing = torch.zeros(2, 1, 70, 70, dtype=torch.bool)
    assert not to_key_mask("f", nothing, 2).any()
    nothing[1, 0, 50, 60:] = True  # the first query that sees a key comes late
    assert torch.equal(to_key_mask("f", nothing, 2), nothing[:, 0, 50])


@pytest.mark.parametrize("where", ["host", "device"])
def test_masks_are_read_in_parts(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_CHUNK_BYTES", 150)
    if where == "device":  # what lies there is compared by torch
        monkeypatch.setattr(masks, "_plain", lambda flags: flags)
    floats = torch.zeros(2, 1, 1, 70).masked_fill(~KEYS[:, None, None], -math.inf)
    assert torch.equal(to_key_mask("f", floats, 2), KEYS)
    assert torch.equal(to_key_mask("f", KEYS, 2), KEYS)
    square = (KEYS[:, None, None, :] & KEYS[:, None, :, None]).expand(-1, 3, -1, -1).contiguous()
    assert torch.equal(to_key_mask("f", square, 2), KEYS)
    for head, query, key in ((0, 69, 3), (2, 69, 3), (1, 0, 69)):
        other = square.clone()
        other[0, head, query, key] ^= True
        with pytest.raises(ValueError, match="hides different keys from different queries or heads"):
            to_key_mask("f", other, 2)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 70, dtype=torch.long), TypeError, "f: mask has dtype torch.int64, expected bool or a float"),
        (torch.ones(70, dtype=torch.bool), ValueError, "f: mask has shape [70], expected [batch, keys] or 4 axes"),
        (torch.rand(1, 1, 1, 70), ValueError, "f: mask is a bias on the scores, expected only 0 (seen) and -inf (hidd"),
        (torch.ones(1, 1, 70, 70).tril() > 0, ValueError, "f: mask [1, 1, 70, 70] hides different keys from differ"),
        (torch.eye(2)[None, :, None].bool(), ValueError, "f: mask [1, 2, 1, 2] hides different keys from different"),
    ],
)
def test_masks_that_are_no_padding(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        to_key_mask("f", mask, 2)
