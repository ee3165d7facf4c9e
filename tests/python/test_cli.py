"""The command line and the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsed
from sparsed.apps import cli, demo
from sparsed.apps.demo import DemoOptions, build_prompts, demo_model_folder, run_demo

DATA = Path(__file__).parents[1] / "data"
MODEL = str(demo_model_folder())
TEXT = "the grass is green . the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- generate --------------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr(cli, "generate", note)
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

    monkeypatch.setattr(cli, "generate", interrupted)
    status, out, err = run(capsys, "generate", MODEL, "--prompt", TEXT, "--gen-length", "8", "--steps", "8")
    assert status == 130 and "interrupted after 4 steps" in err and out.endswith("\n")


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere", "--prompt", "a"], "nowhere"),
        (["generate", MODEL, "--prompt-file", "nowhere.txt"], "nowhere.txt"),
        (["generate", MODEL, "--prompt", "the", "--steps", "0"], "steps is 0, expected an integer >= 1"),
        (["generate", MODEL, "--prompt", "the", "--alg", "entropy"], "--alg given"),
        (["generate", MODEL, "--prompt", "the", "--dense", "--rho", "0.5", "--sinks", "2"], "--rho, --sinks given"),
        (["generate", MODEL, "--prompt", "the", "--window", "64", "--skip", "0.5"], "--skip given"),
        (["generate", MODEL, "--prompt", "the", "--sinks", "2"], "--sinks given"),
        (["generate", MODEL, "--prompt", "the", "--refresh", "2"], "--refresh given"),
        (["generate", MODEL, "--prompt", "the", "--cache", "dual", "--rho", "0.5"], "--rho given"),
        (["generate", MODEL, "--prompt", "the", "--rho", "2"], "rho is 2.0"),
        (["generate", MODEL, "--prompt", "the", "--block-length", "7"], "gen_length is 128, expected a multiple"),
        (["generate", MODEL, "--prompt", "the", "--html", "."], "--html is ., expected a file"),
        (["generate", MODEL, "--prompt", "\udcff"], "text has '\\udcff' at 13, expected Unicode"),
        (["demo", "--seed", "-1"], "seed is -1, expected an integer >= 0"),
        (["demo", "--length", "-1"], "length is -1, expected an integer >= 1"),
        (["demo", "--length", "64"], "length is 64, expected at least"),
        (["demo", "--questions", "9"], "questions is 9, expected at most the 8 needles"),
        (["demo", "--prompts", "0"], "prompts is 0, expected at least 1"),
        (["info", "--threads", "0"], "threads"),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, arguments, message) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("sparsed: error: ") and message in err and err.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        cli.main([*arguments, "--debug"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: {demo,generate,eval,ablate,heads,bench,lm-eval,info}"),
        (["dream"], "invalid choice: 'dream'"),
        (["info", "--unknown"], "unrecognized arguments: --unknown"),
        (["generate"], "required: MODEL_DIR"),
        (["generate", MODEL, "--dense", "--window", "3"], "not allowed with argument"),
        (["demo", "--steps", "many"], "invalid int value: 'many'"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message in err and err.count("\n") == 1


def test_a_narrow_encoding_and_a_closed_pipe_lose_nothing() -> None:
    code = "import sparsed.cli as c; c.machine_info = lambda: {'cpu': '\u4e2d', 'backends': {}}; exit(c.main(['info']))"
    program = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    run = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "cpu       ?\n", "")
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-m", "sparsed", "info"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (141, "")


def test_a_prompt_that_is_no_text_is_named(capsys, tmp_path) -> None:
    (tmp_path / "prompt.bin").write_bytes(b"\xff\xfe\x00")
    status, _, err = run(capsys, "generate", MODEL, "--prompt-file", str(tmp_path / "prompt.bin"))
    assert status == 2 and "prompt.bin is not UTF-8" in err


def test_names_of_the_hub_say_how_to_get_them(capsys) -> None:
    status, _, err = run(capsys, "generate", "GSAI-ML/LLaDA-8B-Instruct", "--prompt", "the")
    assert status == 2 and "hf download GSAI-ML/LLaDA-8B-Instruct --local-dir LLaDA-8B-Instruct" in err
    assert "hf download" not in run(capsys, "generate", "../some/folder", "--prompt", "the")[2]


def test_the_environment_asks_for_tracebacks(capsys, monkeypatch) -> None:
    monkeypatch.setenv("SPARSED_DEBUG", "1")
    monkeypatch.setattr(cli, "_bench", lambda arguments: int("no"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["bench"])
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "SPARSED_DEBUG=1" in capsys.readouterr().out


def test_generate_by_torch(capsys) -> None:
    pytest.importorskip("torch")
    arguments = ["generate", MODEL, "--prompt", TEXT, "--gen-length", "8", "--steps", "8"]
    assert run(capsys, *arguments, "--engine", "torch", "--device", "cpu") == run(capsys, *arguments)


def test_no_prompt_at_a_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    status, _, err = run(capsys, "generate", MODEL)
    assert status == 2 and "no prompt, expected --prompt" in err


# --- info ------------------------------------------------------------------------------------------------------------


def test_info(capsys) -> None:
    status, out, _ = run(capsys, "info")
    assert status == 0
    for word in (sparsed.__version__, np.__version__, "threads", *(backend.name for backend in sparsed.backends())):
        assert str(word) in out
    machine = json.loads(run(capsys, "info", "--json")[1])
    assert machine["active"] == sparsed.active_backend()
    assert set(machine["backends"]) == {backend.name for backend in sparsed.backends()}


def test_info_says_what_is_wrong_with_the_forced_backend(capsys, monkeypatch, set_backend) -> None:
    monkeypatch.setenv("SPARSED_ISA", "avx1024")
    set_backend(None)
    status, out, _ = run(capsys, "info")
    assert status == 0 and "avx1024" in out


def test_module_and_script_are_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparsed", "--version"], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout == f"sparsed {sparsed.__version__}\n"


# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo_prompts_have_the_facts_and_the_question() -> None:
    tokenizer = sparsed.load_tokenizer(MODEL)
    options = DemoOptions(length=600, needles=6, questions=2, prompts=3, seed=3)
    prompt = build_prompts(tokenizer, options)[2]
    assert 580 <= len(prompt.ids) <= 600
    text = tokenizer.decode(prompt.ids)
    assert text.count("the magic number for") == 6
    assert text.endswith(f"question : {prompt.question} assistant :")
    assert len(prompt.answers) == 2
    for answer in prompt.answers:
        assert f"the magic number for {answer} ." in text
        assert answer.split()[0] in prompt.question
    unknown = {token for token in prompt.ids if tokenizer.decode([token]) == ""} - {tokenizer.bos_token_id}
    assert not unknown
    assert build_prompts(tokenizer, options)[2] == prompt


def test_demo_counts_whole_answers() -> None:
    result = demo.MethodResult("dense")
    prompt = demo.Prompt([], "", ("zileba is 107", "movil is 567"))
    stats = sparsed.GenerationStats()
    result.add(prompt, "zileba is 107 ; movil is 569 ;", stats)
    result.add(prompt, "movil is 567 ; zileba is 1 2 3", stats)
    assert result.right == 2


def test_demo_runs_and_reports(capsys) -> None:
    options = DemoOptions(length=256, prompts=2, needles=3, questions=1)
    report = run_demo(options, progress=True)
    assert "sliding window" in capsys.readouterr().err
    dense, sparse, window = report.results
    assert [result.name for result in report.results] == ["dense", "SparseD", "sliding window"]
    assert dense.right == 2
    assert dense.phase_seconds["sparse"] == 0 and sparse.phase_seconds["sparse"] > 0 and window.densities[0] < 0.7
    text = str(report)
    assert "questions right" in text and report.prompts[0].question in text and "block_size 32" in text
    status, out, err = run(capsys, "demo", "--length", "256", "--prompts", "1", "--needles", "2", "--questions", "1")
    assert status == 0 and "2 / 2" not in out and "1 / 1" in out and err == ""
