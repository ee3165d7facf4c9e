"""BlockPattern against plain numpy masks."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sparsed
from conftest import random_mask
from reference import num_blocks
from sparsed import BlockPattern
from sparsed.kernels import _core

Mask = NDArray[np.bool_]
SIZES = [(1, 1), (100, 100), (64, 300), (1000, 130), (129, 5000)]


def random_pattern(seed: int = 0, q_len: int = 200, kv_len: int = 300, block_size: int = 16) -> BlockPattern:
    mask = random_mask(seed, 2, 3, q_len, kv_len, block_size)
    return BlockPattern.from_mask(mask, block_size=block_size, q_len=q_len, kv_len=kv_len, prompt_length=kv_len // 2)


def window_mask(window: int, sinks: int, q_len: int, kv_len: int, block_size: int) -> Mask:
    """Token by token: query i sees keys i - window // 2 ... i - window // 2 + window - 1, and the sinks."""
    i, j = np.arange(q_len)[:, None], np.arange(kv_len)
    start = i - window // 2
    tokens = (j < sinks) | ((j >= start) & (j < start + window))
    rows = np.logical_or.reduceat(tokens, np.arange(0, q_len, block_size), 0)
    return np.logical_or.reduceat(rows, np.arange(0, kv_len, block_size), 1)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_mask_round_trip(block_size: int, q_len: int, kv_len: int) -> None:
    mask = random_mask(1, 2, 3, q_len, kv_len, block_size)
    pattern = BlockPattern.from_mask(mask, block_size=block_size, q_len=q_len, kv_len=kv_len, prompt_length=1)
    assert (pattern.batch, pattern.heads, pattern.q_blocks, pattern.kv_blocks) == mask.shape
    assert (pattern.block_size, pattern.q_len, pattern.kv_len, pattern.prompt_length) == (block_size, q_len, kv_len, 1)
    np.testing.assert_array_equal(pattern.to_mask(), mask)
    assert pattern.to_mask().dtype == bool
    assert pattern.density == pytest.approx(mask.mean())
    np.testing.assert_allclose(pattern.head_density, mask.mean((2, 3)))
    assert pattern.head_density.shape == (2, 3)
    assert pattern.nbytes == 2 * 3 * mask.shape[2] * num_blocks(mask.shape[3], 64) * 8


def test_mask_may_be_a_view() -> None:
    mask = random_mask(2, 2, 3, 200, 300, 16)
    view = np.ascontiguousarray(mask.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)
    pattern = BlockPattern.from_mask(view, block_size=16, q_len=200, kv_len=300)
    np.testing.assert_array_equal(pattern.to_mask(), mask)


def test_rows_and_bsr() -> None:
    pattern = random_pattern()
    mask = pattern.to_mask()
    indptr, indices = pattern.to_bsr()
    assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)
    for r, (b, h, i) in enumerate(np.ndindex(mask.shape[:3])):
        expected = np.flatnonzero(mask[b, h, i])
        row = pattern.row(b, h, i)
        assert row.dtype == np.int32
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(indices[indptr[r] : indptr[r + 1]], expected)
    assert indptr[-1] == indices.size == mask.sum()
    empty = BlockPattern.full(2, 3, block_size=16, q_len=0, kv_len=40)
    assert [array.tolist() for array in empty.to_bsr()] == [[0], []]


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_full(q_len: int, kv_len: int) -> None:
    pattern = BlockPattern.full(2, 3, block_size=32, q_len=q_len, kv_len=kv_len)
    assert pattern.to_mask().all()
    assert pattern.density == 1
    assert (pattern.batch, pattern.heads) == (2, 3)
    assert BlockPattern.full(block_size=32, q_len=q_len, kv_len=kv_len).head_density.shape == (1, 1)


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 100, 10**9])
@pytest.mark.parametrize("sinks", [0, 1, 33])
def test_windows(window: int, sinks: int, q_len: int, kv_len: int) -> None:
    size: Any = {"block_size": 32, "q_len": q_len, "kv_len": kv_len}
    pattern = BlockPattern.streaming(2, 2, window=window, sinks=sinks, **size)
    expected = window_mask(window, sinks, q_len, kv_len, 32)
    np.testing.assert_array_equal(pattern.to_mask(), np.broadcast_to(expected, (2, 2, *expected.shape)))
    assert (pattern == BlockPattern.sliding_window(2, 2, window=window, **size)) == (
        (expected == window_mask(window, 0, q_len, kv_len, 32)).all()
    )


def test_jaccard() -> None:
    a, b = random_pattern(3), random_pattern(4)
    x, y = a.to_mask(), b.to_mask()
    expected = (x & y).sum((2, 3)) / (x | y).sum((2, 3))
    np.testing.assert_allclose(a.jaccard(b), expected)
    np.testing.assert_array_equal(a.jaccard(a), np.ones((2, 3)))
    nothing = BlockPattern.from_mask(np.zeros_like(x), block_size=16, q_len=200, kv_len=300)
    np.testing.assert_array_equal(nothing.jaccard(nothing), np.ones((2, 3)))
    np.testing.assert_array_equal(nothing.jaccard(a), np.zeros((2, 3)))
    other = random_pattern(3, q_len=190)
    with pytest.raises(ValueError, match=r"BlockPattern.jaccard: other has q_len 190, expected 200"):
        a.jaccard(other)
    with pytest.raises(TypeError, match="jaccard"):
        a.jaccard(x)  # type: ignore[arg-type]


def test_equality_and_hash_go_by_content() -> None:
    a, same, other = random_pattern(5), random_pattern(5), random_pattern(6)
    assert a == same
    assert hash(a) == hash(same)
    assert a != other
    assert len({a, same, other}) == 2
    mask = a.to_mask()
    moved = BlockPattern.from_mask(mask, block_size=16, q_len=200, kv_len=300, prompt_length=7)
    assert a != moved
    assert a != mask.tobytes()
    assert a != None  # noqa: E711
    assert (a == 1) is False


def test_repr_says_what_it_is() -> None:
    text = repr(BlockPattern.full(2, 3, block_size=32, q_len=100, kv_len=130, prompt_length=50))
    assert text == (
        "BlockPattern(batch=2, heads=3, q_blocks=4, kv_blocks=5, block_size=32, q_len=100, kv_len=130, "
        "prompt_length=50, density=1)"
    )


@pytest.mark.parametrize("convert", [str, Path])
@pytest.mark.parametrize(("q_len", "kv_len"), [*SIZES, (0, 0)])
def test_save_and_load(tmp_path: Path, convert: Callable[[Path], Any], q_len: int, kv_len: int) -> None:
    pattern = random_pattern(7, q_len, kv_len)
    path = tmp_path / "a pattern.bin"
    pattern.save(convert(path))
    assert BlockPattern.load(convert(path)) == pattern


def test_copies_and_pickles() -> None:
    pattern = random_pattern(8)
    for copied in (pickle.loads(pickle.dumps(pattern)), copy.copy(pattern), copy.deepcopy(pattern)):
        assert copied == pattern
        assert copied is not pattern


def test_a_pattern_comes_from_somewhere_and_never_changes() -> None:
    with pytest.raises(TypeError, match="has no constructor"):
        BlockPattern()
    pattern = BlockPattern.full(block_size=32, q_len=64, kv_len=64)
    with pytest.raises(AttributeError, match="density cannot be set"):
        pattern.density = 1.0  # type: ignore[misc]
    with pytest.raises(AttributeError, match="a pattern never changes"):
        del pattern._compiled


@pytest.mark.parametrize("kind", [_core.BlockPattern, _core.PackedWeight, _core.PatternCache, _core.HostBuffer])
def test_no_object_without_content(kind: type[Any]) -> None:
    class Derived(kind):  # type: ignore[misc]
        pass

    for make in (kind, Derived, lambda: kind.__new__(kind), lambda: Derived.__new__(Derived)):
        with pytest.raises(TypeError, match="has no constructor"):
            make()
    for base in inspect.getmro(kind)[1:]:
        with pytest.raises(TypeError):
            base.__new__(kind)


def test_damaged_and_foreign_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "pattern"
    random_pattern(9).save(path)
    content = path.read_bytes()
    damaged = [content[:n] for n in (0, 7, 40, len(content) - 1)]
    damaged += [content + b"\0", b"x" + content[1:], b"PK\x03\x04" * 100]
    for at in range(0, len(content), 13):
        damaged.append(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=re.escape(f"BlockPattern.load: {path}")):
            BlockPattern.load(path)


def test_paths_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match=re.escape(str(missing))):
        BlockPattern.load(missing)
    with pytest.raises(FileNotFoundError, match="missing"):
        random_pattern().save(missing / "pattern")
    with pytest.raises(OSError, match="is a folder or device, expected a regular file"):
        BlockPattern.load(tmp_path)
    with pytest.raises(TypeError, match="BlockPattern.load: path is a int, expected a str or os.PathLike"):
        BlockPattern.load(3)
    with pytest.raises(TypeError, match="BlockPattern.save: path is a NoneType, expected a str or os.PathLike"):
        random_pattern().save(None)
    with pytest.raises(ValueError, match="null byte"):
        BlockPattern.load("a\0b")


def test_a_large_model_needs_little_memory() -> None:
    layer = BlockPattern.full(1, 32, block_size=128, q_len=65536, kv_len=65536)
    assert 32 * layer.nbytes <= 35e6


SIZE: Any = {"block_size": 16, "q_len": 32, "kv_len": 48}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BlockPattern.full(**SIZE | {"block_size": 17}), ValueError, "full: block_size is 17, expected 16, 32"),
        (
            lambda: BlockPattern.full(**SIZE | {"block_size": 2.0}),
            TypeError,
            "full: block_size is a float, expected a",
        ),
        (lambda: BlockPattern.full(-1, **SIZE), ValueError, "full: batch is -1, expected 0 ..."),
        (lambda: BlockPattern.full(1, None, **SIZE), TypeError, "full: heads is a NoneType, expected an int"),
        (lambda: BlockPattern.full(**SIZE | {"q_len": -5}), ValueError, "full: q_len is -5, expected 0 ..."),
        (lambda: BlockPattern.full(**SIZE | {"kv_len": 2**70}), ValueError, "full: kv_len is 1180591620717411303424"),
        (
            lambda: BlockPattern.full(**SIZE, prompt_length=49),
            ValueError,
            "full: prompt_length is 49, expected 0 ... 48",
        ),
        (lambda: BlockPattern.sliding_window(window=0, **SIZE), ValueError, "sliding_window: window is 0, expected"),
        (lambda: BlockPattern.streaming(window=4, sinks=-1, **SIZE), ValueError, "streaming: sinks is -1, expected"),
        (
            lambda: BlockPattern.from_mask(np.ones((1, 1, 2, 4), bool), **SIZE),
            ValueError,
            "BlockPattern.from_mask: mask has kv_blocks 4, expected 3 (from kv_len 48, block_size 16)",
        ),
        (
            lambda: BlockPattern.from_mask(np.ones((1, 1, 3, 3), bool), **SIZE),
            ValueError,
            "BlockPattern.from_mask: mask has q_blocks 3, expected 2 (from q_len 32, block_size 16)",
        ),
        (
            lambda: BlockPattern.from_mask(np.ones((2, 3), bool), **SIZE),
            ValueError,
            "from_mask: mask has shape [2, 3], expected 4 axes [batch, heads, q_blocks, kv_blocks]",
        ),
        (
            lambda: BlockPattern.from_mask(np.ones((1, 1, 2, 3)), **SIZE),
            TypeError,
            "mask has dtype float64, expected",
        ),
        (lambda: BlockPattern.from_mask([[True]], **SIZE), TypeError, "mask is a list, expected a numpy array"),
        (lambda: BlockPattern.full(**SIZE).row(0, 0, 2), ValueError, "row: q_block is 2, expected 0 ... 1"),
        (lambda: BlockPattern.full(**SIZE).row(0, -1, 0), ValueError, "row: head is -1, expected 0 ... 0"),
    ],
)
def test_errors_name_argument_found_and_expected(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_pattern_that_cannot_fit_is_refused_before() -> None:
    with pytest.raises(MemoryError, match="BlockPattern.full.* needs .* GiB, available are"):
        BlockPattern.full(100, 100, block_size=16, q_len=1 << 34, kv_len=1 << 34)


def test_attributes_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        BlockPattern.full(**SIZE).q_len = 3  # type: ignore[misc]
    assert sparsed.BlockPattern is BlockPattern
