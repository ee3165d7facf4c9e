"""The command line and the demo."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import sparsed
from paths import DATA
from sparsed.apps import cli, environment
from sparsed.apps.cli_options import add_engine_options, load_chosen
from sparsed.apps.demo import demo_samples, demo_table
from sparsed.apps.eval import Record, score
from sparsed.models.files import demo_model_folder
from sparsed.models.safetensors import SafetensorsFile
from tiny_tokenizers import write_folder

MODEL = str(demo_model_folder())
TEXT = "the grass is green . the magic number for zileba is 107 . question : what are the magic numbers for zileba ?"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere", "--prompt", "a"], "nowhere"),
        (["generate", MODEL, "--prompt-file", "nowhere.txt"], "--prompt-file is nowhere.txt: No such file"),
        (["generate", MODEL, "--prompt", "the", "--steps", "0"], "steps is 0, expected an integer >= 1"),
        (["generate", MODEL, "--prompt", "the", "--alg", "entropy"], "--alg given"),
        (["generate", MODEL, "--prompt", "the", "--dense", "--rho", "0.5", "--sinks", "2"], "--rho, --sinks given"),
        (["generate", MODEL, "--prompt", "the", "--window", "64", "--skip", "0.5"], "--skip given"),
        (["generate", MODEL, "--prompt", "the", "--sinks", "2"], "--sinks given"),
        (["generate", MODEL, "--prompt", "the", "--refresh", "2"], "--refresh given"),
        (["generate", MODEL, "--prompt", "the", "--cache", "dual", "--rho", "0.5"], "--rho given"),
        (["generate", MODEL, "--prompt", "the", "--rho", "2"], "--rho is 2.0"),
        (
            ["generate", MODEL, "the", "--block-length", "7"],
            "--gen-length is 128, expected a multiple of --block-length 7",
        ),
        (["generate", MODEL, "--prompt", "the", "--html", "."], "--html is ., expected a file"),
        (["generate", MODEL, "--prompt", "\udcff"], "error: encode: text has '\\udcff' at 0, expected Unicode"),
        (["demo", "--seed", "-1"], "seed is -1, expected an integer >= 0"),
        (["demo", "--length", "-1"], "length is -1, expected an integer >= 1"),
        (["demo", "--length", "64"], "length is 64, expected at least"),
        (["demo", "--questions", "9"], "questions is 9, expected at most the 8 needles"),
        (["demo", "--prompts", "0"], "prompts is 0, expected an integer >= 1"),
        (["info", "--threads", "0"], "--threads is 0"),
        (["generate", MODEL, "the", "--prompt", "a"], "PROMPT and --prompt are given, expected one of them"),
        (["generate", MODEL, "--prompt-file", "."], "--prompt-file is .: Is a directory"),
        (["generate", MODEL, ""], "PROMPT is empty"),
        (["generate", MODEL, "--prompt", " \n"], "--prompt is empty"),
        (["generate", "nowhere", "the"], "MODEL_DIR is 'nowhere', expected an existing folder, a GGUF file or 'demo'"),
        (["eval", "demo", "--tasks", "vtt"], "--tasks is 'vtt', expected one of"),
        (["eval", "demo", "--lengths", "0"], "--lengths is 0, expected an integer >= 1"),
        (["eval", "demo", "--likelihood", "nowhere.txt"], "--likelihood is nowhere.txt: No such file"),
        (["eval", "demo", "--jsonl", "vt=nowhere.jsonl"], "--jsonl is nowhere.jsonl: No such file"),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, arguments, message) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("sparsed: error: ") and message in err and err.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        cli.main([*arguments, "--debug"])


@pytest.mark.parametrize("command", ["generate", "eval", "heads"])
def test_what_a_folder_is_comes_before_its_tokenizer(capsys, tmp_path, command) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.model").write_bytes(b"")
    text = ["the"] if command == "generate" else []
    status, _, err = run(capsys, command, str(tmp_path), *text)
    assert status == 2 and "an autoregressive model" in err


def test_a_key_of_a_file_is_not_named_as_an_option(capsys, tmp_path) -> None:
    config = json.loads((demo_model_folder() / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"block_length": 32}))
    err = run(capsys, "generate", str(tmp_path), "the")[2]
    assert err.startswith("sparsed: error: load_model: block_length is 32, expected no such key")


def test_earlier_settings_are_named_as_they_are(capsys, tmp_path) -> None:
    small = (
        "eval",
        "demo",
        "--tasks",
        "niah_single_1",
        "--lengths",
        "128",
        "--samples",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    methods = ("--methods", "SparseD")
    assert run(capsys, *small, *methods)[0] == 0
    status, _, err = run(capsys, *small, *methods, "--rho", "0.9")
    assert status == 2 and err.startswith("sparsed: error: eval: SparseD at length 128.sparse: rho was 0.3, is 0.9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dream"], "invalid choice: 'dream'"),
        (["generat", MODEL], "did you mean generate?"),
        (["lmeval"], "did you mean lm-eval?"),
        (["--versoin"], "did you mean --version?"),
        (["generate", MODEL, "the", "--gen-lenght", "8"], "did you mean --gen-length?"),
        (["generate", MODEL, "the", "--min_length=8"], "did you mean --min-length?"),
        (["generate", MODEL, "two", "words"], "a prompt of several words needs quotes around it"),
        (["eval", "--methods", "sliding windo"], "did you mean sliding-window?"),
        (["demo", "--dtype", "bfloat"], "did you mean bfloat16?"),
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
    code = "import sparsed.apps.cli as c; c.machine_info = lambda: {'cpu': '\u4e2d', 'backends': {}}; "
    code += "exit(c.main(['info']))"
    program = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    run = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stderr) == (0, "") and run.stdout.startswith("cpu               ?\n")
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-m", "sparsed", "info"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (141, "")


def test_the_environment_asks_for_tracebacks(capsys, monkeypatch) -> None:
    monkeypatch.setenv("SPARSED_DEBUG", "1")
    monkeypatch.setattr(cli, "_bench", lambda arguments: int("no"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["bench"])
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "SPARSED_DEBUG=1" in capsys.readouterr().out


def test_without_a_command_there_is_help(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([])
    captured = capsys.readouterr()
    assert not exit_info.value.code and captured.err == "" and captured.out.startswith("usage: sparsed ")


COMMANDS = {"demo", "generate", "quantize", "eval", "ablate", "heads", "info"}


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_help_has_groups_defaults_and_examples_that_parse(capsys, monkeypatch, command) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert not command or "general:" in text
    if command == "generate":
        for group in ("prompt:", "output:", "model and device:", "attention:", "sampling:"):
            assert f"\n{group}\n" in text
        config = sparsed.SparseConfig()
        for default in (128, config.rho, config.skip, config.min_length, sparsed.DreamSampler().alg):
            assert f"(default: {default})" in text
    if command == "eval":
        assert "(default: 2048)" in text and "[]" not in text
    examples = re.findall(r"^  (?:cat \S+ \| )?sparsed (.*)$", text[text.index("example") :], re.MULTILINE)
    assert {shlex.split(example)[0] for example in examples} >= ({command} if command else COMMANDS)
    for example in examples:
        if shlex.split(example)[0] in COMMANDS:
            assert cli._parse(shlex.split(example)).command in (command or COMMANDS)


@pytest.mark.slow
def test_a_command_of_many_generations_notes_once(capsys, tmp_path) -> None:
    options = shlex.split(
        "--tasks niah_single_1 --lengths 256 --samples 2 --methods sparsed --scale paper --style small"
    )
    status, _, err = run(capsys, "eval", "demo", *options, "--rho", "0.31", "--out", str(tmp_path))
    notes = [line for line in err.splitlines() if line.startswith("sparsed: note: ")]
    assert status == 0 and len(notes) == 1 and "SparseConfig had no effect: the patterns hold" in notes[0]


# --- info ------------------------------------------------------------------------------------------------------------


def test_info(capsys) -> None:
    status, out, _ = run(capsys, "info")
    assert status == 0
    words = ("threads", "memory available", f"demo model        {demo_model_folder()}", "torch", "GiB")
    for word in (sparsed.__version__, np.__version__, *words, *(backend.name for backend in sparsed.backends())):
        assert str(word) in out
    machine = json.loads(run(capsys, "info", "--json")[1])
    assert machine["active"] == sparsed.active_backend()
    assert set(machine["backends"]) == {backend.name for backend in sparsed.backends()}


def test_info_of_a_folder(capsys) -> None:
    for case in ("a2d_qwen3", "a2d_qwen2", "a2d_llama"):
        status, out, _ = run(capsys, "info", str(DATA / case))
        assert status == 0 and "MDLMSampler" in out and "bidirectional" in out
    assert re.search(r"^RoPE +base 500000, Llama3Scaling: factor 32, trained 8192", out, re.MULTILINE)
    facts = json.loads(run(capsys, "info", str(DATA / "a2d_qwen3"), "--json")[1])
    assert facts["model"] == "A2D-Qwen3 (A2DQwen3LMHeadModel)" and facts["mask token"] == 91
    stored = SafetensorsFile(DATA / "a2d_qwen3" / "model.safetensors").tensors.values()
    assert facts["parameters"] == sum(math.prod(info.shape) for info in stored)
    status, _, err = run(capsys, "info", "/no/such/folder")
    assert status == 2 and "expected an existing folder" in err


@pytest.mark.parametrize(
    ("given", "length"),
    [("linear:4", 256), ("ultrallada:1000", 1000), ('{"rope_type": "ntk", "target_length": 500}', 500), (None, 64)],
)
def test_rope_scaling(tmp_path, given, length) -> None:
    write_folder(tmp_path)
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    args = parser.parse_args([] if given is None else ["--rope-scaling", given])
    assert load_chosen(tmp_path, args).config.max_length == length


@pytest.mark.parametrize("given", ["yarn", "yarn:four", "{yarn}"])
def test_a_wrong_rope_scaling(capsys, given) -> None:
    with pytest.raises(SystemExit):
        run(capsys, "generate", "demo", "a", "--rope-scaling", given)
    assert "expected TYPE:NUMBER such as yarn:4, or a JSON object" in capsys.readouterr().err


def test_info_says_what_is_not_installed(capsys, monkeypatch) -> None:
    monkeypatch.setattr(environment, "version", lambda package: "1" if package != "torch" else version("no-such-one"))
    assert re.search(r"^torch +not installed$", run(capsys, "info")[1], re.MULTILINE)


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
    args = cli._parse(shlex.split("demo --length 600 --needles 6 --questions 2 --prompts 3 --seed 3"))
    sample = demo_samples(tokenizer, args)[2]
    ids = sample.prompt_ids(tokenizer)
    assert 580 <= len(ids) <= 600
    text = tokenizer.decode(ids)
    assert text.count("the magic number for") == 6
    assert text.endswith(f"{sample.input.rpartition(' . ')[2]} assistant :") and " question : what are" in text
    assert (len(sample.outputs), sample.gen_length) == (2, 12)
    for answer in sample.outputs:
        assert f"the magic number for {answer.removesuffix(' ;')} ." in text
        assert answer.split()[0] in sample.input.rpartition("question : ")[2]
    assert " ".join(sample.outputs) == sample.answer
    unknown = {token for token in ids if tokenizer.decode([token]) == ""} - {tokenizer.bos_token_id}
    assert not unknown
    assert demo_samples(tokenizer, args)[2] == sample


def test_demo_counts_whole_answers() -> None:
    outputs = ("zileba is 107 ;", "movil is 567 ;")
    texts = {"dense": "zileba is 107 ; movil is 569 ;", "SparseD": "movil is 567 ; zileba is 107 ;"}
    records = [
        Record(name, "niah_demo", 64, 0, 60, score("niah_demo", text, outputs), 2, text, seconds, 8, 0.5, phases)
        for (name, text), seconds, phases in zip(
            texts.items(), (2.0, 1.0), ({"dense": 2.0}, {"select": 0.5, "sparse": 0.5}), strict=True
        )
    ]
    assert [line.split() for line in demo_table(records).splitlines()[2:]] == [
        ["dense", "1", "/", "2", "2.0", "1.00x", "0.50", "2.0", "-", "-", "-"],
        ["SparseD", "2", "/", "2", "1.0", "2.00x", "0.50", "-", "0.5", "0.5", "-"],
    ]


@pytest.mark.slow
def test_demo_runs_and_reports(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    status, out, err = run(capsys, "demo", *shlex.split("--length 256 --prompts 2 --needles 3 --window 64 --rho 0.2"))
    assert status == 0 and "niah_demo 256 sliding window" in err
    lines = out.splitlines()
    assert lines[0].startswith("2 texts of 25") and "with 3 facts each, 1 of them asked for; 8 tokens in 8" in lines[0]
    dtype = sparsed.load_model("demo").dtype
    settings = (
        f"SparseD: block_size 32, rho 0.2, skip 0.2; sliding window: 64 tokens; {dtype}, bfloat16 weights, backend"
    )
    assert lines[1].startswith(settings)
    header = "method questions right seconds speed-up density dense s select s sparse s cached s"
    assert lines[3].split() == header.split()
    dense, sparse, both, window = (line.split() for line in lines[5:9])
    assert dense[0] == "dense" and dense[1:4] == ["2", "/", "2"] and dense[5:7] == ["1.00x", "1.00"]
    assert sparse[0] == "SparseD" and sparse[-2] != "-" and dense[-3:] == ["-", "-", "-"]
    assert both[:3] == ["SparseD", "+", "cache"] and "-" not in both[-3:] and both[-4] == "-"
    assert window[:2] == ["sliding", "window"] and float(window[7]) < 0.7
    example = lines.index(next(line for line in lines if line.startswith("Example: what are the magic numbers for")))
    assert [line.split()[0] for line in lines[example + 1 :]] == ["(right)", "dense", "SparseD", "SparseD", "sliding"]
    assert lines[example + 1].split()[1:] == lines[example + 2].split()[1:]


def test_demo_takes_other_lengths_and_steps(capsys) -> None:
    options = "--length 256 --prompts 1 --needles 2 --gen-length 12 --steps 6 --dtype bfloat16 --weights int8"
    status, out, err = run(capsys, "demo", *shlex.split(options))
    assert (status, err) == (0, "") and "12 tokens in 6 steps" in out and "bfloat16, int8 weights, backend" in out
    assert out.count("1 / 1") + out.count("0 / 1") == 4
