"""Runs of `sparsed eval` that go on, grow, or are refused; what a crash leaves."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from sparsed.apps import cli
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.eval import Log, Record
from sparsed.apps.eval import held_out as held_out_module

PLAN = {
    "model": {"files": {"a": {"size": 1}}},
    "settings": {"64": {"dense": {"rho": 0.3}}},
    "sources": {"64": {"vt": "made"}},
}


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    return (status, *capsys.readouterr())


def record(index: int = 0) -> Record:
    return Record("dense", "vt", 64, index, 60, 1.0, 1, "größer", 0.5, 8, 1.0)


@pytest.fixture
def model(tmp_path):
    """A copy of the demo model, which has no options of its own."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model_folder(), folder)
    return folder


# --- the log ---------------------------------------------------------------------------------------------------------


def test_plans_grow(tmp_path) -> None:
    Log(tmp_path, PLAN, Record).add(record())
    more = {**PLAN, "settings": {"128": {"SparseD": "S"}}, "sources": {"128": {"vt": "file"}}}
    assert len(Log(tmp_path, more, Record).records) == 1
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["settings"] == {"64": {"dense": {"rho": 0.3}}, "128": {"SparseD": "S"}}
    assert plan["sources"] == {"64": {"vt": "made"}, "128": {"vt": "file"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"files": {"a": {"size": 2}}}}, "eval: model.files.a: size was 1, is 2 ("),
        ({"model": {"files": {}}}, 'eval: model.files: a was {"size": 1}, is absent ('),
        ({"settings": {"64": {"dense": {"rho": 0.5}}}}, "eval: dense at length 64: rho was 0.3, is 0.5 ("),
        (
            {"settings": {"64": {"dense": {"rho": 0.5, "skip": 0.1, "block": 32}}}},
            "eval: dense at length 64: block was absent, is 32; dense at length 64: rho was 0.3, is 0.5; dense at ",
        ),
        ({"settings": {"64": {"dense": "E"}}}, 'eval: dense at length 64 was {"rho": 0.3}, is "E" ('),
        ({"sources": {"64": {"vt": "file"}}}, 'eval: vt at length 64 was "made", is "file" ('),
        ({"seed": 1}, "eval: seed was absent, is 1 ("),
        ({f"option {i}": i for i in range(7)}, "; option 3 was absent, is 3; 3 more ("),
    ],
)
def test_other_plans_are_refused(tmp_path, changes, message) -> None:
    Log(tmp_path, PLAN, Record)
    before = (tmp_path / "plan.json").read_text()
    with pytest.raises(ValueError, match=re.escape(message)):
        Log(tmp_path, PLAN | changes, Record)
    assert (tmp_path / "plan.json").read_text() == before


def test_a_crash_inside_a_character(tmp_path) -> None:
    Log(tmp_path, PLAN, Record).add(record())
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("ö".encode()) + 1])
    log = Log(tmp_path, PLAN, Record)
    assert log.records == [record()] and path.read_bytes() == whole
    log.add(record(1))
    assert Log(tmp_path, PLAN, Record).records == [record(), record(1)]


def test_an_empty_plan(tmp_path) -> None:
    (tmp_path / "plan.json").write_text("")
    Log(tmp_path, PLAN, Record).add(record())
    (tmp_path / "plan.json").write_text("")
    with pytest.raises(ValueError, match="plan.json is damaged: .*choose another --out"):
        Log(tmp_path, PLAN, Record)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_grows(capsys, tmp_path, model) -> None:
    out = ["--out", str(tmp_path / "out"), "--seed", "0"]
    status, *_ = run(
        capsys, "eval", str(model), *out, "--lengths", "128", "--tasks", "vt", "--samples", "1", "--methods", "dense"
    )
    first = (tmp_path / "out" / "records.jsonl").read_text()
    assert status == 0 and len(first.splitlines()) == 1
    more = ["--lengths", "128", "160", "--tasks", "vt", "fwe", "--samples", "2", "--methods", "SparseD", "dense"]
    status, *_ = run(capsys, "eval", str(model), *out, *more)
    records = (tmp_path / "out" / "records.jsonl").read_text()
    assert status == 0 and records.startswith(first) and len(records.splitlines()) == 16
    status, _text, err = run(capsys, "eval", str(model), *out, *more, "--rho", "0.5")
    changed = "SparseD at length 128.sparse: rho was 0.3, is 0.5; SparseD at length 160.sparse: rho was"
    assert status == 2 and changed in err


def test_another_model_of_the_same_name_is_refused(capsys, tmp_path, model) -> None:
    options = [str(model), "--out", str(tmp_path / "out"), "--lengths", "128", "--tasks", "vt", "--samples", "1"]
    assert run(capsys, "eval", *options, "--methods", "dense")[0] == 0
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    status, _out, err = run(capsys, "eval", *options, "--methods", "dense")
    assert status == 2 and "model.files.model.safetensors: sha256 was" in err
    status, _out, err = run(capsys, "eval", *options, "--methods", "dense", "--scale", "paper")
    assert status == 2


@pytest.mark.slow
def test_a_file_keeps_its_length_and_identity(capsys, tmp_path) -> None:
    path = tmp_path / "vt.jsonl"
    prompts = [f"var zileba = {i} . {'here we go . ' * i}" for i in range(100, 103)]
    rows = [{"input": text, "outputs": ["zileba"]} for text in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["eval", "--jsonl", f"vt={path}", "--methods", "dense", "--out", str(tmp_path / "out")]
    assert run(capsys, *options, "--samples", "1")[0] == run(capsys, *options, "--samples", "3")[0] == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 3 and len({record["length"] for record in records}) == 1
    os.utime(path, (1, 1))
    status, _out, err = run(capsys, *options)
    assert status == 2 and ": mtime_ns was " in err and "is 1000000000" in err
    status, _out, err = run(capsys, "eval", "--jsonl", f"vt={path}", f"vt={path}", "--out", str(tmp_path / "o"))
    assert status == 2 and "jsonl has two files of task vt" in err


def test_a_trained_checkpoint_has_the_small_style(capsys, tmp_path, model) -> None:
    status, *_ = run(
        capsys, "eval", str(model), "--lengths", "128", "--tasks", "vt", "--samples", "1", "--out", str(tmp_path / "o")
    )
    plan = json.loads((tmp_path / "o" / "plan.json").read_text())
    assert status == 0 and (plan["style"], plan["scale"]) == ("small", "demo")
    assert plan["budgets"]["vt"] == 8 and plan["sampler"]["kind"] == "LLaDASampler"


def test_likelihood_goes_on(capsys, tmp_path, monkeypatch) -> None:
    text = tmp_path / "held_out.txt"
    text.write_text("the grass is green . here we go . " * 30)
    options = ["eval", "--likelihood", str(text), "--lengths", "100", "--target", "8", "--draws", "4"]
    options += ["--out", str(tmp_path / "out"), "--methods", "SparseD", "dense"]
    calls = []
    real = held_out_module.likelihood

    def note(model, ids, **given):
        calls.append("dense" if given["sparse"] is None else "sparse")
        return real(model, ids, **given)

    monkeypatch.setattr(held_out_module, "likelihood", note)
    assert run(capsys, *options, "--samples", "1")[0] == 0
    assert calls == ["dense", "sparse"]
    status, out, _err = run(capsys, *options, "--samples", "2")
    assert status == 0 and calls == ["dense", "sparse"] * 2
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["SparseD", "dense"]
    rows = json.loads((tmp_path / "out" / "likelihood.json").read_text())["rows"]
    assert rows[0]["texts"] == 2 and "minus_dense" in rows[0] and "minus_dense" not in rows[1]
    records = [json.loads(line) for line in (tmp_path / "out" / "likelihood.jsonl").read_text().splitlines()]
    assert [len(record["draws"]) for record in records] == [4] * 4
    status, _out, err = run(capsys, *options, "--draws", "8")
    assert status == 2 and "text: draws was 4, is 8" in err


@pytest.mark.slow
def test_earlier_reports_are_kept(capsys, tmp_path, model) -> None:
    out = tmp_path / "out"
    options = ["eval", str(model), "--out", str(out), "--lengths", "128", "--tasks", "vt", "--methods", "dense"]
    assert run(capsys, *options, "--samples", "1")[0] == 0
    first = (out / "report.json").read_text(), (out / "report.txt").read_text()
    status, _text, err = run(capsys, *options, "--samples", "1")  # the same rows
    assert status == 0 and "earlier report" not in err and not (out / "report_1.json").exists()
    first = (out / "report.json").read_text(), (out / "report.txt").read_text()
    status, _text, err = run(capsys, *options, "--samples", "2")
    assert status == 0 and f"sparsed: the earlier report of {out} is kept as report_1.txt, report_1.json" in err
    assert ((out / "report_1.json").read_text(), (out / "report_1.txt").read_text()) == first
    assert json.loads((out / "report.json").read_text())["rows"][0]["samples"] == 2
    (out / "report.json").write_text("notes of the user")
    assert run(capsys, *options, "--samples", "1")[0] == 0
    assert (out / "report_2.json").read_text() == "notes of the user"


def test_written_samples_overwrite_nothing(capsys, tmp_path, model) -> None:
    options = ["eval", str(model), "--lengths", "128", "--tasks", "vt", "--write-jsonl", str(tmp_path)]
    assert run(capsys, *options, "--samples", "1")[0] == 0
    path = tmp_path / "128" / "vt" / "validation.jsonl"
    content = path.read_text()
    assert run(capsys, *options, "--samples", "1")[0] == 0  # the same samples
    status, _out, err = run(capsys, *options, "--samples", "2")
    assert status == 2 and f"{path} exists with other samples" in err and path.read_text() == content
