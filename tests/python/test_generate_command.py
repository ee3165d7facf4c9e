"""`sparsed generate`: prompts, options, what it says on stderr."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sparsed
from sparsed.apps import cli, generate_command
from sparsed.models.files import demo_model_folder

DATA = Path(__file__).parents[1] / "data"
MODEL = str(demo_model_folder())
TEXT = "the grass is green . the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"
SHORT = ("--gen-length", "8", "--steps", "8")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_generate_answers(capsys) -> None:
    status, out, err = run(capsys, "generate", MODEL, "--prompt", TEXT, "--gen-length", "8", "--steps", "8")
    assert (status, err) == (0, "")
    assert out == "zileba is 107 ;\n"


def test_generate_reads_files_and_stdin(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT, encoding="utf-8")
    short = ("--gen-length", "8", "--steps", "4", "--dense")
    from_file = run(capsys, "generate", MODEL, "--prompt-file", str(tmp_path / "prompt.txt"), *short)
    assert from_file == run(capsys, "generate", MODEL, "--prompt", TEXT, *short)
    with (tmp_path / "prompt.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(capsys, "generate", MODEL, *short) == from_file


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
        "cache": None,
        "sampler": sparsed.LLaDASampler(),
        "seed": None,
        "on_step": None,
        "progress": False,
    }
    prompt, options = options_of("--raw", "--seed", "3", "--block-length", "4", "--threshold", "0.9", "--rho", "0.5")
    assert prompt == tokenizer.encode("the sun")
    assert options["sampler"] == sparsed.LLaDASampler(block_length=4, threshold=0.9)
    assert options["sparse"] == sparsed.SparseConfig(rho=0.5) and options["seed"] == 3
    assert options_of("--dense")[1]["sparse"] is None
    assert options_of("--window", "64")[1]["sparse"] == sparsed.SlidingWindow(64)
    streaming = options_of("--window", "64", "--sinks", "8", "--block-size", "16")[1]["sparse"]
    assert streaming == sparsed.StreamingLLM(64, 8, 16)
    cached = options_of("--cache", "delayed", "--refresh", "4")[1]
    assert cached["cache"] == sparsed.DelayedCache(refresh=4) and cached["sparse"] is None


def test_generate_prints_statistics_on_stderr(capsys) -> None:
    arguments = ["--gen-length", "8", "--steps", "8", "--min-length", "0", "--block-size", "16"]
    arguments += ["--rho", "0.9", "--skip", "0.5"]
    status, out, err = run(capsys, "generate", MODEL, "--prompt", TEXT, *arguments, "--stats")
    assert status == 0 and out == "zileba is 107 ;\n"
    assert [line.split()[0] for line in err.splitlines()[2:6]] == ["dense", "select", "sparse", "all"]


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


