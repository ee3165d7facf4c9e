"""`sparsed generate`: prompts, options, what it says on stderr."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import sparsed
from paths import DATA
from sparsed.apps import cli, generate_command
from sparsed.models.files import demo_model_folder
from sparsed.models.tokenizer import Tokenizer

MODEL = str(demo_model_folder())
TEXT = "the grass is green . the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"
SHORT = ("--gen-length", "8", "--steps", "8")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_generate_answers(capsys) -> None:
    assert run(capsys, "generate", MODEL, "--prompt", TEXT, *SHORT, "--dense") == (0, "zileba is 107 ;\n", "")


@pytest.mark.parametrize("order", [("demo", TEXT, *SHORT), (*SHORT, "demo", TEXT), ("demo", *SHORT, TEXT)])
def test_the_prompt_stands_behind_the_model(capsys, tmp_path, monkeypatch, order) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "generate", *order)[:2] == (0, "zileba is 107 ;\n")


def test_a_folder_called_demo_comes_first(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sparsed.load_tokenizer("demo").vocab_size == sparsed.load_model("demo").config.vocab_size == 1579
    (tmp_path / "demo").symlink_to(DATA / "llada_b32")
    assert sparsed.load_model("demo").config.vocab_size < 300
    (tmp_path / "demo").unlink()
    (tmp_path / "demo").mkdir()
    status, _, err = run(capsys, "generate", "demo", TEXT)
    assert status == 2 and "demo/config.json does not exist" in err


def test_generate_reads_files_and_stdin(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT, encoding="utf-8")
    short = ("--gen-length", "8", "--steps", "4", "--dense")
    from_file = run(capsys, "generate", MODEL, "--prompt-file", str(tmp_path / "prompt.txt"), *short)
    assert from_file == run(capsys, "generate", MODEL, "--prompt", TEXT, *short)
    with (tmp_path / "prompt.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(capsys, "generate", MODEL, *short) == from_file
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff" + TEXT))
    assert run(capsys, "generate", MODEL, *short) == from_file


def stdin_of(data: bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "utf-16"])
def test_every_source_of_a_prompt_reads_the_same_text(capsys, tmp_path, monkeypatch, encoding) -> None:
    lines = TEXT.replace(" . ", " .\n")
    data = codecs.BOM_UTF8 + lines.replace("\n", "\r\n").encode()
    (tmp_path / "prompt.txt").write_bytes(data)
    seen = []
    monkeypatch.setattr(Tokenizer, "chat", lambda self, text: seen.append(text) or self.encode(text))
    short = (MODEL, "--chat", "--gen-length", "1", "--steps", "1", "--dense")
    assert run(capsys, "generate", *short, "--prompt-file", str(tmp_path / "prompt.txt"))[0] == 0
    monkeypatch.setattr(sys, "stdin", stdin_of(data, encoding))
    assert run(capsys, "generate", *short)[0] == 0
    assert run(capsys, "generate", *short, "--prompt", "\ufeff" + lines)[0] == 0
    assert run(capsys, "generate", *short, "\ufeff" + lines)[0] == 0
    for dash in (["-"], ["--prompt-file", "-"]):
        monkeypatch.setattr(sys, "stdin", stdin_of(data, encoding))
        assert run(capsys, "generate", *short, *dash)[0] == 0
    assert seen == 6 * [lines]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("the".encode("utf-16"), "stdin is not UTF-8: it is UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid 1", "stdin is a Git LFS pointer"),
        (codecs.BOM_UTF8, "stdin is empty"),
    ],
)
def test_stdin_is_refused_where_a_prompt_file_is(capsys, monkeypatch, data, message) -> None:
    monkeypatch.setattr(sys, "stdin", stdin_of(data))
    status, _, err = run(capsys, "generate", MODEL)
    assert status == 2 and message in err


def test_a_prompt_that_is_the_name_of_a_file_is_warned_of(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sun").write_text(TEXT, encoding="utf-8")
    short = ("--gen-length", "2", "--steps", "2", "--dense")
    assert "the name of a file; --prompt-file sun reads it" in run(capsys, "generate", "demo", "sun", *short)[2]
    assert "name of a file" not in run(capsys, "generate", "demo", "--prompt", "sun", *short)[2]
    assert "name of a file" not in run(capsys, "generate", "demo", "the sun " * 99, *short)[2]


@pytest.mark.parametrize("text", ["", "\n", " \t \n"])
def test_an_empty_prompt_is_an_error(capsys, tmp_path, monkeypatch, text) -> None:
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    status, out, err = run(capsys, "generate", MODEL, "--prompt-file", str(tmp_path / "prompt.txt"))
    assert (status, out) == (2, "") and "--prompt-file" in err and "prompt.txt is empty" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    status, out, err = run(capsys, "generate", MODEL)
    assert (status, out, err) == (2, "", "sparsed: error: stdin is empty, expected the text of a prompt\n")


def test_stdin_that_is_no_text(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the \xff"), encoding="utf-8"))
    status, _, err = run(capsys, "generate", MODEL)
    assert status == 2 and "stdin is not UTF-8" in err


def test_generate_options_reach_the_library(capsys, monkeypatch) -> None:
    calls = []

    def note(model, prompt_ids, **options):
        calls.append((prompt_ids, options))
        return sparsed.generate(model, prompt_ids, gen_length=2, steps=1)

    monkeypatch.setattr(generate_command, "generate", note)
    tokenizer = sparsed.load_tokenizer(MODEL)

    def options_of(*arguments: str):
        assert run(capsys, "generate", MODEL, "--prompt", "the sun", *arguments)[0] == 0
        return calls[-1]

    prompt, options = options_of()
    assert prompt == tokenizer.chat("the sun")
    assert options == {
        "gen_length": 128,
        "steps": 128,
        "sparse": sparsed.SparseConfig(),
        "kv_cache": None,
        "sampler": sparsed.LLaDASampler(),
        "seed": None,
        "on_step": None,
        "progress": False,
    }
    prompt, options = options_of("--raw", "--seed", "3", "--block-length", "4", "--threshold", "0.9", "--rho", "0.5")
    assert prompt == tokenizer.encode("the sun")
    assert options["sampler"] == sparsed.LLaDASampler(block_length=4, threshold=0.9)
    sampler = options_of("--entropy-bound", "0.1", "--early-commit", "--logits-eos-inf")[1]["sampler"]
    assert sampler == sparsed.LLaDASampler(entropy_bound=0.1, early_commit=True, logits_eos_inf=True)
    sampler = options_of("--factor", "1", "--confidence-eos-eot-inf")[1]["sampler"]
    assert sampler == sparsed.LLaDASampler(factor=1, confidence_eos_eot_inf=True)
    assert options["sparse"] == sparsed.SparseConfig(rho=0.5) and options["seed"] == 3
    assert options_of("--dense")[1]["sparse"] is None
    assert options_of("--window", "64")[1]["sparse"] == sparsed.SlidingWindow(64)
    streaming = options_of("--window", "64", "--sinks", "8", "--block-size", "16")[1]["sparse"]
    assert streaming == sparsed.StreamingLLM(64, 8, 16)
    cached = options_of("--kv-cache", "delayed", "--refresh", "4")[1]
    assert cached["kv_cache"] == sparsed.DelayedCache(refresh=4) and cached["sparse"] is None
    sparse = ("--sparse", "--skip", "0", "--generation", "sparse")
    both = options_of("--kv-cache", "dual", "--refresh-every", "0", *sparse)[1]
    assert both["kv_cache"] == sparsed.DualCache(refresh_every=None)
    assert both["sparse"] == sparsed.SparseConfig(skip=0, generation="sparse")
    windowed = options_of("--kv-cache", "prefix", "--refresh-every", "2", "--window", "64")[1]
    assert windowed["kv_cache"] == sparsed.PrefixCache(refresh_every=2)
    assert windowed["sparse"] == sparsed.SlidingWindow(64)


def test_generate_takes_presets(capsys, monkeypatch) -> None:
    calls = []

    def note(model, prompt_ids, **options):
        calls.append(options)
        return sparsed.generate(model, prompt_ids, gen_length=2, steps=1)

    monkeypatch.setattr(generate_command, "generate", note)
    tokenizer = sparsed.load_tokenizer(MODEL)
    for name in ("exact", "balanced", "fast"):
        assert run(capsys, "generate", MODEL, "--prompt", "the sun", "--preset", name)[0] == 0
        expected = {"sampler": sparsed.LLaDASampler()} | sparsed.preset(name, tokenizer)
        assert {key: calls[-1][key] for key in expected} == expected
    assert run(capsys, "generate", MODEL, "the sun", "--preset", "fast", "--threshold", "0.7")[0] == 0
    assert calls[-1]["sampler"] == sparsed.LLaDASampler(32, threshold=0.7)
    assert run(capsys, "generate", MODEL, "the sun", "--preset", "fast", "--factor", "1")[0] == 0
    assert calls[-1]["sampler"] == sparsed.LLaDASampler(32, factor=1)
    wrong = (("--rho", "0.1"), ("--kv-cache", "dual"), ("--sinks", "3"), ("--generation", "sparse"))
    for refused in (*wrong, ("--refresh-every", "2")):
        status, _, err = run(capsys, "generate", MODEL, "the sun", "--preset", "fast", *refused)
        assert status == 2 and f"{refused[0]} given, expected only options that apply (the preset fast decides" in err
    status, _, err = run(capsys, "generate", MODEL, "the sun", "--kv-cache", "dual", "--rho", "0.1")
    assert (
        status == 2 and "--rho given, expected only options that apply (attention is dense: --sparse is missing" in err
    )
    status, _, err = run(capsys, "generate", MODEL, "the sun", "--refresh-every", "2")
    assert status == 2 and "--refresh-every given, expected only options that apply (there is no --kv-cache)" in err


def test_a_preset_answers(capsys) -> None:
    arguments = ("--preset", "balanced", "--gen-length", "40", "--stats")
    status, out, err = run(capsys, "generate", MODEL, TEXT.partition(" . ")[2], *arguments)
    assert status == 0 and out == "zileba is 107 ;\n" and re.search(r"^cached +\d+ ", err, re.MULTILINE)


def test_generate_prints_statistics_on_stderr(capsys) -> None:
    arguments = ["--gen-length", "8", "--steps", "8", "--min-length", "0", "--block-size", "16"]
    arguments += ["--rho", "0.9", "--skip", "0.5"]
    status, out, err = run(capsys, "generate", MODEL, "--prompt", TEXT, *arguments, "--stats")
    assert status == 0 and out == "zileba is 107 ;\n"
    phases = re.findall(r"^(\w+) +\d+ ", err, re.MULTILINE)
    assert phases == ["dense", "select", "sparse", "all"]
    assert re.search(r"tokens/s; b?float\d\d, bfloat16 weights\n$", err)


# --- notes and progress ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ((), "SparseConfig has no effect: the sequence has 36 tokens, fewer than min_length 2048"),
        (("--min-length", "0", "--rho", "1"), "rho is 1, which keeps every block"),
        (("--min-length", "0", "--skip", "1"), "none of the 8 steps comes after the selection (skip 1.0)"),
        (("--min-length", "0"), "SparseConfig had no effect: the patterns hold all blocks"),
        (("--window", "99"), "SlidingWindow has no effect: the sequence has 36 tokens, and window 99"),
        (("--cache", "delayed", "--refresh", "1"), "DelayedCache had no effect: every step computed all tokens"),
    ],
)
def test_settings_without_effect_are_a_line_on_stderr_and_in_the_table(capsys, arguments, note) -> None:
    status, out, err = run(capsys, "generate", "demo", TEXT, *SHORT, *arguments)
    assert (status, out) == (0, "zileba is 107 ;\n")
    assert err.startswith("sparsed: note: ") and note in err and err.count("\n") == 1
    table = run(capsys, "generate", "demo", TEXT, *SHORT, *arguments, "--stats")[2]
    assert re.search(f"^note: .*{re.escape(note)}", table, re.MULTILINE)
    assert logging.getLogger("sparsed").handlers == []


def test_a_sequence_beyond_the_models_length_is_warned_of(capsys, tmp_path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_sequence_length": 32}))
    status, out, err = run(capsys, "generate", str(tmp_path / "model"), TEXT, *SHORT, "--dense")
    assert (status, out) == (0, "zileba is 107 ;\n") and err.count("\n") == 1
    assert err.startswith("sparsed: warning: the sequence has 36 tokens, more than the 32 that") and "max_seq" in err


def test_a_prompt_of_unknown_words_is_warned_of(capsys) -> None:
    warned = run(capsys, "generate", "demo", "Bonjour sun monde .", *SHORT, "--dense")
    assert warned[0] == 0 and "warning: 2 of 4 tokens" not in warned[2]
    status, _, err = run(capsys, "generate", "demo", "Bonjour le monde .", *SHORT, "--dense")
    assert status == 0 and err.count("\n") == 1
    assert "warning: 3 of 4 tokens of the prompt are unknown to the tokenizer (the demo model knows" in err


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "options", "shown"), [(100, (), True), (0, (), True), (100, ("--quiet",), False)])
def test_progress_at_a_terminal(columns, options, shown) -> None:
    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    program = [sys.executable, "-m", "sparsed", "generate", "demo", TEXT, *SHORT, "--dense", *options]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)
    os.close(stderr)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal's output
        while piece := os.read(terminal, 1 << 16):
            said += piece
    os.close(terminal)
    assert done.stdout == "zileba is 107 ;\n"
    if shown:
        assert b"loading" in said and b"8/8" in said and b"step 8/8, dense" in said and b"<00:" in said
    else:
        assert said == b""


def test_progress_elsewhere_is_asked_for(capsys) -> None:
    asked = run(capsys, "generate", "demo", TEXT, *SHORT, "--dense", "--progress")
    assert "loading" in asked[2] and "8/8" in asked[2]


def test_generate_interrupted_prints_what_is_there(capsys, monkeypatch) -> None:
    def interrupted(model, prompt_ids, **options):
        stop = lambda info: info.step == 3 and signal.raise_signal(signal.SIGINT)  # noqa: E731
        return sparsed.generate(model, prompt_ids, **{**options, "on_step": stop})

    monkeypatch.setattr(generate_command, "generate", interrupted)
    status, out, err = run(capsys, "generate", MODEL, "--prompt", TEXT, "--gen-length", "8", "--steps", "8")
    assert status == 130 and "interrupted after 4 steps" in err and out.endswith("\n")


def test_a_prompt_that_is_no_text_is_named(capsys, tmp_path) -> None:
    (tmp_path / "prompt.bin").write_bytes(b"\xff\xfe\x00")
    status, _, err = run(capsys, "generate", MODEL, "--prompt-file", str(tmp_path / "prompt.bin"))
    assert status == 2 and "prompt.bin is not UTF-8" in err


def test_names_of_the_hub_say_how_to_get_them(capsys) -> None:
    status, _, err = run(capsys, "generate", "GSAI-ML/LLaDA-8B-Instruct", "--prompt", "the")
    assert status == 2 and "hf download GSAI-ML/LLaDA-8B-Instruct --local-dir LLaDA-8B-Instruct" in err
    assert "hf download" not in run(capsys, "generate", "../some/folder", "--prompt", "the")[2]


def test_generate_by_torch(capsys) -> None:
    pytest.importorskip("torch")
    arguments = ["generate", MODEL, "--prompt", TEXT, "--gen-length", "8", "--steps", "8"]
    assert run(capsys, *arguments, "--engine", "torch", "--device", "cpu") == run(capsys, *arguments)


def test_no_prompt_at_a_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    status, _, err = run(capsys, "generate", MODEL)
    assert status == 2 and "no prompt, expected --prompt" in err
