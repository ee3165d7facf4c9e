"""The page that plays a generation, in headless Chromium."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from browser import Browser, find_browser
from generations import HOSTILE, demo_generation, hostile_generation

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


# --- without a browser -----------------------------------------------------------------------------------------------


def test_the_page_holds_the_generation(files) -> None:
    result, tokenizer = demo_generation()
    data = data_of(files["demo"].read_text(encoding="utf-8"))
    assert [token["id"] for token in data["tokens"]] == result.generated[0].tolist()
    assert [token["step"] for token in data["tokens"]] == result.filled_at[0].tolist()
    assert [step["phase"] for step in data["steps"]] == [step.phase for step in result.stats]
    assert data["prompt"] == tokenizer.decode(result.tokens[0, : result.prompt_length], skip_special_tokens=False)
    patterns, cache = data["patterns"], result.groups[0].patterns
    cells = np.frombuffer(zlib.decompress(base64.b64decode(patterns["cells"])), np.uint8)
    masks = np.stack([cache.pattern(layer).to_mask()[0] for layer in cache.layers])
    assert (cells.reshape(masks.shape) == 255 * masks).all()


def test_the_page_names_no_address(files) -> None:
    for path in files.values():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"\w+://[^\"'\s]*", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<(link|script|img)[^>]*(src|href)=\"(?!data:)", text)


def test_hostile_text_stays_data(files) -> None:
    text = files["hostile"].read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<img" not in text and "{{" not in text
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
    assert page.evaluate("document.querySelectorAll('.thumb canvas').length") == 16
    page.evaluate("document.querySelectorAll('.thumb')[6].focus()")
    page.press("Enter")
    assert page.evaluate(DIALOG) and page.evaluate(TITLE) == "Layer 1, head 2"
    for key, title in (
        ("ArrowRight", "Layer 1, head 3"),
        ("ArrowRight", "Layer 1, head 0"),
        ("ArrowUp", "Layer 0, head 0"),
    ):
        page.press(key)
        assert page.evaluate(TITLE) == title
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
    assert page.evaluate(FOCUSED) == "Layer 1, head 2: open large"
    page.click(".thumb")
    page.click("#close")
    assert not page.evaluate(DIALOG)


def test_everything_is_reached_by_tab_and_has_a_name(page: Browser) -> None:
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    for name in ("text", "slider", "play", "speed", "colour", "Layer 3, head 3: open large", "SUMMARY"):
        assert name in reached
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if node.get("role", {}).get("value") in {"button", "slider", "combobox"}]
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
    script = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
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
