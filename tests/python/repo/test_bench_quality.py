"""`python -m bench.quality`: its prompts, its table, and that a file of results grows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from bench import int8_logits, quality
from bench.int8_models import VARIANTS

import sparsed
from sparsed.apps.demo import demo_model_folder
from sparsed.models.tokenizer import Tokenizer


def digits_tokenizer() -> Tokenizer:
    """A tokenizer of words with names between "9" and "one", whose numbers are digits."""
    words = (
        "<unk> 0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j one magic number the for is numbers and are what ; . ?".split()
    )
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, {}, "{{ messages[0]['content'] }}")


def test_prompts_hold_the_facts_that_they_ask_for() -> None:
    shipped = sparsed.load_tokenizer(demo_model_folder())
    for tokenizer, make in ((shipped, quality.shipped_prompt), (digits_tokenizer(), quality.digits_prompt)):
        prompt = make(tokenizer, 300, 2, 5)
        assert 240 < len(prompt.ids) <= 280
        assert len(prompt.answers) == quality.ASKED and make(tokenizer, 300, 2, 5) == prompt
        assert make(tokenizer, 300, 3, 5).answers != prompt.answers
    text = digits_tokenizer().decode(prompt.ids)
    assert text.count("magic number for") == quality.FACTS
    for answer in prompt.answers:
        key, _is, number = answer.removesuffix(" ;").partition(" is ")
        assert f"the magic number for {key} is {number} ." in text and key in text.rpartition("what")[2]


def test_rows_pair_each_method_with_dense() -> None:
    cells = {
        "dense": {"right": [[1, 1], [1, 0]], "forwards": 32, "full_passes": 32},
        "fast": {"right": [[1, 0], [1, 0]], "forwards": 6, "full_passes": 2},
    }
    dense, fast = quality.rows_of(cells)
    assert dense == ("dense", "4", "75.0", "-", "16.0", "16.0")
    assert fast[:3] == ("fast", "4", "50.0") and fast[3].startswith("-25.0 (") and fast[4:] == ("3.0", "1.0")


@pytest.mark.slow
def test_a_file_of_results_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = tmp_path / "results.json"

    def cells(*arguments: str) -> dict:
        options = ["shipped", "--lengths", "256", "--steps", "4", "--json", str(path), *arguments]
        monkeypatch.setattr(sys, "argv", ["quality", *options])
        quality.main()
        return json.loads(path.read_text(encoding="utf-8"))["cells"]["shipped 256"]

    first = cells("--prompts", "1", "--methods", "dense", "preset fast")
    assert set(first) == {"dense", "preset fast"} and len(first["dense"]["right"]) == 1
    second = cells("--prompts", "2", "--methods", "preset fast")
    assert second["dense"] == first["dense"] and len(second["preset fast"]["right"]) == 2
    assert second["preset fast"]["right"][0] == first["preset fast"]["right"][0]
    assert "| preset fast | 8 |" in quality.markdown(json.loads(path.read_text(encoding="utf-8")))
    assert "preset fast" in capsys.readouterr().out


def test_rows_of_weights_are_paired_with_their_method() -> None:
    cells = {
        "dense": {"right": [[1, 1], [1, 0]], "forwards": 32, "full_passes": 32},
        "dense; weights int8": {"right": [[1, 1], [1, 1]], "forwards": 32, "full_passes": 32},
        "SparseD": {"right": [[0, 0], [0, 0]], "forwards": 32, "full_passes": 32},
        "SparseD; weights int8": {"right": [[0, 0], [0, 0]], "forwards": 32, "full_passes": 32},
    }
    assert quality.header_of(cells)[3] == "minus bfloat16" and quality.header_of({"dense": {}})[3] == "minus dense"
    differences = [row[3] for row in quality.rows_of(cells)]
    assert differences[0] == differences[2] == "-"
    assert differences[1].startswith("+25.0 (") and differences[3].startswith("+0.0 (")


def test_rows_of_predictions() -> None:
    def cell(agree: list[list[int]], forwards: list[int]) -> dict:
        shares = [str(share) for share in int8_logits.SHARES]
        return {"agree": dict.fromkeys(shares, agree), "kl": {share: [0.25] for share in shares}, "forwards": forwards}

    rows = int8_logits.rows_of({"bfloat16": cell([], [10, 10]), "int8": cell([[2, 2], [1, 2]], [11, 10])})
    assert rows[0][-2:] == ("10.00", "-") and len(rows[0]) == len(rows[1]) == len(int8_logits.header())
    assert rows[1][1] == "75.00" and rows[1][-3:-1] == ("0.25000", "10.50") and rows[1][-1].startswith("+5.0 (")


@pytest.mark.slow
def test_predictions_of_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = tmp_path / "results.json"
    options = ["shipped", "--lengths", "256", "--prompts", "2", "--weights", "int8", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["int8_logits", *options])
    int8_logits.main()
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = content["predictions"]["shipped 256"]
    assert set(cells) == {"bfloat16", "float32", "int8"}
    for name in ("float32", "int8"):
        assert all(np.divide(*np.sum(cells[name]["agree"][str(share)], axis=0)) > 0.8 for share in int8_logits.SHARES)
        assert all(0 <= kl < 0.1 for share in int8_logits.SHARES for kl in cells[name]["kl"][str(share)])
        assert len(cells[name]["forwards"]) == 2
    assert "| int8 | " in int8_logits.markdown(content) and "int8" in capsys.readouterr().out


@pytest.mark.slow
def test_answers_with_int8_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    options = ["shipped", "--lengths", "256", "--steps", "4", "--prompts", "1", "--methods", "dense"]
    monkeypatch.setattr(sys, "argv", ["quality", *options, "--weights", *VARIANTS, "--json", str(path)])
    quality.main()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]["shipped 256"]
    assert set(cells) == {"dense", *(f"dense; weights {name}" for name in VARIANTS[1:])}
