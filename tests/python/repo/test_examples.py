"""The scripts in examples/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsed
from paths import ROOT
from sparsed.apps.demo import demo_model_folder

QUESTION = "the sun is yellow . the magic number for zileba is {} . question : what are the magic numbers for zileba ?"

# A small Ray of its own on this machine, then the example.
LOCAL_RAY = """
import runpy, sys
import ray
ray.init("local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
runpy.run_path(sys.argv[1], run_name="example")["main"](sys.argv[2:])
"""


def environment(**variables):
    """With the package that is under test."""
    path = os.pathsep.join([str(Path(sparsed.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | variables


@pytest.mark.slow
def test_tensor_parallel() -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [ROOT / "examples" / "tensor_parallel.py", demo_model_folder(), QUESTION.format("567")]
    command += ["--dtype", "float32", "--gen-length", "8", "--steps", "8"]
    run = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"), timeout=240
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "zileba is 567 ;\n"


@pytest.mark.slow
def test_ray_data(tmp_path) -> None:
    pytest.importorskip("ray.data")
    answers = {QUESTION.format(number): f"zileba is {number} ;" for number in ("107", "567", "987")}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in answers))
    example = ROOT / "examples" / "ray_data.py"
    command = [sys.executable, "-c", LOCAL_RAY, example, demo_model_folder(), prompts, tmp_path / "answers"]
    command += ["--batch-size", "2", "--gen-length", "8", "--steps", "8", "--dtype", "float32"]
    quiet = environment(RAY_USAGE_STATS_ENABLED="0")
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=quiet, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    parts = [part.read_text().splitlines() for part in (tmp_path / "answers").glob("*.json*")]
    rows = [json.loads(line) for lines in parts for line in lines]
    assert {row["prompt"]: row["answer"] for row in rows} == answers


def test_every_example_has_a_test() -> None:
    tests = Path(__file__).read_text()
    assert all(f'"{example.name}"' in tests for example in (ROOT / "examples").iterdir() if example.suffix == ".py")
