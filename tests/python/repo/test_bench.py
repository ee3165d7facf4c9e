"""The benchmarks on tiny shapes: every command runs, results are checked, figures add up. No times are judged.

The file is long because all benchmarks share its tiny shapes.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsed

pytest.importorskip("bench", reason="the benchmarks are not installed")

from bench import (
    amdahl,
    arrays,
    cases,
    decoding,
    generate,
    harness,
    machine,
    main,
    memory,
    peers,
    plots,
    report,
    shared_cores,
    tables,
)

TINY = ["--quick", "--repeat", "2", "--length", "256"]

pytestmark = pytest.mark.slow


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """A benchmark's JSON."""
    path = tmp_path / "result.json"
    assert main([*arguments, "--json", str(path)]) == 0
    return report.read(path)


def test_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(tmp_path, "attention", *TINY, "--head-dim", "64", "--heads", "4", "--kv-heads", "2", "--no-peers")
    assert content["machine"]["isa"] == sparsed.active_backend()
    assert content["machine"]["versions"]["sparsed"] == sparsed.__version__
    assert {row["dtype"] for row in content["rows"]} == {"bfloat16", "float32"}
    for row in content["rows"]:
        assert len(row["runs_s"]) == 2
        assert row["min_s"] <= row["median_s"]
        flops = 4 * row["heads"] * row["length"] ** 2 * row["head_dim"] * row["density"]
        assert row["flops_per_s"] == pytest.approx(flops / row["median_s"])
        if row["block_size"] is not None:
            assert row["efficiency"] == pytest.approx(row["density"] * row["speedup_dense"])
    printed = capsys.readouterr().out
    assert "float32 hd 64 256 x 4/2 heads" in printed
    assert "efficiency" in printed
    markdown = tables.markdown(content)
    assert "| float32, 64, 256 |" in markdown


def test_swept_densities_have_a_table(tmp_path: Path) -> None:
    shape = ("--length", "320", "--head-dim", "16", "--heads", "1", "--dtype", "float32", "--block-size", "32")
    content = run(tmp_path, "attention", *shape, "--density", "0.1", "0.5", "1.0", "--repeat", "1", "--no-peers")
    text = tables.markdown(content)
    assert "| dtype, head_dim, tokens | block | 0.10 | 0.50 | 1.00 |" in text
    assert "| float32, 16, 320 | 32 | " in text


def test_grouped_heads(tmp_path: Path) -> None:
    content = run(tmp_path, "gqa", "--quick", "--repeat", "1", "--length", "64", "--head-dim", "16")
    assert [(row["kind"], row["heads"], row["kv_heads"]) for row in content["rows"]] == [
        ("dense", 7, 1),
        ("dense", 7, 7),
        ("sparse", 7, 1),
        ("sparse", 7, 7),
    ]
    assert content["rows"][0]["versus_mha"] == content["rows"][0]["median_s"] / content["rows"][1]["median_s"]
    assert "| dense | 7 | 1 |" in tables.markdown(content)


def test_cached_step(tmp_path: Path) -> None:
    content = run(tmp_path, "cached-step", "--quick", "--repeat", "1", "--length", "64", "--head-dim", "16")
    names = ["step", "update", "packing each time", *(["torch SDPA"] if not content["skipped"] else [])]
    assert [(row["rows"], row["contender"]) for row in content["rows"]] == [
        (n, name) for n in (1, 32) for name in names
    ]
    step, update, packing, *_ = content["rows"]
    assert packing["versus_step"] == packing["median_s"] / step["median_s"]
    assert "bytes_per_s" in step and "bytes_per_s" not in update
    assert "| bfloat16 | 16 | 64 | 4 | 4 | 1 | step |" in tables.markdown(content)


def test_selection(tmp_path: Path) -> None:
    content = run(tmp_path, "selection", *TINY, "--head-dim", "64", "--dtype", "float32", "--block-size", "16", "32")
    dense, *selecting = content["rows"]
    assert [(row["contender"], row["block_size"]) for row in selecting] == [
        (name, size) for size in (16, 32) for name in ("attention_and_select", "select")
    ]
    for row in selecting:
        ratio = row["median_s"] / dense["median_s"]
        assert row.get("overhead", ratio - 1) == pytest.approx(ratio - 1)
        assert row.get("share", ratio) == pytest.approx(ratio)
    assert "only selection ms" in tables.markdown(content)


def test_linear(tmp_path: Path) -> None:
    content = run(tmp_path, "linear", "--quick", "--repeat", "1", "--peers", "numpy")
    assert {row["case"] for row in content["rows"]} == {
        f"demo {name}" for name in ("qkv", "out", "gate", "down", "head")
    }
    assert {row["contender"] for row in content["rows"]} == {"sparsed", "sparsed int8", "numpy"}
    assert content["skipped"][0]["contender"] == "numpy"  # bfloat16
    medians = {(row["case"], row["contender"], row["dtype"]): row["median_s"] for row in content["rows"]}
    int8 = [row for row in content["rows"] if row["contender"] == "sparsed int8"]
    assert len(int8) == 5
    for row in int8:
        assert row["dtype"] == "int8"
        ratio = medians[row["case"], "sparsed", "bfloat16"] / row["median_s"]
        assert row["versus_bfloat16"] == pytest.approx(ratio)
    assert "over bfloat16" in tables.markdown(content)


def test_linear_of_torch_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    content = run(tmp_path, "linear", "--quick", "--repeat", "1", "--peers", "int8", "--dtype", "bfloat16")
    peer = [row for row in content["rows"] if row["contender"] == "torch int8"]
    assert len(peer) == 5
    assert all(row["dtype"] == "int8" and row["error"] < 0.05 for row in peer)


TINY_SHAPES = {
    "tiny-llada": cases.LayerShape("tiny-llada", "llada", 32, 64, 4, 4, 96, 500, 5e5, 1e-5),
    "tiny-dream": cases.LayerShape("tiny-dream", "dream", 28, 64, 4, 2, 96, 500, 1e6, 1e-6),
}


@pytest.fixture
def tiny_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in TINY_SHAPES.items():
        monkeypatch.setitem(cases.LAYER_SHAPES, name, shape)


def phases(row: dict[str, Any]) -> dict[str, int]:
    return {
        phase: row[f"{phase}_steps"] for phase in ("dense", "select", "sparse", "cached") if f"{phase}_steps" in row
    }


@pytest.mark.usefixtures("tiny_shapes")
def test_generate(tmp_path: Path) -> None:
    content = run(tmp_path, "generate", "--model", *TINY_SHAPES, "--length", "300", "--layers", "2", "--repeat", "2")
    for name, shape in TINY_SHAPES.items():
        rows = {(row["contender"], row["tokens_per_step"]): row for row in content["rows"] if row["model"] == name}
        dream = shape.family == "dream"  # some of its steps unmask nothing, and do not call the model
        assert phases(rows["dense", 1]) == {"dense": 127 if dream else 128}
        assert phases(rows["dense", 2]) == {"dense": 64}
        assert phases(rows["SparseD", 2]) == {"dense": 11, "select": 1, "sparse": 52}
        assert phases(rows["dual cache", 1]) == {"dense": 4, "cached": 120 if dream else 124}
        assert phases(rows["one full pass", 2]) == {"dense": 1, "cached": 63}
        assert rows["dense", 1]["speedup"] == rows["dense", 1]["all_layers_speedup"] == 1
        for row in rows.values():
            assert row["how"] == "steps" and row["layers"] == 2
            assert row["seconds"] == pytest.approx(sum(kind["count"] * kind["median_s"] for kind in row["kinds"]))
            assert all(len(kind["runs_s"]) >= 2 for kind in row["kinds"])
        for contender, block in (("dual cache", 32), ("one full pass", 128)):
            kinds = {(kind["phase"], kind["rows"]) for kind in rows[contender, 1]["kinds"]}
            assert (
                {("dense", 0), ("cached", block)} <= kinds <= {("dense", 0), ("cached", block), ("cached", block + 1)}
            )
    skipped = {row["contender"]: row["reason"] for row in content["skipped"]}
    assert skipped["Fast-dLLM"] == "no checkout was given (--fast-dllm)"
    assert "| tiny-llada | 2 | 300 | dense | 1 | 128 |" in tables.markdown(content)


@pytest.mark.usefixtures("tiny_shapes")
def test_generations_to_their_end(tmp_path: Path) -> None:
    arguments = ["--model", "tiny-llada", "--length", "300", "--layers", "1", "--repeat", "1", "--whole", "--int8"]
    rows = run(tmp_path, "generate", *arguments)["rows"]
    assert all(row["how"] == "whole" and row["seconds"] != row["steps_s"] > 0 for row in rows)
    steps = {(row["contender"], row["tokens_per_step"]): phases(row) for row in rows}
    for (name, tokens), found in steps.items():
        assert steps.get((f"{name}, int8", tokens), found) == found
    assert {name for name, _ in steps} >= {"dense, int8", "SparseD + dual cache, int8"}
    assert rows[0]["contender"] == "dense" and rows[0]["speedup"] == 1


@pytest.mark.filterwarnings("ignore")  # of Fast-dLLM, which was written for older releases
@pytest.mark.usefixtures("tiny_shapes")
def test_generate_with_fast_dllm(tmp_path: Path) -> None:
    checkout = os.environ.get("FAST_DLLM")
    if checkout is None:
        pytest.skip("FAST_DLLM does not name a checkout of NVlabs/Fast-dLLM")
    arguments = ["--model", "tiny-llada", "--length", "300", "--layers", "2", "--repeat", "1", "--fast-dllm", checkout]
    rows = {(row["contender"], row["tokens_per_step"]): row for row in run(tmp_path, "generate", *arguments)["rows"]}
    assert phases(rows["Fast-dLLM dense", 1]) == {"dense": 128}
    assert phases(rows["Fast-dLLM dual cache", 2]) == {"dense": 4, "cached": 60}
    cached = [kind for kind in rows["Fast-dLLM prefix cache", 1]["kinds"] if kind["phase"] == "cached"]
    assert [(kind["rows"], kind["count"]) for kind in cached] == [(32, 31), (64, 31), (96, 31), (128, 31)]


@pytest.mark.usefixtures("tiny_shapes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "128"], "length is 128, expected more than 128"),
        (["--length", "300", "--fast-dllm", "nowhere"], "nowhere/llada has no generate.py .* expected a checkout of"),
    ],
)
def test_generate_refuses(arguments: list[str], message: str) -> None:
    if "--fast-dllm" in arguments:  # without torch the peer is left out with a note
        pytest.importorskip("torch")
    with pytest.raises(ValueError, match=f"generate: {message}"):
        main(["generate", "--model", "tiny-llada", "--layers", "1", *arguments])


def test_seconds_of_all_layers() -> None:
    dense, cached = decoding.Kind("dense"), decoding.Kind("cached", 32)
    measured = generate.Measured(6, {dense: [9.0, 10.0, 30.0], cached: [0.5]}, {dense: [2.0], cached: [0.1]})
    sparse = decoding.Kind("sparse")
    measured.seconds[sparse] = [6.0]
    schedule = Counter({dense: 1, sparse: 3, decoding.Kind("cached", 33): 28})
    row = generate.generation_row(schedule, measured, 16)
    assert row["seconds"] == pytest.approx(10 + 3 * 6 + 28 * 0.5)
    layers = (10 - 2) + 3 * (6 - 2) + 28 * (0.5 - 0.1)  # of which 16 times as many are in the model
    assert row["all_layers_s"] == pytest.approx(16 * layers + 4 * 2 + 28 * 0.1)
    assert (row["dense_steps"], row["sparse_steps"], row["cached_steps"]) == (1, 3, 28)


@pytest.mark.parametrize("model", ["demo", "grouped"])
def test_amdahl_and_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    grouped = cases.LayerShape("grouped", "dream", 28, 64, 4, 2, 96, 64, 1e6, 1e-6)
    monkeypatch.setitem(cases.LAYER_SHAPES, "grouped", grouped)
    common = [*TINY, "--length", "512", "--model", model, "--layers", "1", "--folder", str(tmp_path / "checkpoints")]
    content = run(tmp_path, "amdahl", *common, "--no-peers")
    measured = {row["phase"]: row for row in content["rows"] if row["kind"] == "measured"}
    assert measured["dense"]["density"] == measured["select"]["density"] == 1
    assert measured["sparse"]["density"] == 0.5  # int(3 * 0.3) + 1 of the prompt's 3 blocks and the generation's one
    assert [row["steps"] for row in content["rows"] if row["kind"] == "computed"] == [128, 256, 1024]
    assert "T = 1024" in tables.markdown(content)

    content = run(tmp_path, "step", *common, "--dtype", "bfloat16", "float32")
    assert len(content["rows"]) == 6
    assert all(0 <= row["other_share"] <= 1 for row in content["rows"])
    assert tables.markdown(content).count("\n| ") == 7


def test_torch_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    common = [*TINY, "--length", "512", "--model", "demo", "--layers", "1", "--folder", str(tmp_path / "checkpoints")]
    content = run(tmp_path, "torch", *common, "--peers", "sdpa")
    steps = [(row["contender"], row["phase"], row["density"]) for row in content["rows"]]
    assert steps == [
        ("torch SDPA", "dense", 1),
        ("sparsed", "dense", 1),
        ("sparsed", "select", 1),
        ("sparsed", "sparse", 0.5),
    ]
    assert content["rows"][0]["versus_sdpa"] == 1
    assert content["skipped"] == [{"contender": "torch flex", "reason": "not asked for"}]
    assert tables.markdown(content).count("\n| ") == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_model_with_flex(tmp_path: Path) -> None:
    reason = peers.PEERS["flex"].why_not()
    if reason is not None:
        pytest.skip(reason)
    content = run(tmp_path, "torch", *TINY, "--length", "512", "--layers", "1", "--folder", str(tmp_path))
    assert ("torch flex", "sparse", 0.5) in [
        (row["contender"], row["phase"], row["density"]) for row in content["rows"]
    ]


def test_computed_speedup_and_bound() -> None:
    case = cases.GenerationCase("llada-8b", 2, 65536, 1)
    medians = amdahl.Medians(dense=10.0, select=10.0, sparse=4.5, attention=8.0, density=0.3)
    first, _, last = amdahl.computed_rows(case, medians)
    # T = 128: steps 0 ... 23 dense, 24 selects, 103 sparse ones of at best 10 - 8 * 0.7 = 4.4.
    assert first["speedup"] == pytest.approx(1280 / (250 + 103 * 4.5))
    assert first["bound"] == pytest.approx(1280 / (250 + 103 * 4.4))
    assert first["of_bound"] == pytest.approx(first["speedup"] / first["bound"])
    assert first["dense_s"] == pytest.approx(1280 * 32 / 2)
    assert (first["published"], last["published"]) == (1.25, 1.48)


def test_memory_and_scaling(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    content = run(tmp_path, "scaling", "--quick", "--repeat", "1", "--length", "256", "512", "--head-dim", "16")
    assert [row["length"] for row in content["rows"]] == [256, 512]
    case = cases.AttentionCase("float32", 16, 512, 2, 1)
    row = memory.measure_peak(case, "select", block_size=32)
    assert row["inputs"] == (2 + 1 + 1) * 512 * 16 * 4
    assert row["extra"] > 0


def test_shared_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library, alone and beside a second process; the baseline here is the same module."""
    monkeypatch.setattr(shared_cores, "_loaded_first", lambda report: ("-",))  # torch takes seconds to load
    module = sys.modules["sparsed.kernels._core"].__file__
    arguments = ["--quick", "--repeat", "1", "--length", "16", "--baseline", str(module)]
    rows = run(tmp_path, "shared-cores", *arguments)["rows"]
    measured = {(row["library"], row["processes"]) for row in rows}
    assert measured == set(itertools.product(("this", "baseline"), (1, 2)))
    for row in rows:
        assert (row["over_alone"] is None) == (row["processes"] == 1)
        assert (row["over_baseline"] is None) == (row["library"] == "baseline")


@pytest.mark.parametrize("length", [16384, 65536])
@pytest.mark.parametrize("call", memory.CALLS)
def test_peak_memory(call: memory.Call, length: int) -> None:
    """A call holds its output, packed K and V, tiles per thread and, to select, a matrix of blocks per head."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    case = cases.AttentionCase("float32", 16, length, 1, 1)
    row = memory.measure_peak(case, call, density=0.05)
    assert row["extra"] <= row["expected"]


def test_errors(tmp_path: Path) -> None:
    content = run(tmp_path, "errors", "--peers", "numpy")
    verdicts = {(row["contender"], row["task"], row["dtype"]): row["verdict"] for row in content["rows"]}
    assert all(verdict == "right" for (name, _, _), verdict in verdicts.items() if name == "sparsed")
    assert verdicts["numpy", "sparse", "float32"] == "right"
    assert verdicts["numpy", "dense", "bfloat16"].startswith("skipped: ")


def test_a_missing_peer_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers.PEERS["sdpa"], "why_not", lambda: "torch is not installed")
    content = run(tmp_path, "attention", *TINY, "--head-dim", "16", "--dtype", "float32", "--peers", "sdpa")
    assert "skipped: torch SDPA: torch is not installed" in capsys.readouterr().out
    assert content["skipped"] == [{"contender": "torch SDPA", "reason": "torch is not installed"}]


def test_limits_reach_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    arguments = ["selection", *TINY, "--head-dim", "16", "--dtype", "float32", "--block-size", "32"]
    assert main([*arguments, "--isa", "scalar", "--threads", "1", "--json", str(path)]) == 0
    found = report.read(path)["machine"]
    assert (found["isa"], found["threads"]) == ("scalar", 1)
    assert found["limits"]["ATEN_CPU_CAPABILITY"] == "default"
    assert "SPARSED_ISA" not in os.environ


@pytest.mark.parametrize("isa", machine.PEER_LIMITS)
def test_limits_name_backends(isa: str) -> None:
    assert isa in [backend.name for backend in sparsed.backends()]
    assert machine.limited_environment(isa, 2)["SPARSED_ISA"] == isa


def test_the_command_line_refuses() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "attention", "--quick", "--head-dim", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sparsed bench: error: ")


def test_a_wrong_result_is_not_timed() -> None:
    case = cases.AttentionCase("float32", 16, 64, 1, 1)
    q, k, v = arrays.random_qkv(case)
    blocks = arrays.random_blocks(64, 1, 16, 0.5)
    out = sparsed.attention(q, k, v, blocks.pattern)
    assert arrays.check_attention("right", out, q, k, v, blocks, full=True).error < 1e-5
    with pytest.raises(arrays.CheckError, match="wrong differs from float64"):
        arrays.check_attention("wrong", out, q, k, v, None, full=True)
    x, weight = q[0, 0], k[0, 0]
    with pytest.raises(arrays.CheckError, match="differs"):
        arrays.check_linear("wrong", x @ weight.T + 1, x, weight)
    with pytest.raises(arrays.CheckError, match="keeps"):
        arrays.check_selection(blocks, q, k, [(range(4), 1)])
    weakest = np.zeros((1, 1, 4, 4), np.bool_)
    weakest[..., 0] = True
    with pytest.raises(arrays.CheckError, match="less mass"):
        arrays.check_selection(arrays.Blocks(weakest, 16, 64), q, k, [(range(4), 1)])


@pytest.mark.parametrize("length", [256, 300])
def test_density_counts_pairs(length: int) -> None:
    blocks = arrays.random_blocks(length, 2, 32, 0.4)
    pairs = sum(int(blocks.keys(head, row).sum()) for head in range(2) for row in range(length))
    assert blocks.density == pytest.approx(pairs / (2 * length**2))
    assert (blocks.mask.sum(axis=3) == cases.kept_blocks(length, 32, 0.4)).all()
    assert blocks.mask[0, :, range(blocks.mask.shape[2]), range(blocks.mask.shape[3])].all()


def test_contenders_alternate() -> None:
    order: list[str] = []
    contenders = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = harness.time_in_turns(contenders, 3, min_seconds=0)
    assert order == ["a", "a", "b", "b", *"ababab"]
    assert all(len(timing.seconds) == 3 for timing in timings.values())
    timing = harness.Timing((3.0, 1.0, 2.0))
    assert (timing.median, timing.minimum, timing.quartiles) == (2.0, 1.0, (1.5, 2.5))
    assert harness.median_ratio(timing, harness.Timing((1.0, 1.0, 1.0))) == 2.0


def test_tables_are_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "selection", *TINY, "--head-dim", "16", "--dtype", "float32", "--block-size", "32")
    capsys.readouterr()
    assert main(["tables", str(tmp_path / "result.json")]) == 0
    assert capsys.readouterr().out.startswith("## selection\n\n| dtype")


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "attention", *TINY, "--head-dim", "16", "--dtype", "float32", "--no-peers")
    status = main(["plot", str(tmp_path / "result.json"), "--out", str(tmp_path), "--peak", "float32=0.4"])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert status == 1
        assert "matplotlib is not installed" in capsys.readouterr().out
        return
    assert status == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"roofline.png", "density.png"}
    row = {"dtype": "float32", "heads": 1, "kv_heads": 1, "length": 64, "density": 0.5}
    assert plots.intensity(row) == 8.0


def test_a_foreign_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="not a result of sparsed bench"):
        report.read(path)
