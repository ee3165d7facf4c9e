"""sparsed.select and sparsed.attention_and_select against the rules in float64, on every backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import sparsed
from conftest import BACKENDS, random_qkv
from tolerances import check_out, check_pattern

RULES = ["paper", "reference"]
GENERATION = ["dense", "sparse"]


@pytest.mark.parametrize("selection", RULES)
@pytest.mark.parametrize("generation", GENERATION)
@pytest.mark.parametrize(
    ("shape", "block_size", "prompt_length", "rho"),
    [
        pytest.param((1, 2, 2, 384, 64), 32, 288, 0.5, id="even"),
        pytest.param((2, 4, 2, 401, 32), 32, 300, 0.3, id="gqa-odd"),
        pytest.param((1, 3, 1, 181, 128), 16, 131, 0.3, id="block-16"),
        pytest.param((1, 2, 2, 320, 40), 32, 300, 0.3, id="last-block-holds-both"),
        pytest.param((1, 2, 1, 700, 16), 256, 256, 0.4, id="block-256"),
        pytest.param((1, 2, 1, 600, 24), 128, 0, 0.3, id="no-prompt"),
        pytest.param((1, 2, 1, 600, 24), 64, 600, 0.3, id="no-generation"),
        pytest.param((1, 1, 1, 20, 16), 64, 10, 0.3, id="one-block"),
    ],
)
def test_pattern_follows_the_rule(
    place: str,
    dtype: Any,
    selection: Any,
    generation: Any,
    shape: tuple[int, ...],
    block_size: int,
    prompt_length: int,
    rho: float,
) -> None:
    batch, heads, kv_heads, length, head_dim = shape
    q, k, v = random_qkv(20, batch, heads, kv_heads, length, length, head_dim, dtype)
    q = (3 * q.astype(np.float32)).astype(dtype)  # so that blocks differ
    options: Any = {
        "prompt_length": prompt_length,
        "block_size": block_size,
        "rho": rho,
        "selection": selection,
        "generation": generation,
    }
    expected = reference.select(q, k, **options)
    out, pattern = sparsed.attention_and_select(q, k, v, **options)
    check_pattern(pattern, expected, dtype)
    assert sparsed.select(q, k, **options) == pattern
    assert (pattern.block_size, pattern.prompt_length, pattern.q_len) == (block_size, prompt_length, length)
    check_out(out, reference.attention(q, k, v)[0], q, k, v)


@pytest.mark.parametrize("selection", RULES)
def test_masked_keys_carry_no_mass(place: str, selection: Any) -> None:
    q, k, v = random_qkv(21, 2, 2, 2, 300, 300, 32)
    key_mask = np.ones((2, 300), bool)
    key_mask[0, :70] = False  # two whole blocks and a part
    key_mask[1, 250:] = False
    options: Any = {
        "prompt_length": 200,
        "block_size": 32,
        "rho": 0.4,
        "selection": selection,
        "generation": "sparse",
        "key_mask": key_mask,
    }
    out, pattern = sparsed.attention_and_select(q, k, v, **options)
    check_pattern(pattern, reference.select(q, k, **options), q.dtype)
    mask = pattern.to_mask()
    assert not mask[0, ..., :2].any()
    assert not mask[1, ..., 8:].any()
    check_out(out, reference.attention(q, k, v, key_mask=key_mask)[0], q, k, v)
    assert sparsed.select(q, k, **options) == pattern


def test_no_live_key_selects_nothing(place: str) -> None:
    q, k, v = random_qkv(22, 1, 2, 2, 100, 100, 32)
    options: Any = {"prompt_length": 50, "generation": "sparse", "key_mask": np.zeros((1, 100), bool)}
    out, pattern = sparsed.attention_and_select(q, k, v, **options)
    assert pattern.density == 0
    assert not out.any()


@pytest.mark.parametrize("selection", RULES)
def test_scales_of_attention_and_selection_are_apart(place: str, selection: Any) -> None:
    q, k, v = random_qkv(23, 1, 3, 3, 256, 256, 64)
    options: Any = {
        "prompt_length": 160,
        "block_size": 32,
        "selection": selection,
        "rho": 0.3,
        "generation": "sparse",
    }
    out, pattern = sparsed.attention_and_select(q, k, v, scale=0.05, selection_scale=0.5, **options)
    check_pattern(pattern, reference.select(q, k, scale=0.5, **options), q.dtype)
    check_out(out, reference.attention(q, k, v, scale=0.05)[0], q, k, v)
    assert pattern == sparsed.select(q, k, selection_scale=0.5, **options)
    assert sparsed.select(q, k, scale=0.5, **options) == pattern


@pytest.mark.parametrize("selection", RULES)
@pytest.mark.parametrize("rho", [0.0, 1.0, 1, np.float32(0.25)])
def test_rho_decides_the_count(place: str, selection: Any, rho: Any) -> None:
    q, k, _ = random_qkv(24, 1, 2, 2, 512, 512, 32)
    options: Any = {
        "prompt_length": 256,
        "block_size": 32,
        "rho": rho,
        "selection": selection,
        "generation": "sparse",
    }
    pattern = sparsed.select(q, k, **options)
    check_pattern(pattern, reference.select(q, k, **options), q.dtype)
    if selection == "paper":
        expected = 2 * min(8, int(8 * rho) + 1)
        assert (pattern.to_mask().sum(-1) == expected).all()


def test_ties_go_to_the_lower_block(place: str) -> None:
    q = np.ones((1, 1, 256, 32), np.float32)
    k = np.ones((1, 1, 256, 32), np.float32)
    pattern = sparsed.select(q, k, prompt_length=128, block_size=32, rho=0.3, generation="sparse")
    assert (pattern.to_mask()[0, 0] == [True, True, False, False, True, True, False, False]).all()


@pytest.mark.parametrize(("length", "prompt_length"), [(2100, 2084), (2112, 2080), (300, 0), (300, 299), (300, 300)])
@pytest.mark.parametrize("isolate", [True, False])
def test_a_dense_generation_keeps_every_block(place: str, length: int, prompt_length: int, isolate: bool) -> None:
    q, k, v = random_qkv(33, 2, 4, 2, length, length, 16)
    key_mask = np.ones((2, length), bool)
    key_mask[0, :40] = False  # masked blocks are kept too
    options: Any = {"prompt_length": prompt_length, "block_size": 16, "isolate": isolate, "key_mask": key_mask}
    pattern = sparsed.select(q, k, generation="dense", **options)
    published = sparsed.select(q, k, generation="sparse", **options).to_mask()
    is_generation = np.arange(length) >= prompt_length
    rows = np.logical_or.reduceat(is_generation, np.arange(0, length, 16))
    assert (pattern.to_mask() == np.where(rows[:, None], True, published)).all()
    assert len(pattern.to_bsr()[1]) == pattern.to_mask().sum()  # no bit lies beyond the last block
    assert sparsed.attention_and_select(q, k, v, generation="dense", **options)[1] == pattern
    sparse = sparsed.attention(q, k, v, pattern, key_mask=key_mask)
    expected = reference.attention(q, k, v, blocks=pattern.to_mask(), block_size=16, key_mask=key_mask)[0]
    check_out(sparse, expected, q, k, v)
    dense = sparsed.attention(q, k, v, key_mask=key_mask)
    assert np.array_equal(sparse[:, :, is_generation], dense[:, :, is_generation])


def test_the_generation_is_dense_unless_the_authors_code_is_asked_for() -> None:
    q, k, v = random_qkv(34, 1, 2, 2, 300, 300, 32)
    options: Any = {"prompt_length": 200, "block_size": 32}
    for selection, default in (("paper", "dense"), ("reference", "sparse")):
        found = sparsed.select(q, k, selection=selection, **options)
        assert found == sparsed.select(q, k, selection=selection, generation=default, **options)
        assert found == sparsed.attention_and_select(q, k, v, selection=selection, **options)[1]
        assert found.to_mask()[:, :, 200 // 32 :].all() == (default == "dense")


@pytest.mark.parametrize("selection", RULES)
def test_every_backend_selects_the_same(set_backend: Callable[[str | None], None], selection: Any) -> None:
    q, k, _ = random_qkv(32, 2, 4, 2, 300, 300, 64)
    options: Any = {"prompt_length": 200, "block_size": 32, "selection": selection, "generation": "sparse"}
    assert (reference.select(q, k, rho=0.3, **options).margin > 1e-5).all()  # no row that rounding may decide
    patterns = []
    for name in BACKENDS:
        set_backend(name)
        patterns.append(sparsed.select(q, k, **options))
    assert all(pattern == patterns[0] for pattern in patterns)


def test_views_give_the_pattern_of_copies(place: str, dtype: Any) -> None:
    q, k, _ = random_qkv(26, 2, 4, 2, 300, 300, 64, dtype)
    options: Any = {"prompt_length": 200, "block_size": 32}
    tokens_first = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k)]
    assert sparsed.select(*tokens_first, **options) == sparsed.select(q, k, **options)


@pytest.mark.parametrize("length", [1, 16, 60, 64, 256])
@pytest.mark.parametrize("prompt_share", [0, 1])
def test_a_sequence_of_one_part(place: str, length: int, prompt_share: int) -> None:
    q, k, v = random_qkv(29, 2, 4, 2, length, length, 32)
    q *= 3
    key_mask = np.ones((2, length), bool)
    key_mask[1, : length // 2] = False
    options: Any = {
        "prompt_length": prompt_share * length,
        "block_size": 16,
        "rho": 0.4,
        "generation": "sparse",
        "key_mask": key_mask,
    }
    pattern = sparsed.select(q, k, **options)
    check_pattern(pattern, reference.select(q, k, selection="paper", **options), q.dtype)
    assert sparsed.attention_and_select(q, k, v, **options)[1] == pattern
    live = np.logical_or.reduceat(key_mask, np.arange(0, length, 16), axis=1).sum(-1)
    kept = np.minimum(live, (live * 0.4).astype(int) + 1)  # of all blocks, none of them set apart
    np.testing.assert_array_equal(
        pattern.to_mask().sum(-1), np.broadcast_to(kept[:, None, None], (2, 4, -(-length // 16)))
    )
    config = sparsed.SparseConfig(skip=0, rho=0.4, block_size=16, min_length=0, generation="sparse")
    cache = sparsed.PatternCache(config, steps=2, prompt_length=prompt_share * length)
    for step in range(2):
        cache.begin_step(step)
        out = cache.attend(0, q, k, v, key_mask)
    assert cache.pattern(0) == pattern
    sparse = sparsed.attention(q, k, v, pattern if cache.density(0) < 1 else None, key_mask=key_mask)
    assert np.array_equal(out, sparse)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_without_generation_the_last_block_competes(place: str, rho: float) -> None:
    q = np.ones((1, 1, 128, 32), np.float32)
    k = np.concatenate([np.ones((1, 1, 96, 32)), -np.ones((1, 1, 32, 32))], axis=2).astype(np.float32)
    for selection, last in (("paper", False), ("reference", True)):  # the authors' code takes it for generated
        options: Any = {"prompt_length": 128, "block_size": 32, "rho": rho, "selection": selection}
        assert (sparsed.select(q, k, **options).to_mask()[..., -1] == last).all()


@pytest.mark.parametrize("shape", [(1, 2, 0), (0, 2, 40), (1, 0, 40)])
def test_empty_arrays_select_nothing(place: str, shape: tuple[int, int, int]) -> None:
    batch, heads, length = shape
    q, k, v = random_qkv(27, batch, heads, heads, length, length, 16)
    out, pattern = sparsed.attention_and_select(q, k, v, prompt_length=0, block_size=16)
    assert out.shape == q.shape
    assert pattern.to_mask().shape == (batch, heads, -(-length // 16), -(-length // 16))
    assert pattern.density == 0
    assert sparsed.select(q, k, prompt_length=0, block_size=16) == pattern


def test_nan_inputs_end(place: str) -> None:
    q, k, v = random_qkv(28, 1, 1, 1, 100, 100, 16)
    q[0, 0, 3], k[0, 0, 50] = np.nan, np.nan
    out, pattern = sparsed.attention_and_select(q, k, v, prompt_length=50, block_size=16)
    assert np.isnan(out).any()
    assert (pattern.to_mask().sum(-1) > 0).all()


Q: NDArray[Any] = np.zeros((1, 2, 64, 32), np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt_length": 65}, ValueError, "prompt_length is 65, expected 0 ... 64"),
        ({"prompt_length": -1}, ValueError, "prompt_length is -1, expected 0 ... 64"),
        ({"prompt_length": 1.0}, TypeError, "prompt_length is a float, expected an int"),
        ({"prompt_length": True}, TypeError, "prompt_length is a bool, expected an int"),
        ({"prompt_length": 10**30}, ValueError, "prompt_length is 1000000000000000000000000000000, expected"),
        ({"block_size": 48}, ValueError, "block_size is 48, expected 16, 32, 64, 128 or 256"),
        ({"block_size": 0}, ValueError, "block_size is 0, expected 16, 32, 64, 128 or 256"),
        ({"block_size": 2**32 + 16}, ValueError, "block_size is 4294967312, expected 16, 32, 64, 128 or 256"),
        ({"block_size": "32"}, TypeError, "block_size is a str, expected an int"),
        ({"rho": 1.0000001}, ValueError, "rho is 1.0000001, expected 0 ... 1"),
        ({"selection_scale": 1e-60}, ValueError, "selection_scale is 1e-60, expected"),
        ({"rho": 1.01}, ValueError, "rho is 1.01, expected 0 ... 1"),
        ({"rho": -0.1}, ValueError, "rho is -0.1, expected 0 ... 1"),
        ({"rho": float("nan")}, ValueError, "rho is nan, expected 0 ... 1"),
        ({"rho": None}, TypeError, "rho is a NoneType, expected a number"),
        ({"selection": "papers"}, ValueError, 'selection is "papers", expected "paper" or "reference"'),
        ({"selection": 1}, TypeError, 'selection is a int, expected "paper" or "reference"'),
        ({"generation": "full"}, ValueError, 'generation is "full", expected "dense" or "sparse"'),
        ({"generation": True}, TypeError, 'generation is a bool, expected "dense" or "sparse"'),
        ({"selection_scale": 0.0}, ValueError, "selection_scale is 0, expected a finite number"),
        ({"selection_scale": float("nan")}, ValueError, "selection_scale is nan, expected a finite number"),
        ({"selection_scale": "1"}, TypeError, "selection_scale is a str, expected a number"),
        ({"scale": -1}, ValueError, "scale is -1, expected a finite number above 0"),
        ({"k": Q[:, :, :60], "v": Q[:, :, :60]}, ValueError, "k has length 60, expected 64 (from q [1, 2, 64, 32])"),
        ({"key_mask": np.ones((1, 63), bool)}, ValueError, "key_mask has shape [1, 63], expected [1, 64]"),
        ({"q": Q.astype(np.float64)}, TypeError, "q has dtype float64, expected float32, float16 or bfloat16"),
        ({"top_k": 3}, TypeError, "got an unexpected keyword argument 'top_k'"),
    ],
)
def test_errors_name_argument_found_and_expected(changes: Any, error: type[Exception], message: str) -> None:
    arguments = {"q": Q, "k": Q, "v": Q, "prompt_length": 10} | changes
    with pytest.raises(error, match=r"^attention_and_select.*" + re.escape(message)):
        sparsed.attention_and_select(**arguments)
    del arguments["v"]
    with pytest.raises(error, match=r"^select.*" + re.escape(message)):
        sparsed.select(**arguments)


def test_a_pattern_that_cannot_fit_is_refused_before() -> None:
    q = np.broadcast_to(np.zeros(16, np.float32), (1, 1, 1 << 33, 16))
    with pytest.raises(MemoryError, match="select.* needs .* GiB, available are"):
        sparsed.select(q, q, prompt_length=0, block_size=16)


@pytest.mark.parametrize("selection", RULES)
def test_one_top_k_over_all_blocks(selection: Any, backend: str) -> None:
    q, k, v = random_qkv(40, 1, 4, 2, 300, 300, 64)
    options: Any = {"prompt_length": 200, "block_size": 32, "selection": selection, "isolate": False}
    options["generation"] = "sparse"
    pattern = sparsed.select(q, k, **options)
    assert pattern == sparsed.attention_and_select(q, k, v, **options)[1]
    assert pattern != sparsed.select(q, k, **options | {"isolate": True})
    assert (pattern.to_mask().sum(-1) == int(10 * 0.3) + 1).all()
    cache = sparsed.PatternCache(
        sparsed.SparseConfig(
            skip=0, block_size=32, selection="paper", isolate=False, min_length=0, generation="sparse"
        ),
        steps=2,
        prompt_length=200,
    )
    cache.begin_step(0)
    cache.attend(0, q, k, v)
    assert cache.pattern(0) == sparsed.select(q, k, **options | {"selection": "paper"})
    for function in (sparsed.select, lambda q, k, **options: sparsed.attention_and_select(q, k, v, **options)):
        with pytest.raises(TypeError, match="select: isolate is a int, expected True or False"):
            function(q, k, **options | {"isolate": 1})
