"""The page that plays a generation, in headless Chromium."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sparsed
from browser import Browser, find_browser
from generations import HOSTILE, demo_generation, hostile_generation

pytestmark = pytest.mark.slow

WIDTHS = (1280, 390)
NOW = "Number(document.getElementById('slider').value)"
OPEN = "document.querySelectorAll('.token.open').length"
FOCUSED = "document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.tagName"
DIALOG = "document.getElementById('large').open"
TITLE = "document.getElementById('large-title').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    pages = {"demo": demo_generation(), "hostile": hostile_generation()}
    for name, (result, tokenizer) in pages.items():
        (folder / f"{name}.html").write_text(result.page(tokenizer, title=f"<{name}> & co"), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture
def page(browser: Browser, files: dict[str, Path]) -> Iterator[Browser]:
    """The demo's generation at 1280 pixels; no errors and no requests but for the page itself."""
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.prefer("light")
    browser.open(files["demo"])
    browser.wait_for("!document.getElementById('patterns').hidden")
    yield browser
    assert browser.errors == []
    assert {re.sub(r".*/", "", url) for url in browser.requests} <= {"demo.html", "hostile.html"}


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def levels_of(patterns: dict, size: str) -> np.ndarray:
    """(layers, heads, rows, columns), unpacked as the page does it."""
    drawing = patterns[size]
    parts = [np.frombuffer(zlib.decompress(base64.b64decode(part)), np.uint8) for part in drawing["cells"]]
    shape = (patterns["heads"], drawing["rows"], drawing["columns"])
    if drawing["bits"] == 1:
        flat = [np.unpackbits(part, count=np.prod(shape)) for part in parts]
    else:
        flat = [np.stack([part >> 4, part & 15], axis=-1).ravel()[: np.prod(shape)] for part in parts]
    return np.stack([part.reshape(shape) for part in flat])


def generation_of(masks: np.ndarray) -> tuple[sparsed.GenerationResult, sparsed.Tokenizer]:
    """The demo's generation as if its layers had selected these masks (layers, heads, blocks, blocks)."""
    result, tokenizer = demo_generation()
    config, length = result.groups[0].patterns.config, 16 * masks.shape[-1]
    cache = sparsed.PatternCache(config, steps=16, prompt_length=length - 24)
    for layer, mask in enumerate(masks):
        pattern = sparsed.BlockPattern.from_mask(
            mask[None], block_size=16, q_len=length, kv_len=length, prompt_length=length - 24
        )
        cache.set_pattern(layer, pattern)
    return dataclasses.replace(result, groups=(dataclasses.replace(result.groups[0], patterns=cache),)), tokenizer


# --- without a browser -----------------------------------------------------------------------------------------------


def test_the_page_holds_the_generation(files) -> None:
    result, tokenizer = demo_generation()
    data = data_of(files["demo"].read_text(encoding="utf-8"))
    assert [token["id"] for token in data["tokens"]] == result.generated[0].tolist()
    assert [token["step"] for token in data["tokens"]] == result.filled_at[0].tolist()
    assert [step["phase"] for step in data["steps"]] == [step.phase for step in result.stats]
    assert data["prompt"] == tokenizer.decode(result.tokens[0, : result.prompt_length], skip_special_tokens=False)
    cache = result.groups[0].patterns
    masks = np.stack([cache.pattern(layer).to_mask()[0] for layer in cache.layers])
    assert data["patterns"]["large"]["bits"] == 1
    assert (levels_of(data["patterns"], "large") == masks).all()


def test_cells_of_several_blocks() -> None:
    masks = np.random.default_rng(0).random((32, 32, 150, 150)) < 0.3
    masks[0, 0] = True
    masks[1, 1] = False
    masks[2, 2, 0, 0] = masks[2, 2, -1, -1] = True  # the last cell has one block
    result, tokenizer = generation_of(masks)
    patterns = data_of(result.page(tokenizer))["patterns"]
    for size, factor, side in (("large", 2, 75), ("small", 8, 19)):
        drawing = patterns[size]
        assert (drawing["factor"], drawing["rows"], drawing["columns"], drawing["bits"]) == (factor, side, side, 4)
        padded = np.pad(masks, ((0, 0), (0, 0), *[(0, side * factor - 150)] * 2))
        counts = padded.reshape(32, 32, side, factor, side, factor).sum(axis=(3, 5))
        heights = np.minimum(factor, 150 - factor * np.arange(side))
        blocks = np.outer(heights, heights)
        levels = levels_of(patterns, size)
        assert ((levels == 0) == (counts == 0)).all() and ((levels == 15) == (counts == blocks)).all()
        assert (levels[counts < blocks] == np.ceil(14 * counts / blocks)[counts < blocks]).all()


def test_the_page_names_no_address(files) -> None:
    for path in files.values():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"\w+://[^\"'\s]*", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<(link|script|img)[^>]*(src|href)=\"(?!data:)", text)


def test_hostile_text_stays_data(files) -> None:
    text = files["hostile"].read_text(encoding="utf-8")
    assert text.count("</script>") == 3 and "<img" not in text and "{{" not in text
    assert [token["text"] for token in data_of(text)["tokens"]][1 : len(HOSTILE) + 1] == HOSTILE


# --- in the browser --------------------------------------------------------------------------------------------------


def test_the_slider_moves_and_tokens_appear(page: Browser) -> None:
    result, _ = demo_generation()
    steps, tokens = len(result.stats), result.filled_at.shape[1]
    assert page.evaluate(NOW) == steps and page.evaluate(OPEN) == 0
    for key, expected in (("ArrowLeft", steps - 1), ("Home", 0), ("ArrowRight", 1), ("End", steps), ("ArrowLeft", 15)):
        page.press(key)
        assert page.evaluate(NOW) == expected
        assert page.evaluate(OPEN) == int((result.filled_at >= expected).sum())
    new = [int(i) for i in page.evaluate("[...document.querySelectorAll('.token.new')].map((e) => e.dataset.index)")]
    assert new == np.flatnonzero(result.filled_at[0] == 14).tolist()
    box = page.evaluate(
        "(() => { const b = document.getElementById('slider').getBoundingClientRect();"
        " return [b.x, b.y + b.height / 2, b.width] })()"
    )
    for kind, share in (("mousePressed", 0.9), ("mouseMoved", 0.5), ("mouseReleased", 0.5)):
        place = {"x": box[0] + share * box[2], "y": box[1]}
        page.call("Input.dispatchMouseEvent", type=kind, **place, button="left", buttons=1, clickCount=1)
    assert page.evaluate(NOW) == steps // 2
    assert tokens > page.evaluate(OPEN) > 0


def test_phase_and_time_of_each_step(page: Browser) -> None:
    result, _ = demo_generation()
    page.press("Home")
    for step in result.stats:
        page.press("ArrowRight")
        assert page.evaluate("document.getElementById('phase').textContent") == step.phase
        assert page.evaluate("document.getElementById('step').textContent") == f"Step {step.step}"
        assert f"density {step.density:.2f}" in page.evaluate("document.getElementById('detail').textContent")
    assert page.evaluate("document.querySelectorAll('#bars rect').length") == len(result.stats)


def test_space_plays_to_the_end_and_escape_stops(page: Browser) -> None:
    playing = "document.body.classList.contains('playing')"
    page.press(" ")
    assert page.evaluate(playing)
    page.wait_for(f"{NOW} > 2")
    page.press("Escape")
    assert not page.evaluate(playing) and 2 < page.evaluate(NOW) < 16
    page.evaluate("document.getElementById('speed').value = 'fast'")
    page.click("#play")
    page.wait_for(f"!{playing}")
    assert page.evaluate(NOW) == 16
    page.press(" ")  # the button has the focus: one toggle, not two
    assert page.evaluate(playing)
    page.press("Escape")


def test_bars_and_tokens_answer_the_pointer(page: Browser) -> None:
    page.click("#bars")
    assert page.evaluate(NOW) == 8
    page.click(".token:not(.open)")
    assert page.evaluate("document.getElementById('token').textContent").startswith("Token ")


def test_patterns_open_large(page: Browser) -> None:
    assert page.evaluate("document.querySelectorAll('.head').length") == 16
    page.evaluate("document.querySelectorAll('.head')[6].focus()")
    page.press("Enter")
    assert page.evaluate(DIALOG) and page.evaluate(TITLE) == "Layer 1, head 2"
    for key, title in (
        ("ArrowRight", "Layer 1, head 3"),
        ("ArrowRight", "Layer 1, head 0"),
        ("ArrowUp", "Layer 0, head 0"),
    ):
        page.press(key)
        assert page.evaluate(TITLE) == title
        page.wait_for(f"document.getElementById('large-canvas').dataset.drawn === {title!r}")
    pixels = """((blocks) => {
      const canvas = document.getElementById('large-canvas'), size = canvas.width / blocks;
      const row = canvas.getContext('2d').getImageData(0, Math.floor(size / 3), canvas.width, 1).data;
      return [...Array(blocks).keys()].map((i) => row[4 * Math.floor((i + .5) * size) + 3]);
    })(%d)"""
    pattern = demo_generation()[0].groups[0].patterns.pattern(0)
    first_row = pattern.to_mask()[0, 0, 0]
    drawn = np.array(page.evaluate(pixels % len(first_row))) > 0
    line = pattern.prompt_length // pattern.block_size  # the end of the prompt is drawn over this block
    assert (np.delete(drawn, line) == np.delete(first_row, line)).all()
    page.press("Escape")
    assert not page.evaluate(DIALOG) and page.evaluate(NOW) == 16
    page.wait_for(f"({FOCUSED}).startsWith('Layer 0, head 0, density ')")  # the one that was shown last
    page.click(".head")
    page.click("#close")
    assert not page.evaluate(DIALOG)


def test_the_overview_is_one_stop_of_the_keyboard(page: Browser) -> None:
    page.evaluate("document.querySelector('.head[tabindex=\"0\"]').focus()")
    for key, place in (
        ("ArrowRight", (0, 1)),
        ("ArrowDown", (1, 1)),
        ("End", (1, 3)),
        ("ArrowRight", (1, 3)),
        ("Home", (1, 0)),
        ("ArrowLeft", (1, 0)),
        ("ArrowUp", (0, 0)),
        ("ArrowUp", (0, 0)),
    ):
        page.press(key)
        name = f"Layer {place[0]}, head {place[1]}"
        assert page.evaluate(FOCUSED).startswith(f"{name}, density ")
        assert page.evaluate("document.getElementById('head').textContent").startswith(f"{name}: density ")
        assert page.evaluate(NOW) == 16  # the keys do not move the step
    assert page.evaluate("document.querySelectorAll('.head[tabindex=\"0\"]').length") == 1


def test_many_layers_are_one_screen(page: Browser, tmp_path) -> None:
    i = np.arange(40)
    masks = np.array([[abs(i[:, None] - i) <= layer + head for head in range(32)] for layer in range(32)])
    result, tokenizer = generation_of(masks)
    (tmp_path / "demo.html").write_text(result.page(tokenizer), encoding="utf-8")
    page.open(tmp_path / "demo.html")
    page.wait_for("!document.getElementById('patterns').hidden")
    assert page.evaluate("document.querySelectorAll('.head').length") == 1024
    assert page.evaluate("document.documentElement.scrollHeight") < 2000
    # The picture of each head lies under its button: the wider the band, the darker its upper right corner.
    script = """(() => {
      const canvas = document.querySelector('#heads canvas'), box = canvas.getBoundingClientRect();
      const scale = canvas.width / box.width;
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      return [...document.querySelectorAll('.head')].map((head) => {
        const place = head.getBoundingClientRect();
        const x = (place.x - box.x + place.width * .6) * scale, y = (place.y - box.y + place.height * .2) * scale;
        return pixels[4 * (Math.round(y) * canvas.width + Math.round(x))];
      });
    })()"""
    red = np.array(page.evaluate(script)).reshape(32, 32)
    wide = np.add.outer(i[:32], i[:32])
    assert (red[wide > 20] < 80).all() and (red[wide < 12] > 200).all()
    page.click(".head[aria-label^='Layer 31, head 31,']")
    assert page.evaluate(TITLE) == "Layer 31, head 31"
    page.wait_for("document.getElementById('large-canvas').dataset.drawn === 'Layer 31, head 31'")
    page.press("Escape")


def test_everything_is_reached_by_tab_and_has_a_name(page: Browser) -> None:
    reached = []
    for _ in range(24):
        page.press("Tab")
        reached.append(re.sub(", density.*", "", page.evaluate(FOCUSED)))
    for name in ("text", "slider", "play", "speed", "colour", "Layer 0, head 0", "SUMMARY"):
        assert name in reached
    assert "Layer 0, head 1" not in reached
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [node.get("role", {}).get("value") for node in tree]
    assert (roles.count("grid"), roles.count("row"), roles.count("rowheader")) == (1, 5, 4)
    controls = [
        node for node, role in zip(tree, roles, strict=True) if role in {"button", "slider", "combobox", "gridcell"}
    ]
    assert len(controls) >= 24 and all(node["name"]["value"] for node in controls)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["demo", "hostile"])
def test_screenshots(page: Browser, files, tmp_path, width, scheme, name) -> None:
    page.resize(width, 900)
    page.prefer(scheme)
    page.open(files[name])
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    page.screenshot(tmp_path / "page.png")
    picture = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">I", picture[16:20])[0] == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(244, 245, 248)", "dark": "rgb(15, 18, 25)"}[scheme]


def test_text_has_contrast(page: Browser, files) -> None:
    """At least 4.5 : 1 for all text that is shown, as WCAG AA asks."""
    script = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        for key in ("End", "ArrowLeft", "Home"):
            page.press(key)
            assert page.evaluate(script) == []


def test_hostile_text_is_shown_as_text(page: Browser, files) -> None:
    page.open(files["hostile"])
    assert page.evaluate("document.querySelector('h1').textContent") == "<hostile> & co"
    shown = page.evaluate("[...document.querySelectorAll('.token')].map((e) => e.textContent)")
    assert shown[0] == "<end>" and shown[1:6] == HOSTILE[:5] and shown[-2] == "€"
    assert page.evaluate(OPEN) == 1 and page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.getElementById('patterns').hidden")
