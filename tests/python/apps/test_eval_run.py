"""`sparsed eval` and `sparsed ablate`: runs that go on, reports, likelihood, methods."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

import sparsed
from paths import DATA
from sparsed import LLaDASampler, SlidingWindow, SparseConfig
from sparsed.apps import cli
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.eval import METHODS, Log, Record, ablations, likelihood, method, summarise, table, write_report
from sparsed.apps.eval.heads import head_report, heads_table
from sparsed.apps.eval.heads import markdown as markdown_of_heads
from sparsed.apps.eval.held_out import _rows as held_out_rows
from sparsed.apps.eval.report import markdown as markdown_of_report
from sparsed.apps.methods import default_sampler, method_name, slug
from sparsed.generation.preset import PRESETS


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    return (status, *capsys.readouterr())


def record(name: str, index: int, score: float, task: str = "vt", length: int = 64) -> Record:
    return Record(name, task, length, index, 60, score, 1, "x", 0.5, 8, 1.0)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eval_reports_and_goes_on(capsys, tmp_path, monkeypatch) -> None:
    options = ["--lengths", "256", "--tasks", "niah_single_1", "--out", str(tmp_path), "--methods", *METHODS]
    status, out, err = run(capsys, "eval", *options, "--samples", "1")
    assert status == 0 and all(name in out for name in METHODS)
    assert {path.name for path in tmp_path.iterdir()} >= {"plan.json", "records.jsonl", "report.txt", "report.json"}
    first = (tmp_path / "records.jsonl").read_text()
    assert len(first.splitlines()) == len(METHODS)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"method": "den')  # a crash
    status, out, err = run(capsys, "eval", *options, "--samples", "2")
    text = (tmp_path / "records.jsonl").read_text()
    assert status == 0 and text.startswith(first) and len(text.splitlines()) == 2 * len(METHODS)
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["dense"]["difference"] is None and rows["SparseD"]["samples"] == 2
    assert rows["dense"]["density"] == 1 and 0 < rows["dual cache"]["density"] < 1
    assert "cpu" in report["machine"] and "command" in report
    status, out, err = run(capsys, "eval", *options, "--seed", "1")
    assert status == 2 and "seed was 0, is 1" in err


def test_eval_answers_once_what_is_asked_twice(capsys, tmp_path) -> None:
    options = ["--tasks", "vt", "vt", "--methods", "dense", "dense", "--samples", "1", "--lengths", "256", "256"]
    status, _out, _err = run(capsys, "eval", *options, "--out", str(tmp_path))
    records = (tmp_path / "records.jsonl").read_text()
    assert status == 0 and len(records.splitlines()) == 1
    twice = [record("dense", 0, 1.0), record("dense", 0, 1.0)]  # of two processes
    assert [row.samples for row in summarise(twice)] == [1]


def test_eval_reads_and_writes_ruler_files(capsys, tmp_path) -> None:
    tasks = ["--tasks", "niah_single_1", "--lengths", "200", "--samples", "2"]
    status, out, _err = run(capsys, "eval", *tasks, "--write-jsonl", str(tmp_path / "data"))
    path = tmp_path / "data" / "200" / "niah_single_1" / "validation.jsonl"
    assert status == 0 and out.strip() == str(path) and len(path.read_text().splitlines()) == 2
    status, out, _err = run(
        capsys,
        "eval",
        "--jsonl",
        f"niah_single_1={path}",
        "--methods",
        "dense",
        "--samples",
        "1",
        "--out",
        str(tmp_path / "o"),
    )
    assert status == 0 and "niah_single_1" in out


def test_eval_scores_a_text(capsys, tmp_path) -> None:
    (tmp_path / "held_out.txt").write_text("the grass is green . here we go . " * 30)
    options = ["--lengths", "120", "--target", "16", "--draws", "4", "--samples", "2", "--out", str(tmp_path / "out")]
    status, out, _err = run(capsys, "eval", "--likelihood", str(tmp_path / "held_out.txt"), *options)
    assert status == 0 and [line.split()[0] for line in out.splitlines()[2:6]] == [
        "dense",
        "SparseD",
        "sliding",
        "StreamingLLM",
    ]
    rows = json.loads((tmp_path / "out" / "likelihood.json").read_text())["rows"]
    assert rows[0]["nats"]["mean"] > 0 and "minus_dense" in rows[1]
    plan = tmp_path / "out" / "likelihood_plan.json"
    earlier = json.loads(plan.read_text())
    del earlier["text"]["masks"]
    plan.write_text(json.dumps(earlier))
    status, _out, err = run(capsys, "eval", "--likelihood", str(tmp_path / "held_out.txt"), *options)
    assert status == 2 and "text: masks was absent, is" in err


@pytest.mark.slow
def test_ablate(capsys, tmp_path) -> None:
    options = ["--lengths", "200", "--tasks", "niah_single_1", "--samples", "1", "--out", str(tmp_path)]
    status, out, _err = run(capsys, "ablate", *options)
    assert status == 0
    for name in (
        "dense",
        "SparseD",
        "no skip",
        "select every step",
        "refresh 0.6",
        "no isolation",
        "rho 0.1",
        "skip 0.5",
        "block 128",
    ):
        assert any(line.startswith(name) for line in out.splitlines())


@pytest.mark.slow
def test_heads(capsys, tmp_path) -> None:
    options = ["--lengths", "300", "--tasks", "niah_single_1", "vt", "--samples", "1", "--out", str(tmp_path)]
    status, out, _err = run(capsys, "heads", *options)
    assert status == 0 and [line.split()[0] for line in out.splitlines()[2:6]] == ["0", "1", "2", "3"]
    found = json.loads((tmp_path / "heads.json").read_text())
    steps, selected_at = 20, found["selected_at"]
    assert selected_at == 3 and found["prompts"] == 2
    similarity, recall, of_rho = (np.array(found[key], float) for key in ("similarity", "recall", "recall_of_rho"))
    assert similarity.shape == recall.shape == (steps, 4, 4) and np.shape(found["neighbours"]) == (steps - 1, 4, 4)
    assert (similarity[selected_at] == 1).all() and ((similarity > 0) & (similarity <= 1)).all()
    assert (
        np.isnan(recall[:selected_at]).all() and (recall[selected_at:] > 0).all() and (recall[selected_at:] <= 1).all()
    )
    assert (np.diff(of_rho, axis=0) >= 0).all()  # more blocks hold more
    at_rho = of_rho[found["rhos"].index(0.3)]
    np.testing.assert_allclose(at_rho, recall[selected_at], atol=2e-4)
    assert markdown_of_heads(found).splitlines()[2].split("|")[1:3] == [
        f" {cell} " for cell in out.splitlines()[2].split()[:2]
    ]


def test_heads_takes_one_length(capsys, tmp_path) -> None:
    status, _out, err = run(capsys, "heads", "--lengths", "200", "300", "--out", str(tmp_path))
    assert status == 2 and "lengths has 2 values, expected one" in err


def test_heads_without_a_step_after_the_selection() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    report = head_report(
        model, [np.arange(40)], gen_length=1, sparse=SparseConfig(min_length=0, block_size=16), progress=True
    )
    assert report.neighbours.shape == (0, model.config.num_layers, model.config.num_heads)
    assert heads_table(report).splitlines()[2].split()[1:4] == ["-", "-", "-"]


def test_heads_of_the_published_selection() -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    sparse = SparseConfig(min_length=0, block_size=16, rho=0.5, skip=0.25, selection="reference")
    flat, row = (head_report(model, [ids], gen_length=8, sparse=sparse) for ids in (np.arange(60), [np.arange(60)]))
    assert flat.selected_at == 3 and (flat.similarity[3] == 1).all()  # a step later than the paper's
    np.testing.assert_array_equal(flat.recall, row.recall)
    with pytest.raises(ValueError, match="sparse selects in none of the 8 steps, expected a smaller skip"):
        head_report(model, [np.arange(60)], gen_length=8, sparse=dataclasses.replace(sparse, skip=1.0))
    with pytest.raises(ValueError, match="prompts has a batch of 2 rows"):
        head_report(model, [[[1, 2], [3, 4]]], gen_length=8, sparse=sparse)


def test_heads_by_torch() -> None:
    pytest.importorskip("torch")
    options = {"gen_length": 4, "sparse": SparseConfig(min_length=0, block_size=16, rho=0.5)}
    engines = [sparsed.load_model(DATA / "llada_b32", engine=engine) for engine in ("native", "torch")]
    native, torch = (head_report(model, [np.arange(60)], **options) for model in engines)
    np.testing.assert_allclose(native.recall, torch.recall, atol=1e-4)


@pytest.mark.slow
def test_eval_by_torch_runs_every_method(capsys, tmp_path) -> None:
    pytest.importorskip("torch")
    options = ["--engine", "torch", "--lengths", "128", "--tasks", "niah_single_1", "--samples", "1"]
    status, out, _ = run(capsys, "eval", *options, "--out", str(tmp_path))
    assert status == 0 and all(name in out for name in METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "cwe"], "--tasks is 'cwe', expected one of"),
        (["--samples", "0"], "samples is 0, expected an integer >= 1"),
        (["--seed", "-1"], "seed is -1, expected an integer >= 0"),
        (["--lengths", "0"], "lengths is 0, expected an integer >= 1"),
        (["--tasks", "qa_1"], "task qa_1 needs a file, expected --squad FILE"),
        (["--tasks", "qa_2"], "task qa_2 needs a file, expected --hotpotqa FILE"),
        (["--style", "ruler", "--tasks", "niah_single_1"], "expected at most half (--style chooses the wording"),
        (["--device", "cuda"], "device is given, expected engine 'torch' with it"),
        (["--likelihood", "f", "--tasks", "vt"], "--tasks is given with --likelihood, which does not use it"),
        (["--jsonl", "vt=f", "--tasks", "vt"], "--tasks is given with --jsonl, which does not use it"),
        (
            ["--likelihood", "README.md", "--methods", "dKV-Cache"],
            "dKV-Cache given with --likelihood, expected methods without a cache",
        ),
        (["--jsonl", "file"], "jsonl is 'file', expected TASK=FILE"),
        (["--likelihood", "README.md", "--lengths", "10000000"], "expected at least 10000000"),
    ],
)
def test_eval_refuses(capsys, tmp_path, arguments, message) -> None:
    status, _out, err = run(capsys, "eval", "--out", str(tmp_path / "o"), *arguments)
    assert status == 2 and message in err


# --- records ---------------------------------------------------------------------------------------------------------


def test_summary_pairs_the_same_samples() -> None:
    records = [record("dense", i, score) for i, score in enumerate((1.0, 1.0, 0.0, 1.0))]
    records += [record("SparseD", i, score) for i, score in enumerate((1.0, 0.0, 0.0))]
    dense, sparse = summarise(records)
    assert dense.accuracy.mean == 75 and dense.difference is None
    assert sparse.difference is not None and sparse.difference.mean == pytest.approx(-100 / 3)
    assert sparse.difference.low <= sparse.difference.mean <= sparse.difference.high
    assert "-33.33" in table([dense, sparse])
    assert summarise(records[4:])[0].difference is None
    more = [*records, record("dense", 0, 1.0, length=128)]
    pooled = [row for row in summarise(more) if row.length is None]
    assert [(row.method, row.samples, row.answers) for row in pooled] == [("dense", 5, 5), ("SparseD", 3, 3)]
    assert "all" in table(pooled)


def test_tables_have_unbroken_intervals_and_a_legend() -> None:
    records = [record(name, i, 1.0) for name in ("dense", "SparseD") for i in range(8)]
    rows = summarise(records)
    assert rows[0].accuracy.low < rows[0].accuracy.high == 100  # all answers are right
    assert rows[1].difference.low < 0 == rows[1].difference.mean < rows[1].difference.high
    text = table(rows)
    assert "67.6...100.0" in text and "-27.7...+27.7" in text
    for name in ("density: share of the attention", "s: seconds per answer", "95 %: Wilson interval"):
        assert f"\n{name}" in text
    content = {"rows": [dataclasses.asdict(row) for row in rows], "command": "sparsed eval"}
    page = markdown_of_report(content | {"machine": {"cpu": "x", "threads": 2, "sparsed": "0"}})
    cells = [cell.strip(" ") for line in page.splitlines() if line.startswith("| S") for cell in line.split("|")]
    assert "100.0\u00a0(67.6\u00a0...\u00a0100.0)" in cells and "+0.00\u00a0(-27.7\u00a0...\u00a0+27.7)" in cells
    assert "density: share" in page and "np." not in text + page + repr(rows)


def test_one_text_and_one_draw_have_no_interval() -> None:
    rows = held_out_rows({("dense", 64, 0): [1.0], ("SparseD", 64, 0): [1.5]}, ["dense", "SparseD"], 64, 1)
    assert rows[1]["minus_dense"] == {"mean": 0.5, "low": None, "high": None}


def test_log_refuses_damage(tmp_path) -> None:
    log = Log(tmp_path, {"seed": 0}, Record)
    log.add(record("dense", 0, 1.0))
    assert Log(tmp_path, {"seed": 0}, Record).records == log.records
    (tmp_path / "records.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1 of"):
        Log(tmp_path, {"seed": 0}, Record)


def test_report_has_a_picture(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    rows = summarise(
        [record(name, i, 1.0, length=n) for name in ("dense", "SparseD") for i in range(2) for n in (64, 128)]
    )
    paths = write_report(tmp_path, rows, {"command": "sparsed eval"})
    assert [path.name for path in paths] == ["report.txt", "report.json", "report.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


# --- methods ---------------------------------------------------------------------------------------------------------


def test_settings_of_the_paper() -> None:
    assert method("SparseD", "paper", 4096).sparse == SparseConfig(0.2, 0.3, 128, min_length=0, generation="sparse")
    assert method("sliding window", "paper", 4096).sparse == SlidingWindow(2048, 128, "sparse")
    assert method("sliding window", "paper", 1000).sparse == SlidingWindow(256, 128, "sparse")
    assert method("StreamingLLM", "paper", 8192).sparse == sparsed.StreamingLLM(4096, 819, 128, "sparse")
    assert method("sliding window", "demo", 2048).sparse == SlidingWindow(512, 32, "sparse")
    assert method("dual cache", "paper", 4096).sampler(LLaDASampler(), 128) == LLaDASampler(block_length=32)
    assert method("dual cache", "paper", 4096).sampler(LLaDASampler(), 50) == LLaDASampler()
    with pytest.raises(
        ValueError, match="name is 'flash', expected one of dense, sparsed, sliding-window, streamingllm, dkv-cache"
    ):
        method("flash", "paper", 4096)
    dream = sparsed.load_model(DATA / "dream_b32", "float32").config
    assert default_sampler(dream, "paper") == sparsed.DreamSampler(temperature=0.1, top_p=0.9)


@pytest.mark.parametrize("name", METHODS)
def test_methods_in_any_spelling(name: str) -> None:
    spellings = {name, name.lower(), name.upper(), slug(name), slug(name).replace("-", "_"), name.replace(" ", "")}
    for spelling in spellings:
        assert method(spelling, "paper", 4096) == method(name, "paper", 4096) and method_name(spelling) == name
    assert re.fullmatch("[a-z-]+", slug(name))


def test_presets_are_methods(capsys, tmp_path) -> None:
    tokenizer = sparsed.load_tokenizer(demo_model_folder())
    for name in PRESETS:
        made = method(name, "paper", 4096, source=tokenizer)
        given = sparsed.preset(name, tokenizer)
        assert (made.sparse, made.kv_cache, made.stop) == (given.get("sparse"), given.get("kv_cache"), given["stop"])
        assert made.sampler(LLaDASampler(), 20) == given.get("sampler", LLaDASampler())
    with pytest.raises(ValueError, match="method: name is 'fast' and source is None"):
        method("fast", "paper", 4096)
    options = ["--lengths", "128", "--tasks", "vt", "--samples", "1", "--out", str(tmp_path), "--preset", "fast"]
    status, out, _err = run(capsys, "eval", *options)
    assert status == 0 and [line.split()[0] for line in out.splitlines()[2:4]] == ["dense", "fast"]
    both = method("SparseD + cache", "demo", 4096)
    assert both.sparse == SparseConfig(0, 0.3, 32, min_length=0, generation="dense")
    assert both.kv_cache == sparsed.DualCache() and both.block_length == 4


def test_methods_of_the_command(capsys, tmp_path) -> None:
    options = ["--lengths", "128", "--tasks", "vt", "--samples", "1", "--out", str(tmp_path)]
    status, out, _err = run(capsys, "eval", *options, "--methods", "DENSE", "sliding-window", "streaming-llm", "dense")
    assert status == 0 and [line[:14].strip() for line in out.splitlines()[2:5]] == [
        "dense",
        "sliding window",
        "StreamingLLM",
    ]
    with pytest.raises(SystemExit):
        cli.main(["eval", *options, "--methods", "sliding", "window"])
    assert "did you mean sliding-window?" in capsys.readouterr().err


def test_ablations_change_one_thing_each() -> None:
    config = SparseConfig(block_size=32, min_length=0)
    found = {m.name: m.sparse for m in ablations(config)}
    assert len(found) == len(ablations(config)) and found["SparseD"] == config
    assert found["no isolation"] == SparseConfig(block_size=32, min_length=0, isolate=False)
    assert found["refresh 0.6"] == SparseConfig(block_size=32, min_length=0, refresh=(0.6,))
    assert "refresh 0.6" not in {m.name for m in ablations(SparseConfig(skip=0.7))}
    assert "rho 0.3" not in found and "skip 0.2" not in found


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_likelihood_with_every_block_kept_is_dense(family) -> None:
    model = sparsed.load_model(DATA / f"{family}_b32", "float32")
    ids = np.random.default_rng(0).integers(0, 90, 80)
    dense = likelihood(model, ids, target=20, draws=6)
    whole = likelihood(model, ids, target=20, draws=6, sparse=SparseConfig(rho=1.0, block_size=16, min_length=0))
    np.testing.assert_allclose(whole.draws, dense.draws, rtol=1e-4)
    part = likelihood(model, ids, target=20, draws=6, sparse=SparseConfig(rho=0.1, block_size=16, min_length=0))
    assert not np.allclose(part.draws, dense.draws) and dense.perplexity == pytest.approx(np.exp(dense.draws.mean()))


def test_likelihood_of_known_logits() -> None:
    model = sparsed.load_model(demo_model_folder())
    ids = np.arange(4, 30)
    result = likelihood(model, ids, target=1, draws=1)
    state = ids.copy()
    state[-1] = model.config.mask_token_id
    logits = model.forward(state[None], positions=[25])[0, 0].astype(np.float64)
    assert result.nats_per_token == pytest.approx(np.log(np.exp(logits).sum()) - logits[ids[-1]], rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"target": 5},
        {"target": 0},
        {"target": 1, "draws": 0},
        {"target": 1, "draws": 1, "sparse": SparseConfig(min_length=0)},
    ],
)
def test_likelihood_refuses(options) -> None:
    model = sparsed.load_model(DATA / "llada_b32")
    with pytest.raises(ValueError, match="likelihood: "):
        likelihood(model, [1, 2, 3], **options)
