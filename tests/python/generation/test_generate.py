"""`generate`: rows, seeds, statistics, callbacks and errors."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import sparsed
from fake_model import MASK, VOCABULARY, FakeModel, prompt_of
from paths import DATA
from sparsed import DreamSampler, LLaDASampler, SlidingWindow, SparseConfig, StreamingLLM, generate, pad_left
from sparsed.models import loader
from sparsed.progress import progress_bar

SPARSE = SparseConfig(block_size=16, rho=0.3, skip=0.3, min_length=0)


@pytest.fixture(scope="module")
def llada():
    return sparsed.load_model(DATA / "llada_b32")


@pytest.fixture(scope="module")
def dream():
    return sparsed.load_model(DATA / "dream_b32", "float32")


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [None, SPARSE, SlidingWindow(40, 16), StreamingLLM(40, 8, 16)])
@pytest.mark.parametrize(
    ("family", "sampler"),
    [
        ("llada", LLaDASampler(block_length=8)),
        ("llada", LLaDASampler(block_length=16, cfg_scale=0.7)),
        ("llada", LLaDASampler(block_length=8, threshold=0.02)),
        ("dream", DreamSampler()),
        ("dream", DreamSampler(alg="topk_margin", top_k=5, top_p=0.9)),
    ],
)
def test_a_row_in_a_padded_batch_equals_the_row_alone(request, family, sampler, sparse) -> None:
    model = request.getfixturevalue(family)
    rows = [prompt_of(length, seed, 190) for seed, length in enumerate((70, 33, 70, 1, 33))]
    ids, mask = pad_left(rows)
    options = {"gen_length": 16, "steps": 8, "sparse": sparse, "sampler": sampler, "stop": (), "history": True}
    batch = generate(model, ids, prompt_mask=mask, **options)
    np.testing.assert_array_equal(batch.tokens[:, :70], ids)
    assert (batch.generated != model.config.mask_token_id).all()
    for i, row in enumerate(rows):
        alone = generate(model, row, **options)
        np.testing.assert_array_equal(batch.generated[i], alone.generated[0])
        steps = len(alone.history)
        np.testing.assert_array_equal(batch.history[:steps, i, 70 - len(row) :], alone.history[:, 0])
        assert (batch.history[steps:, i] == batch.tokens[i]).all()
        group = next(group for group in batch.groups if i in group.batch_indices)
        assert group.padding == 70 - len(row)
        if sparse is not None and sampler.cfg_scale == 0:
            here = group.patterns.pattern(1).to_mask()[list(group.batch_indices).index(i)]
            np.testing.assert_array_equal(here, alone.groups[0].patterns.pattern(1).to_mask()[0])


def test_rows_of_equal_padding_run_together() -> None:
    model = FakeModel()
    ids, mask = pad_left([prompt_of(5), prompt_of(9), prompt_of(5)])
    ids[~mask] = -1  # padding need not be in the vocabulary
    result = generate(model, ids, prompt_mask=mask, gen_length=4, steps=4)
    assert [(group.batch_indices.tolist(), group.padding) for group in result.groups] == [([1], 0), ([0, 2], 4)]
    assert [step.forwards for step in result.stats] == [2, 2, 2, 2]
    assert {ids.shape for ids in model.ids} == {(1, 13), (2, 9)}
    threshold = generate(model, ids, prompt_mask=mask, gen_length=4, steps=4, sampler=LLaDASampler(threshold=0.9))
    assert [group.batch_indices.tolist() for group in threshold.groups] == [[0], [1], [2]]


def test_prompt_tokens_never_change_not_even_masks() -> None:
    prompt = prompt_of(8)
    prompt[3] = MASK
    result = generate(FakeModel(), prompt, gen_length=4, steps=2)
    np.testing.assert_array_equal(result.tokens[0, :8], prompt)


def test_pad_left() -> None:
    ids, mask = pad_left([[5, 6], np.array([7, 8, 9]), []])
    np.testing.assert_array_equal(ids, [[0, 5, 6], [7, 8, 9], [0, 0, 0]])
    np.testing.assert_array_equal(mask, [[False, True, True], [True, True, True], [False, False, False]])
    with pytest.raises(ValueError, match=r"pad_left: rows has a row of shape \[1, 2\], expected \[n\]"):
        pad_left([[[5, 6]]])
    with pytest.raises(ValueError, match="pad_left: rows has none"):
        pad_left([])
    for rows in ("text", ["a", "text"], {"input_ids": [[1]]}, None):
        with pytest.raises(TypeError, match=r"pad_left: rows(\[0\])? is a \w+, expected integers"):
            pad_left(rows)


# --- random draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [
        LLaDASampler(temperature=1.0),
        LLaDASampler(remasking="random"),
        LLaDASampler(temperature=1.0, threshold=0.3, block_length=4),
        DreamSampler(temperature=1.0),
        DreamSampler(alg="origin", temperature=1.0, top_p=0.95),
        DreamSampler(alg_temp=1.0),
    ],
)
def test_a_seed_repeats_a_run(sampler) -> None:
    model = FakeModel()
    options = {"gen_length": 24, "steps": 12, "sampler": sampler, "history": True}
    ids = np.stack([prompt_of(6)] * 3)
    first, second = (generate(model, ids, seed=5, **options) for _ in range(2))
    np.testing.assert_array_equal(first.history, second.history)
    alone = generate(model, ids[:1], seed=5, **options)
    np.testing.assert_array_equal(alone.tokens[0], first.tokens[0])  # row 0 has the first child of the seed
    order = first.history[:, 0] == MASK, first.history[:, 1] == MASK
    assert (first.tokens[0] != first.tokens[1]).any() or (order[0] != order[1]).any()
    other = generate(model, ids, seed=6, **options)
    generate(model, ids, seed=2**70, **options)  # as long as numpy's own entropy
    assert other.history.shape != first.history.shape or (other.history != first.history).any()
    assert generate(model, ids, **options).tokens.shape == (3, 30)


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [False, True])
def test_logits_are_computed_where_the_step_can_fill(shift: bool) -> None:
    model = FakeModel(shift)
    sampler = LLaDASampler(block_length=4)
    result = generate(model, prompt_of(6), gen_length=12, steps=6, sampler=sampler, history=True)
    for step, positions in enumerate(model.positions):
        end = 6 + 4 * (step // 2 + 1)
        masked = np.flatnonzero(result.history[step, 0] == MASK)
        np.testing.assert_array_equal(positions + shift, masked[masked < end])


def test_guidance_masks_the_prompt_in_a_second_row() -> None:
    model, prompt = FakeModel(), prompt_of(5)
    generate(model, prompt, gen_length=4, steps=4, sampler=LLaDASampler(cfg_scale=1.0), sparse=SPARSE)
    for ids in model.ids:
        assert ids.shape == (2, 9)
        np.testing.assert_array_equal(ids[0, :5], prompt)
        assert (ids[1, :5] == MASK).all()
        np.testing.assert_array_equal(ids[0, 5:], ids[1, 5:])


def test_guidance_of_scale_keeps_both_patterns(llada) -> None:
    options = {"gen_length": 32, "steps": 8, "sparse": SPARSE}
    guided = generate(llada, prompt_of(64, vocabulary=190), sampler=LLaDASampler(cfg_scale=1.5), **options)
    assert guided.groups[0].patterns.pattern(0).batch == 2
    assert guided.stats[-1].phase == "sparse" and guided.stats[-1].density < 1


@pytest.mark.parametrize(
    ("sampler", "shift"), [(LLaDASampler(block_length=2), False), (DreamSampler(), True)], ids=["llada", "dream"]
)
@pytest.mark.parametrize("sparse", [None, SPARSE])
def test_steps_that_fill_nothing_do_not_call_the_model(sampler, shift, sparse) -> None:
    model = FakeModel(shift)
    result = generate(model, prompt_of(30), gen_length=4, steps=40, sampler=sampler, sparse=sparse)
    idle = [step for step in result.stats if step.unmasked == 0]
    assert len(result.stats) == 40 and result.stats.unmasked == 4
    selecting = [step for step in idle if step.phase == "select"]
    assert result.stats.forwards == len(model.ids) == 40 - len(idle) + len(selecting) <= 5
    assert all(step.forwards == 0 and step.density == 0 for step in idle if step.phase != "select")
    assert (result.generated != MASK).all()


@pytest.mark.parametrize("refresh", [(), (0.9,), "every"])
def test_steps_select_only_for_later_ones(refresh) -> None:
    model = FakeModel()
    sparse = SparseConfig(block_size=16, rho=0.3, skip=0.5, refresh=refresh, min_length=0)
    result = generate(model, prompt_of(30), gen_length=4, steps=40, sparse=sparse)
    filled = [step.unmasked > 0 for step in result.stats]
    assert filled == [True] * 4 + [False] * 36  # all is filled before the selection is due
    assert [bool(step.forwards) for step in result.stats] == filled

    dream = FakeModel(shift=True)
    result = generate(dream, prompt_of(30), gen_length=4, steps=40, sparse=sparse)
    called = [step.step for step in result.stats if step.forwards and not step.unmasked]
    selecting = [step.step for step in result.stats if step.phase == "select"]
    assert called == (selecting[:1] if refresh == "every" else selecting)  # "every": later steps select themselves


def test_steps_of_a_short_sequence_select_nothing() -> None:
    sparse = SparseConfig(skip=0)  # min_length is above the sequence
    counts = [
        generate(FakeModel(shift=True), prompt_of(30), gen_length=4, steps=40, sparse=kind).stats.forwards
        for kind in (None, sparse)
    ]
    assert counts[0] == counts[1]


def test_more_tokens_than_steps_and_one_step() -> None:
    model = FakeModel()
    assert (generate(model, prompt_of(3), gen_length=50, steps=1).generated != MASK).all()
    assert len(model.ids) == 1


# --- statistics, history, callbacks ----------------------------------------------------------------------------------


def test_statistics(llada) -> None:
    prompt = prompt_of(96, vocabulary=190)
    result = generate(llada, prompt, gen_length=32, steps=10, sparse=SPARSE, history=True)
    stats = result.stats
    assert [step.phase for step in stats] == ["dense"] * 2 + ["select"] + ["sparse"] * 7
    assert [step.step for step in stats] == list(range(10))
    assert [step.unmasked for step in stats] == [4, 4] + [3] * 8
    assert [step.density for step in stats[:3]] == [1, 1, 1]
    cache = result.groups[0].patterns
    sparse_density = np.mean([cache.pattern(layer).density for layer in range(llada.config.num_layers)])
    np.testing.assert_allclose([step.density for step in stats[3:]], sparse_density)
    assert 0 < sparse_density < 0.7
    assert stats.forwards == 10 and stats.unmasked == 32
    np.testing.assert_allclose(sum(stats.phase_seconds.values()), stats.seconds)
    assert all(stats.phase_seconds[phase] > 0 for phase in ("dense", "select", "sparse"))
    np.testing.assert_allclose(stats.tokens_per_second, 32 / stats.seconds)
    np.testing.assert_allclose(stats.density, (3 + 7 * sparse_density) / 10)
    table = stats.table().splitlines()
    assert [line.split()[0] for line in table[2:6]] == ["dense", "select", "sparse", "all"]
    assert table[-1].endswith("tokens/s; float32, float32 weights")

    assert result.history.shape == (11, 1, 128) and result.history.dtype == np.int32
    np.testing.assert_array_equal(result.history[-1], result.tokens)
    assert (result.history[0, 0, 96:] == llada.config.mask_token_id).all()
    assert [(state == llada.config.mask_token_id).sum() for state in result.history] == list(
        32 - np.cumsum([0] + [step.unmasked for step in stats])
    )


def test_rows_in_different_phases_are_mixed(llada) -> None:
    ids, mask = pad_left([prompt_of(100, 0, 190), prompt_of(20, 1, 190)])
    sparse = SparseConfig(block_size=16, rho=0.1, skip=0.0, min_length=80)
    result = generate(llada, ids, prompt_mask=mask, gen_length=8, steps=4, sparse=sparse)
    assert [step.phase for step in result.stats] == ["mixed"] * 4  # the short row stays dense
    assert result.stats[-1].density == pytest.approx((1 + result.groups[0].patterns.density(0)) / 2, abs=0.2)
    assert "mixed" in result.stats.table()
    assert result.stats.phase_seconds["dense"] > 0 and result.stats.phase_seconds["sparse"] > 0


def test_threshold_selects_by_the_share_that_is_unmasked() -> None:
    model = FakeModel()
    sampler = LLaDASampler(threshold=0.25, block_length=16)
    result = generate(model, prompt_of(30), gen_length=64, steps=1, sampler=sampler, sparse=SPARSE, history=True)
    assert len(result.stats) == len(result.history) - 1 == len(model.ids) <= 64
    unmasked = [(state[0, 30:] != MASK).mean() for state in result.history[:-1]]
    select = next(step for step, share in enumerate(unmasked) if share >= 0.3)
    assert [step.phase for step in result.stats] == ["dense"] * select + ["select"] + ["sparse"] * (
        len(result.stats) - select - 1
    )
    assert (result.generated != MASK).all()


@pytest.mark.parametrize("gen_length", [5, 10, 40, 100])
def test_a_threshold_selects_as_soon_as_the_share_is_reached(gen_length: int) -> None:
    sparse = SparseConfig(block_size=16, skip=0.2, min_length=0)
    sampler = LLaDASampler(threshold=1.0)  # a token a step
    result = generate(FakeModel(), prompt_of(30), gen_length=gen_length, steps=1, sampler=sampler, sparse=sparse)
    assert [step.phase for step in result.stats].index("select") == gen_length // 5


def test_groups_that_did_not_call_the_model_have_no_density() -> None:
    ids, mask = pad_left([prompt_of(30), prompt_of(20, 1)])
    sampler = DreamSampler(alg="origin")
    result = generate(FakeModel(shift=True), ids, prompt_mask=mask, gen_length=8, steps=24, sampler=sampler, seed=0)
    assert {step.density for step in result.stats} == {0.0, 1.0}
    assert result.stats.density == 1 and any(step.forwards == 1 for step in result.stats)


def test_on_step_sees_each_step() -> None:
    seen: list[sparsed.StepInfo] = []
    ids, mask = pad_left([prompt_of(5), prompt_of(9)])
    result = generate(
        FakeModel(), ids, prompt_mask=mask, gen_length=8, steps=4, on_step=seen.append, history=True, sparse=SPARSE
    )
    assert [info.step for info in seen] == [0, 1, 2, 3]
    for info, stats, before, after in zip(seen, result.stats, result.history, result.history[1:], strict=False):
        np.testing.assert_array_equal(info.tokens, after)
        assert (info.phase, info.seconds, info.density) == (stats.phase, stats.seconds, stats.density)
        for row in range(2):
            np.testing.assert_array_equal(info.unmasked[row], np.flatnonzero(before[row] != after[row]))
            assert info.confidence[row].shape == info.unmasked[row].shape
            assert (info.confidence[row] > 0).all()
    seen[0].tokens[:] = 0  # a copy
    assert (result.tokens[:, -8:] != MASK).all()


def test_what_on_step_raises_comes_out() -> None:
    def stop(info: sparsed.StepInfo) -> None:
        raise RuntimeError(f"at {info.step}")

    with pytest.raises(RuntimeError, match="at 0"):
        generate(FakeModel(), prompt_of(5), gen_length=8, steps=4, on_step=stop)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_progress_goes_to_stderr(capsys) -> None:
    generate(FakeModel(), prompt_of(5), gen_length=8, steps=4, progress=True)
    captured = capsys.readouterr()
    assert "8/8" in captured.err and captured.out == ""
    generate(FakeModel(), prompt_of(5), gen_length=8, steps=4)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("folder", ["demo", DATA / "llada_b32", DATA / "dream_b32"])
def test_progress_of_loading_counts_every_byte_once(engine, folder, monkeypatch) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    bars = []

    def bar(shown, **options):
        bars.append(progress_bar(False, **options))
        bars[-1].shown, bars[-1].n = shown, 0
        bars[-1].update = lambda size: setattr(bars[-1], "n", bars[-1].n + size)
        return bars[-1]

    monkeypatch.setattr(loader, "progress_bar", bar)
    sparsed.load_model(folder, engine=engine)
    sparsed.load_model(folder, engine=engine, progress=True)
    assert [bar.shown for bar in bars] == [False, True] and all(bar.n == bar.total > 0 for bar in bars)


def test_default_sampler_is_the_familys() -> None:
    prompt = prompt_of(12)
    for model, sampler in ((FakeModel(), LLaDASampler()), (FakeModel(shift=True), DreamSampler())):
        default = generate(model, prompt, gen_length=8, steps=4, history=True)
        explicit = generate(model, prompt, gen_length=8, steps=4, history=True, sampler=sampler)
        np.testing.assert_array_equal(default.history, explicit.history)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ValueError, r"prompt_ids has shape \[1, 0\]"),
        ([[]], {}, ValueError, r"prompt_ids has shape \[1, 0\]"),
        (np.zeros((0, 4), int), {}, ValueError, r"prompt_ids has shape \[0, 4\]"),
        (5, {}, ValueError, r"prompt_ids has shape \[\], expected \[B, p\]"),
        (np.zeros((1, 2, 3), int), {}, ValueError, r"prompt_ids has shape \[1, 2, 3\]"),
        ([], {}, ValueError, "the prompt is empty"),
        ([[1, 2], [3]], {}, ValueError, "rows of unequal length, expected .*sparsed.pad_left makes prompt_ids and"),
        ([np.array([1, 2]), np.array([3])], {}, ValueError, "sparsed.pad_left makes prompt_ids and prompt_mask"),
        (np.array([[1, 2], [3]], object), {}, ValueError, "sparsed.pad_left makes prompt_ids and prompt_mask"),
        ("a text", {}, TypeError, r"is a str, expected integers: tokenizer.chat\(text\) or tokenizer.encode\(text\)"),
        (b"a text", {}, TypeError, r"is a bytes, expected integers: tokenizer.chat\(text\) or"),
        ([["a text"], ["b"]], {}, TypeError, r"has dtype <U6, expected integers: tokenizer.chat\(text\) or"),
        ([{"role": "user"}], {}, TypeError, r"expected integers: tokenizer.chat\(messages\) makes token ids"),
        ({"input_ids": [1]}, {}, TypeError, r"is a dict, expected integers: the token ids are prompt_ids\["),
        (None, {}, TypeError, "prompt_ids is a NoneType, expected integers"),
        ([1.0, 2.0], {}, TypeError, "prompt_ids has dtype float64, expected integers"),
        (["a"], {}, TypeError, "prompt_ids has dtype"),
        ([1, VOCABULARY], {}, ValueError, rf"prompt_ids\[0, 1\] is {VOCABULARY}, expected 0 ... {VOCABULARY - 1}"),
        ([[1, 2], [-1, 3]], {}, ValueError, r"prompt_ids\[1, 0\] is -1"),
        ([1, 2], {"prompt_mask": [[1, 1, 1]]}, ValueError, r"prompt_mask has shape \[1, 3\], expected \[1, 2\]"),
        ([1, 2, 3], {"prompt_mask": [True, False, True]}, ValueError, "prompt_mask row 0 has a gap"),
        ([[1, 2], [3, 4]], {"prompt_mask": [[1, 1], [1, 0]]}, ValueError, "prompt_mask row 1 has a gap"),
        ([[1, 2], [3, 4]], {"prompt_mask": [[1, 1], [0, 0]]}, ValueError, "prompt_mask row 1 is all False"),
        ([1, 2], {"prompt_mask": [0.0, 1.0]}, TypeError, "prompt_mask is float64, expected booleans"),
        ([1, 2], {"prompt_mask": [2, 1]}, TypeError, "prompt_mask is int64, expected booleans"),
        ([1], {"gen_length": 0}, ValueError, "gen_length is 0, expected an integer >= 1"),
        ([1], {"gen_length": 2.0}, TypeError, "gen_length is 2.0, expected an integer"),
        ([1], {"steps": 0}, ValueError, "steps is 0, expected an integer >= 1"),
        ([1], {"steps": None}, TypeError, "steps is None, expected an integer"),
        ([1], {"steps": 3, "sampler": LLaDASampler(block_length=4)}, ValueError, "steps is 3, expected a multiple"),
        ([1], {"sampler": LLaDASampler(block_length=3)}, ValueError, "gen_length is 8, expected a multiple"),
        ([1], {"sampler": "llada"}, TypeError, "sampler is str, expected a LLaDASampler"),
        ([1], {"sparse": 0.3}, TypeError, "sparse is float, expected SparseConfig"),
        ([1], {"on_step": 5}, TypeError, "on_step is 5, expected a function or None"),
        ([[1, 2], [3, 4]], {"prompt_mask": [[1, 1], [1]]}, ValueError, "prompt_mask has rows of unequal length"),
        ([1], {"seed": -1}, ValueError, "seed is -1, expected an integer >= 0"),
        ([1], {"seed": 0.5}, TypeError, "seed is 0.5, expected an integer"),
        ([1], {"temperature": 0.5}, TypeError, "temperature"),
        ([1], {"gen_length": 10**14}, MemoryError, "generate: the tokens needs"),
        ([1], {"steps": 10**13, "history": True}, MemoryError, "generate: the tokens needs"),
    ],
)
def test_errors_name_the_argument(prompt, options, error, message) -> None:
    with pytest.raises(error, match=message):
        generate(FakeModel(), prompt, **{"gen_length": 8, "steps": 8, **options})


def test_a_folder_is_not_a_model() -> None:
    with pytest.raises(TypeError, match="model is PosixPath, expected what load_model returns"):
        generate(DATA / "llada_b32", [1], gen_length=1, steps=1)
