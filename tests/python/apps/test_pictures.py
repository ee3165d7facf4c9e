"""Figures, what notebooks show, the texts of single tokens, and the drawing in a terminal."""

from __future__ import annotations

import builtins
import io
import itertools
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

import sparsed
from generations import HOSTILE, demo_generation, hostile_generation
from sparsed.apps import cli
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.pictures import live
from sparsed.apps.pictures.grid import cells_of, row_patterns, runs
from sparsed.apps.pictures.palette import confidence_shade
from sparsed.apps.pictures.pieces import token_texts

MODEL = str(demo_model_folder())


def pattern_of(mask: np.ndarray, prompt_length: int = 32) -> sparsed.BlockPattern:
    lengths = {"q_len": 16 * mask.shape[2], "kv_len": 16 * mask.shape[3]}
    return sparsed.BlockPattern.from_mask(mask, block_size=16, prompt_length=prompt_length, **lengths)


def patterns_of_demo() -> sparsed.PatternCache:
    return demo_generation()[0].groups[0].patterns


def random_pattern(batch: int = 2, heads: int = 3, blocks: int = 6) -> sparsed.BlockPattern:
    return pattern_of(np.random.default_rng(0).random((batch, heads, blocks, blocks)) < 0.4)


# --- what generate records -------------------------------------------------------------------------------------------


def test_result_knows_when_each_token_was_filled() -> None:
    model, seen = sparsed.load_model(MODEL), []
    prompt = [[0, 1, 5, 9, 30], [1, 5, 9, 30, 31]]
    mask = [[False, True, True, True, True], [True] * 5]
    result = sparsed.generate(model, prompt, gen_length=6, steps=4, prompt_mask=mask, on_step=seen.append)
    filled_at, confidence = np.full((2, 6), -1), np.full((2, 6), np.nan, np.float32)
    for info, row in itertools.product(seen, range(2)):
        filled_at[row, info.unmasked[row] - 5] = info.step
        confidence[row, info.unmasked[row] - 5] = info.confidence[row]
    assert (result.filled_at == filled_at).all() and (filled_at >= 0).all()
    assert (result.confidence == confidence).all()


def test_open_positions_of_an_interrupted_generation() -> None:
    import signal

    stop = lambda info: signal.raise_signal(signal.SIGINT)  # noqa: E731
    result = sparsed.generate(sparsed.load_model(MODEL), [1, 5, 9], gen_length=4, steps=4, on_step=stop)
    assert result.interrupted and (result.filled_at >= 0).sum() == 1
    assert (np.isnan(result.confidence) == (result.filled_at < 0)).all()


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot_draws_one_head(pyplot) -> None:
    pattern = random_pattern()
    ax = pattern.plot(2, batch=1)
    assert (ax.images[0].get_array() == pattern.to_mask()[1, 2]).all()
    assert [line.get_xdata()[0] for line in ax.lines] == [32 / 16 - 0.5, 0]  # the end of the prompt, both ways
    other = pyplot.figure().add_subplot()
    assert pattern.plot(ax=other) is other
    ax.figure.canvas.draw()


def test_plot_grid_of_heads_and_layers(pyplot) -> None:
    pattern = random_pattern()
    figure = pattern.plot_grid([2, 0], batch=1)
    assert [ax.get_title() for ax in figure.axes] == ["head 2", "head 0"]
    assert (figure.axes[0].images[0].get_array() == pattern.to_mask()[1, 2]).all()
    cache = demo_generation()[0].groups[0].patterns
    assert len(cache.plot_grid().axes) == 16
    figure = cache.plot_grid([3, 1], [2])
    assert [ax.get_title() for ax in figure.axes] == ["layer 3, head 2", "layer 1, head 2"]
    figure.canvas.draw()


def test_plot_result(pyplot) -> None:
    result, _ = demo_generation()
    order, times, _ = (figure := result.plot()).axes
    offsets = order.collections[0].get_offsets()
    assert (offsets[:, 0] == result.filled_at[0]).all() and (offsets[:, 1] == np.arange(24)).all()
    assert len(times.patches) == 16
    figure.canvas.draw()
    hostile_generation()[0].plot().canvas.draw()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: random_pattern().plot(3), "plot: head is 3, expected 0 ... 2"),
        (lambda: random_pattern().plot(batch=-1), "plot: batch is -1, expected 0 ... 1"),
        (lambda: random_pattern().plot_grid([0, 5]), "plot_grid: head is 5, expected 0 ... 2"),
        (lambda: random_pattern().plot_grid([]), "plot_grid: heads is empty"),
        (lambda: patterns_of_demo().plot_grid([]), "plot_grid: layers is empty"),
        (lambda: demo_generation()[0].plot(1), "plot: row is 1, expected 0 ... 0"),
        (lambda: demo_generation()[0].page(demo_generation()[1], row=1), "page: row is 1, expected 0 ... 0"),
    ],
)
def test_figure_errors_name_the_argument(draw, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        draw()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: random_pattern().plot("1"), "plot: head is '1', expected an integer"),
        (lambda: random_pattern().plot(1.0), "plot: head is 1.0, expected an integer"),
        (lambda: random_pattern().plot(batch=None), "plot: batch is None, expected an integer"),
        (lambda: random_pattern().plot_grid("01"), "plot_grid: heads is '01', expected integers"),
        (lambda: patterns_of_demo().plot_grid("01"), "plot_grid: layers is '01', expected integers"),
        (lambda: demo_generation()[0].plot(None), "plot: row is None, expected an integer"),
        (lambda: demo_generation()[0].page(demo_generation()[1], title=None), "page: title is None, expected a text"),
    ],
)
def test_figure_errors_of_another_type(draw, message) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        draw()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return plain_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        random_pattern().plot()
    assert "<svg" in random_pattern()._repr_html_()


# --- what notebooks show ---------------------------------------------------------------------------------------------


def drawn(path: str, rows: int, columns: int) -> np.ndarray:
    """The cells that the runs of an SVG path cover."""
    cells = np.zeros((rows, columns), np.bool_)
    for first, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1H\d+z", path):
        cells[int(y), int(first) : int(first) + int(width)] = True
    return cells


def test_pattern_html_draws_the_mask() -> None:
    pattern = random_pattern()
    root = ElementTree.fromstring(pattern._repr_html_())
    figures = root.findall(".//svg")
    assert len(figures) == 3 and "3 heads, 6 x 6 blocks of 16" in "".join(root.itertext())
    for head, figure in enumerate(figures):
        cells = [drawn(path.get("d"), 6, 6) for path in figure.findall("path[@fill-opacity]")]
        assert (np.any(cells, axis=0) == pattern.to_mask()[0, head]).all()


def test_large_patterns_are_drawn_small() -> None:
    pattern = sparsed.BlockPattern.sliding_window(1, 64, window=4000, block_size=16, q_len=16000, kv_len=16000)
    html = pattern._repr_html_()
    assert html.count("<svg") == 16 and "heads 0 ... 15 are shown" in html and len(html) < 120_000


def test_cache_and_result_html() -> None:
    result, _ = demo_generation()
    cache = result.groups[0].patterns
    assert cache._repr_html_().count("<svg") == 16
    root = ElementTree.fromstring(result._repr_html_())
    names = [row[0].text or row[0][0].tail.strip() for row in root.findall(".//tr")]
    assert names == ["phase", "dense", "select", "sparse", "all"]
    bars, order = root.findall("svg")
    assert len(bars) == 16 and len(order) == 24
    empty = sparsed.PatternCache(sparsed.SparseConfig(), steps=4, prompt_length=8)
    assert "0 layers hold patterns" in empty._repr_html_()


def test_html_of_an_interrupted_result() -> None:
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs) -> None:
            assert tag in {"div", "b", "span", "table", "tr", "th", "td", "svg", "path"}

    html = hostile_generation()[0]._repr_html_()
    Tags().feed(html)
    assert "interrupted" in html


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "side"), [((7, 10), 3), ((7, 10), 10), ((3, 600), 2), ((5, 5), 4)])
def test_cells_count_their_blocks(shape: tuple[int, int], side: int) -> None:
    masks = np.random.default_rng(0).random((2, *shape)) < 0.5
    cells = cells_of(masks).shrunk(side)
    factor = math.ceil(max(shape) / side)
    assert cells.factor == factor
    for i, j in np.ndindex(cells.blocks.shape):
        part = masks[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        assert (cells.counts[:, i, j] == part.sum(axis=(1, 2))).all() and cells.blocks[i, j] == part[0].size
    again = cells.shrunk(max(1, side // 2))  # from cells as from masks
    assert again.factor % factor == 0 and (again.counts.sum(axis=(1, 2)) == masks.sum(axis=(1, 2))).all()
    assert again.blocks.sum() == math.prod(shape)


def test_runs_of_a_row() -> None:
    assert list(runs(np.array([1, 1, 0, 1, 0, 0, 1], np.bool_))) == [(0, 2), (3, 4), (6, 7)]
    assert list(runs(np.zeros(3, np.bool_))) == []


def test_confidence_shade() -> None:
    shade = confidence_shade(np.array([0.2, np.nan, 1], np.float32))
    assert shade == pytest.approx([0.2, 0, 1])
    assert confidence_shade(np.array([-1, 0], np.float32)) == pytest.approx([np.exp(-1), 1])
    assert confidence_shade(np.array([1e-10, 1e-10], np.float32)) == pytest.approx([1, 1])  # of certain tokens
    assert confidence_shade(np.array([-2, np.nan], np.float32)) == pytest.approx([np.exp(-2), 0])
    assert confidence_shade(np.array([0, 0], np.float32)) == pytest.approx([0, 0])


def test_row_patterns_of_padded_rows() -> None:
    sparse = sparsed.SlidingWindow(16, 16)
    prompt, mask = [[0, 1, 5], [1, 5, 9], [1, 5, 8]], [[False, True, True], [True] * 3, [True] * 3]
    result = sparsed.generate(
        sparsed.load_model(MODEL), prompt, prompt_mask=mask, gen_length=40, steps=1, sparse=sparse
    )
    found = [row_patterns(result, row) for row in range(3)]
    assert [where.batch for where in found] == [0, 0, 1]
    assert found[1].cache is found[2].cache and found[0].cache is not found[1].cache
    assert row_patterns(hostile_generation()[0], 0) is None


def test_token_texts_join_to_the_text() -> None:
    result, tokenizer = demo_generation()
    ids = result.tokens[0].tolist()
    assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=False)
    result, tokenizer = hostile_generation()
    texts = token_texts(tokenizer, result.generated[0].tolist())
    assert texts == ["<end>", *HOSTILE, "", "", "€", "o"]


# --- the terminal ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal that knows what is on it; `encoding` as StringIO has none."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        lines: list[str] = [""]
        for part in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\n)", self.getvalue()):
            if part == "\n":
                lines.append("")
            elif up := re.fullmatch(r"\x1b\[(\d+)F", part):
                del lines[-int(up[1]) - 1 :]
                lines.append("")
            elif not part.startswith("\x1b"):
                lines[-1] += part
        return lines


def steps_of(result: sparsed.GenerationResult) -> list[sparsed.StepInfo]:
    infos = []
    for step in result.stats:
        new = np.flatnonzero(result.filled_at[0] == step.step)
        positions, confidence = (new + result.prompt_length,), (result.confidence[0, new],)
        facts = (step.step, step.phase, step.seconds, step.density)
        none = (np.empty(0, np.int64),)
        infos.append(sparsed.StepInfo(*facts, result.tokens, positions, confidence, none))
    return infos


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch):
    def of(columns: int, rows: int) -> Terminal:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(rows))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return Terminal()

    return of


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (24, 10), (12, 3), (4, 2)])
def test_live_stays_inside_the_terminal_and_is_erased(screen, columns, rows) -> None:
    for result, tokenizer in (demo_generation(), hostile_generation()):
        terminal = screen(columns, rows)
        with live.LiveText(terminal, tokenizer, result.generated.shape[1]) as draw:
            for info in steps_of(result):
                draw(info)
                *lines, last = terminal.lines
                assert last == "" and len(lines) < max(rows, 3)
                assert all(sum(map(live.letter_width, line)) < columns for line in lines)
        assert terminal.lines == [""]
        assert terminal.getvalue().startswith("\x1b[?25l") and terminal.getvalue().endswith("\x1b[?25h")


def test_live_text(screen) -> None:
    result, tokenizer = demo_generation()
    terminal = screen(100, 24)
    with live.LiveText(terminal, tokenizer, 24) as draw:
        first, *others = steps_of(result)
        draw(first)
        assert terminal.lines[0].count("░░") == 24 - len(first.unmasked[0])
        for info in others:
            draw(info)
        assert terminal.lines[0].startswith(tokenizer.text(result.generated[0]))
        assert "24/24  step 15  sparse" in terminal.lines[-2]


def test_live_shows_no_control_characters(screen) -> None:
    result, tokenizer = hostile_generation()
    terminal = screen(60, 24)
    with live.LiveText(terminal, tokenizer, result.generated.shape[1]) as draw:
        for info in steps_of(result):
            draw(info)
        assert "日本語" in terminal.lines[0] and terminal.lines[1].startswith("[2J") and "€" in terminal.lines[1]
    assert "\x1b[2J" not in terminal.getvalue()


def test_live_without_colours_and_in_another_encoding(screen, monkeypatch) -> None:
    result, tokenizer = hostile_generation()
    terminal = screen(60, 24)
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.encoding = "ascii"
    with live.LiveText(terminal, tokenizer, result.generated.shape[1]) as draw:
        draw(steps_of(result)[-1])
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.getvalue()) and terminal.getvalue().isascii()


# --- the command line ------------------------------------------------------------------------------------------------

SHORT = ("generate", MODEL, "--prompt", "the sun is", "--gen-length", "8", "--steps", "4")


def test_live_needs_a_terminal(capsys, screen, monkeypatch) -> None:
    assert cli.main([*SHORT]) == 0
    text = capsys.readouterr().out
    assert cli.main([*SHORT, "--live"]) == 0
    assert capsys.readouterr().out == text
    terminal = screen(60, 20)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main([*SHORT, "--live"]) == 0
    assert terminal.getvalue().count("\x1b[J") == 4 and terminal.lines == [text.strip(), ""]
    monkeypatch.setenv("TERM", "dumb")
    assert not live.can_draw(terminal)


def test_html_is_written(capsys, tmp_path) -> None:
    assert cli.main([*SHORT, "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "<title>demo_model</title>" in page
    capsys.readouterr()
    assert cli.main([*SHORT, "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err
