"""Block scores, and selection rules of the user's own: what they get, what becomes of what they return."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest

import reference
import sparsed
from conftest import random_qkv
from sparsed import BlockGeometry, PatternCache, SparseConfig
from tolerances import LSE, ORDER

LENGTH, PROMPT, BLOCK = 201, 120, 16
BLOCKS = -(-LENGTH // BLOCK)
FIRST = PROMPT // BLOCK  # the first block with a generation token


def inputs(seed: int = 0, batch: int = 2, dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    return random_qkv(seed, batch, 4, 2, LENGTH, LENGTH, 32, dtype)


def largest_two(scores: Any, geometry: BlockGeometry) -> Any:
    """Keeps the two largest blocks of each row."""
    return scores >= np.sort(scores, axis=-1)[..., -2:-1]


def config(**fields: Any) -> SparseConfig:
    given: dict[str, Any] = {"skip": 0, "block_size": BLOCK, "min_length": 0, "selection": largest_two}
    return SparseConfig(**{**given, **fields})


@pytest.mark.parametrize("selection", ["paper", "reference", largest_two])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_the_mass_of_the_blocks(place: str, dtype: Any, selection: Any, masked: bool) -> None:
    q, k, v = inputs(dtype=dtype)
    key_mask = np.arange(LENGTH) >= np.array([[0], [37]]) if masked else None
    visible = np.ones((2, 1, 1, LENGTH), bool) if key_mask is None else key_mask[:, None, None, :]
    out, pattern, scores = sparsed.attention_and_select(
        q,
        k,
        v,
        prompt_length=PROMPT,
        block_size=BLOCK,
        selection=selection,
        selection_scale=0.3,
        key_mask=key_mask,
        return_scores=True,
    )
    expected = reference.block_mass(reference.softmax(reference.scores(q, k, 0.3), visible)[0], BLOCK)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=4 * LSE[dtype.name], atol=1e-6)
    np.testing.assert_allclose(scores.sum(axis=-1)[..., :-1], BLOCK, rtol=4 * LSE[dtype.name])
    plain = sparsed.attention(q, k, v, key_mask=key_mask)
    np.testing.assert_allclose(out.astype(np.float32), plain.astype(np.float32), atol=1e-2)
    if selection is not largest_two:
        without = sparsed.attention_and_select(
            q,
            k,
            v,
            prompt_length=PROMPT,
            block_size=BLOCK,
            selection=selection,
            selection_scale=0.3,
            key_mask=key_mask,
        )
        assert without[1] == pattern
        np.testing.assert_array_equal(without[0], out)


def test_scores_of_other_libraries() -> None:
    arrays = inputs()
    options: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "return_scores": True, "selection": largest_two}
    _, pattern, expected = sparsed.attention_and_select(*arrays, **options)
    for name in ("torch", "jax.numpy"):
        module = pytest.importorskip(name)
        _, found, scores = sparsed.attention_and_select(*map(module.asarray, arrays), **options)
        assert type(scores) is type(module.asarray(arrays[0]))
        np.testing.assert_array_equal(np.asarray(scores), expected)
        assert found == pattern
    with pytest.raises(TypeError, match="return_scores is 1, expected True or False"):
        sparsed.attention_and_select(*arrays, prompt_length=PROMPT, return_scores=1)  # type: ignore[call-overload]


@pytest.mark.parametrize("generation", ["dense", "sparse", None])
def test_a_rule_chooses_the_pattern(place: str, generation: Any) -> None:
    q, k, v = inputs()
    seen = []

    def rule(scores: Any, geometry: BlockGeometry) -> Any:
        seen.append(geometry)
        assert type(scores) is np.ndarray
        assert scores.dtype == np.float32
        assert scores.shape == (1, 4, BLOCKS, BLOCKS)
        return largest_two(scores, geometry)

    options: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "selection": rule, "generation": generation}
    out, pattern, scores = sparsed.attention_and_select(q, k, v, **options, return_scores=True)
    expected = scores >= np.sort(scores, axis=-1)[..., -2:-1]
    if generation != "sparse":
        expected[:, :, FIRST:] = True
    np.testing.assert_array_equal(pattern.to_mask(), expected)
    assert pattern.prompt_length == PROMPT
    np.testing.assert_array_equal(out, sparsed.attention_and_select(q, k, v, prompt_length=PROMPT, block_size=16)[0])
    assert sparsed.select(q, k, **options) == pattern
    assert seen == 4 * [BlockGeometry(BLOCK, LENGTH, PROMPT)]  # two calls, two rows
    assert (seen[0].blocks, seen[0].first_generation_block) == (BLOCKS, FIRST)
    assert BlockGeometry(16, 32, 32).first_generation_block == 2


def test_a_rule_may_write_into_its_scores() -> None:
    def greedy(scores: Any, geometry: BlockGeometry) -> Any:
        mask = largest_two(scores, geometry)
        scores[:] = 0
        return mask

    options: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "return_scores": True}
    expected = sparsed.attention_and_select(*inputs(), selection=largest_two, **options)
    found = sparsed.attention_and_select(*inputs(), selection=greedy, **options)
    np.testing.assert_array_equal(found[2], expected[2])
    assert found[1] == expected[1]


def test_the_papers_rule_as_an_own_one(place: str) -> None:
    def paper(scores: Any, geometry: BlockGeometry) -> Any:
        border = -(-geometry.prompt_length // geometry.block_size)
        mask = np.zeros(scores.shape, bool)
        for begin, end in ((0, border), (border, geometry.blocks)):
            part = scores[..., begin:end]
            order = np.argsort(-part, axis=-1, kind="stable")[..., : int((end - begin) * 0.3) + 1]
            np.put_along_axis(mask[..., begin:end], order, True, axis=-1)
        return mask

    q, k, v = inputs()
    options: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "generation": "sparse"}
    expected = sparsed.attention_and_select(q, k, v, **options)[1]
    assert sparsed.attention_and_select(q, k, v, selection=paper, **options)[1] == expected


def test_the_steps_of_a_cache(place: str) -> None:
    layers = []

    def rule(scores: Any, geometry: BlockGeometry) -> Any:
        layers.append(geometry.layer)
        return largest_two(scores, geometry)

    settings = config(selection=rule, skip=0.3, refresh=(0.7,))
    cache = PatternCache(settings, steps=10, prompt_length=PROMPT)
    assert settings.phases(10) == SparseConfig(skip=0.3, refresh=(0.7,)).phases(10)
    select: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "selection": largest_two}
    for t in range(10):
        cache.begin_step(t)
        for layer in (0, 1):
            q, k, v = inputs(10 * t + layer)
            before = cache.pattern(layer) if layer in cache.layers else None
            out = cache.attend(layer, q, k, v)
            dense = cache.phase != "sparse"
            np.testing.assert_allclose(out, sparsed.attention(q, k, v, None if dense else before), atol=ORDER)
            if cache.phase == "select":
                assert cache.pattern(layer) == sparsed.select(q, k, **select)
                assert cache.density(layer) == 1
    assert layers == 2 * [0, 0, 1, 1]  # in steps 2 and 6, two rows each
    assert pickle.loads(pickle.dumps(PatternCache(config(), steps=3, prompt_length=PROMPT))).config == config()


def test_a_cache_with_an_own_rule_is_pickled_and_compared_as_the_rule_is() -> None:
    def closures() -> PatternCache:
        return PatternCache(config(selection=lambda scores, geometry: scores > 0), steps=3, prompt_length=PROMPT)

    cache = closures()
    assert cache == PatternCache(cache.config, steps=3, prompt_length=PROMPT)
    assert cache != closures()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(cache)


def test_every_step_may_select() -> None:
    cache = PatternCache(config(refresh="every"), steps=3, prompt_length=PROMPT)
    for t in range(3):
        q, k, v = inputs(t)
        cache.begin_step(t)
        out = cache.attend(0, q, k, v)
        pattern = sparsed.select(q, k, prompt_length=PROMPT, block_size=BLOCK, selection=largest_two)
        assert cache.pattern(0) == pattern
        np.testing.assert_allclose(out, sparsed.attention(q, k, v, pattern if t else None), atol=ORDER)


def test_short_sequences_stay_dense() -> None:
    def never(scores: Any, geometry: BlockGeometry) -> Any:
        raise AssertionError

    cache = PatternCache(config(selection=never, min_length=LENGTH + 1), steps=2, prompt_length=PROMPT)
    for t in range(2):
        cache.begin_step(t)
        cache.attend(0, *inputs())
        assert cache.phase == "dense"


class Rule:
    """A rule that returns all blocks of the first row of two, and what it is told for the second."""

    def __init__(self, change: Any) -> None:
        self.change, self.calls = change, 0

    def __call__(self, scores: Any, geometry: BlockGeometry) -> Any:
        self.calls += 1
        mask = np.ones(scores.shape, bool)
        return mask if self.calls % 2 else self.change(mask)


def emptied(mask: Any) -> Any:
    mask[0, 2, 3] = False
    return mask


WRONG = [
    (
        lambda mask: mask[:, :, 1:],
        ValueError,
        "returned shape [1, 4, 12, 13] for batch row 1, expected [1, 4, 13, 13] (that of the scores)",
    ),
    (lambda mask: mask[0], ValueError, "returned shape [4, 13, 13] for batch row 1, expected [1, 4, 13, 13]"),
    (
        lambda mask: mask.astype(np.float32),
        TypeError,
        "returned float32 [1, 4, 13, 13] for batch row 1, expected bool [1, 4, 13, 13]",
    ),
    (lambda mask: None, TypeError, "returned object [] for batch row 1, expected bool"),
    (lambda mask: np.argwhere(mask), TypeError, "returned int64"),
    (
        lambda mask: [[True], [True, False]],
        TypeError,
        "returned a list for batch row 1, expected bool [1, 4, 13, 13]",
    ),
    (
        emptied,
        ValueError,
        "returned no key block for query block 3 of head 2 in batch row 1, expected at least one",
    ),
]


@pytest.mark.parametrize(("change", "kind", "message"), WRONG)
def test_what_a_rule_may_not_return(change: Any, kind: Any, message: str) -> None:
    rule = Rule(change)
    cache = PatternCache(config(selection=rule), steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    name = r"selection test_own_selection\.Rule "
    with pytest.raises(kind, match=r"PatternCache.attend: " + name + re.escape(message)):
        cache.attend(0, *inputs())
    assert cache.layers == []
    rule.change = lambda mask: mask
    cache.attend(0, *inputs())  # the step goes on
    assert cache.layers == [0]
    with pytest.raises(kind, match=r"attention_and_select: " + name + re.escape(message)):
        sparsed.attention_and_select(*inputs(), prompt_length=PROMPT, block_size=BLOCK, selection=Rule(change))
    with pytest.raises(kind, match=r"select: " + name + re.escape(message)):
        sparsed.select(*inputs()[:2], prompt_length=PROMPT, block_size=BLOCK, selection=Rule(change))


def over_all_scores(scores: Any, geometry: BlockGeometry) -> Any:
    """One threshold for everything that the rule sees."""
    return (scores >= np.quantile(scores, 0.8)) | (scores >= scores.max(axis=-1, keepdims=True))


def test_the_rows_of_a_batch_do_not_depend_on_each_other(place: str) -> None:
    q, k, v = inputs(batch=3)
    q = q * np.array([0.2, 1, 5], q.dtype)[:, None, None, None]  # so that the scores of the rows differ
    options: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "selection": over_all_scores, "generation": "sparse"}
    whole = sparsed.attention_and_select(q, k, v, **options)[1]
    assert sparsed.select(q, k, **options) == whole
    cache = PatternCache(config(selection=over_all_scores, generation="sparse"), steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    cache.attend(0, q, k, v)
    assert cache.pattern(0) == whole
    for row in range(3):
        part = slice(row, row + 1)
        _, alone, scores = sparsed.attention_and_select(q[part], k[part], v[part], **options, return_scores=True)
        np.testing.assert_array_equal(alone.to_mask(), over_all_scores(scores, BlockGeometry(BLOCK, LENGTH, PROMPT)))
        assert whole[row] == alone


def test_an_empty_row_of_the_generation_is_one_only_where_the_rule_decides_about_it() -> None:
    def prompt_rows(scores: Any, geometry: BlockGeometry) -> Any:
        mask = np.ones(scores.shape, bool)
        mask[:, :, geometry.first_generation_block :] = False
        return mask

    options: Any = {"prompt_length": PROMPT, "block_size": BLOCK, "selection": prompt_rows}
    assert sparsed.select(*inputs()[:2], **options).density == 1
    with pytest.raises(ValueError, match=f"prompt_rows returned no key block for query block {FIRST} of head 0"):
        sparsed.select(*inputs()[:2], **options, generation="sparse")


def test_what_a_rule_raises_comes_out_and_changes_nothing() -> None:
    def broken(scores: Any, geometry: BlockGeometry) -> Any:
        raise KeyError("mine")

    cache = PatternCache(config(selection=broken), steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    with pytest.raises(KeyError, match="mine"):
        cache.attend(0, *inputs())
    assert cache.layers == []


def test_a_rule_may_read_its_cache_and_not_change_it() -> None:
    q, k, v = inputs()

    def curious(scores: Any, geometry: BlockGeometry) -> Any:
        assert cache.step == 0
        assert cache.layers == []
        with pytest.raises(ValueError, match="expected one after the other"):
            cache.attend(1, q, k, v)
        return largest_two(scores, geometry)

    cache = PatternCache(config(selection=curious), steps=3, prompt_length=PROMPT)
    cache.begin_step(0)
    cache.attend(0, q, k, v)
    assert cache.layers == [0]


def test_other_arguments_are_checked_first() -> None:
    q, k, v = inputs()

    def never(scores: Any, geometry: BlockGeometry) -> Any:
        raise AssertionError

    for options, message in (
        ({"block_size": 24}, "block_size is 24"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": None}, "block_size is a NoneType"),
        ({"prompt_length": LENGTH + 1}, "prompt_length is 202"),
        ({"generation": "some"}, 'generation is "some"'),
    ):
        given: Any = {"prompt_length": PROMPT, "selection": never, **options}
        with pytest.raises((ValueError, TypeError), match=message):
            sparsed.attention_and_select(q, k, v, **given)
    with pytest.raises(TypeError, match="q is a NoneType"):
        sparsed.attention_and_select(None, k, v, prompt_length=PROMPT, selection=never)
    with pytest.raises(ValueError, match="selection is 'mine', expected one of 'paper', 'reference'"):
        SparseConfig(selection="mine")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='selection is a int, expected "paper" or "reference"'):
        sparsed.select(q, k, prompt_length=PROMPT, selection=3)  # type: ignore[arg-type]
