"""An interrupt in a Jupyter kernel: cells that wait do not run with half a text, and the kernel works on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel")
manager = pytest.importorskip("jupyter_client.manager")

pytestmark = pytest.mark.slow

SECONDS = 120
SETUP = """
import pathlib, sys, time
import sparsed
from sparsed.demo import demo_model_folder
model, tokenizer = sparsed.load_model(demo_model_folder()), sparsed.load_tokenizer(demo_model_folder())
options = {"gen_length": 16, "steps": 16, "sparse": sparsed.SparseConfig(min_length=0, block_size=16)}
prompt = tokenizer.chat("the sun is")

def slow(info):
    if info.step == 3:
        pathlib.Path(mark).touch()
    if info.step >= 3:
        time.sleep(0.1)  # the interrupt comes while this runs
"""


@pytest.fixture
def kernel() -> Iterator[tuple[Any, Any]]:
    started, client = manager.start_new_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield started, client
    client.stop_channels()
    started.shutdown_kernel(now=True)


def value(client: Any, expression: str) -> Any:
    """What a Python expression is in the kernel."""
    reply = client.execute_interactive("", user_expressions={"x": expression}, silent=True, timeout=SECONDS)
    return reply["content"]["user_expressions"]["x"]["data"]["text/plain"]


@pytest.mark.parametrize("progress", [False, True])
def test_run_all_stops_at_the_interrupted_cell(kernel: tuple[Any, Any], tmp_path: Path, progress: bool) -> None:
    started, client = kernel
    mark = tmp_path / "step"
    reply = client.execute_interactive(f"mark = {str(mark)!r}\n{SETUP}", timeout=SECONDS, output_hook=lambda m: None)
    assert reply["content"]["status"] == "ok", reply["content"]
    cell = f"result = sparsed.generate(model, prompt, on_step=slow, progress={progress}, **options)\nafter = True"
    client.execute(cell)
    client.execute("queued = True")
    end = time.monotonic() + SECONDS
    while not mark.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    started.interrupt_kernel()
    replies = [client.get_shell_msg(timeout=SECONDS)["content"] for _ in range(2)]
    assert [reply["status"] for reply in replies] == ["error", "aborted"]
    assert replies[0]["ename"] == "KeyboardInterrupt" and "its result holds the text so far" in replies[0]["evalue"]

    # The text so far is there, and the same call works again, to its end.
    assert value(client, "(result.interrupted, after, 'queued' in globals())") == "(True, True, False)"
    assert value(client, "4 <= int((result.filled_at >= 0).sum()) < 16") == "True"
    again = "again, once = (sparsed.generate(model, prompt, **options) for _ in range(2))"
    assert client.execute_interactive(again, timeout=SECONDS)["content"]["status"] == "ok"
    assert value(client, "(again.interrupted, again == once, (again.filled_at >= 0).all().item())") == (
        "(False, True, True)"
    )
    assert value(client, "(result.history, sys.modules['signal'].getsignal(2).__name__)") == (
        "(None, 'default_int_handler')"
    )
