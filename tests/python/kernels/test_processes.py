"""One process and several: forks after import and after kernels ran, threads that call at once, subinterpreters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sparsed
from conftest import random_qkv
from sparsed import ops
from sparsed.apps.demo import demo_model_folder

Q, K, V = random_qkv(0, 1, 4, 2, 200, 200, 32)
WEIGHT = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


def attend() -> Any:
    return sparsed.attention(Q, K, V)


def select() -> Any:
    out, pattern = sparsed.attention_and_select(Q, K, V, prompt_length=150, block_size=16, rho=0.3)
    return np.concatenate([out.ravel(), pattern.to_mask().ravel()])


def multiply() -> Any:
    return ops.linear(Q.reshape(-1, 32), ops.pack_weight(WEIGHT))


CALLS: dict[str, Callable[[], Any]] = {"attend": attend, "select": select, "multiply": multiply}


@pytest.fixture
def two_threads(threads: None) -> None:
    sparsed.set_num_threads(2)


def in_child(body: Callable[[], bool]) -> int:
    """The exit status of a forked child: 0 where `body` returned True; a child that hangs is ended."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if body() else 1)
        except BaseException:
            os._exit(2)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


# Python 3.12 warns of every fork in a process with threads.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
class TestFork:
    @pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
    def test_after_kernels_ran(self, call: Callable[[], Any], two_threads: None) -> None:
        expected = call()
        assert in_child(lambda: np.array_equal(call(), expected)) == 0
        assert np.array_equal(call(), expected)  # the parent goes on with its own threads

    def test_a_child_of_a_child(self, two_threads: None) -> None:
        expected = attend()
        assert in_child(lambda: in_child(lambda: np.array_equal(attend(), expected)) == 0) == 0

    def test_while_another_thread_computes(self, two_threads: None) -> None:
        expected = attend()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                attend()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(5):
                assert in_child(lambda: np.array_equal(attend(), expected)) == 0
        finally:
            stop.set()
            worker.join()

    def test_before_any_call(self) -> None:
        code = (
            "import os, numpy as np, sparsed\n"
            "q = np.ones((1, 2, 300, 32), np.float32)\n"
            "sparsed.set_num_threads(2)\n"
            "child = os.fork()\n"
            "assert np.array_equal(sparsed.attention(q, q, q), q)\n"
            "if child: assert os.waitpid(child, 0)[1] == 0\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call returns, all of them in threads of their own that start together."""
    gate = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def work(number: int) -> None:
        gate.wait()
        results[number] = calls[number]()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_threads_on_the_same_arrays(call: Callable[[], Any], two_threads: None) -> None:
    expected = call()
    for result in at_once([call] * 8):
        np.testing.assert_array_equal(result, expected)


def test_threads_on_different_arrays(two_threads: None) -> None:
    inputs = [random_qkv(seed, 1, 4, 2, 64 + 20 * seed, 64 + 20 * seed, 32) for seed in range(6)]
    expected = [sparsed.attention(*qkv) for qkv in inputs]
    for _ in range(3):
        results = at_once([lambda qkv=qkv: sparsed.attention(*qkv) for qkv in inputs])  # type: ignore[misc]
        for result, alone in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, alone)


def test_threads_that_generate(two_threads: None) -> None:
    model = sparsed.load_model(demo_model_folder())
    prompt = np.arange(40)[None]

    def generate(seed: int) -> Any:
        config = sparsed.SparseConfig(block_size=16, min_length=0, rho=0.5)
        return sparsed.generate(model, prompt + seed, gen_length=8, steps=4, sparse=config, seed=seed).tokens

    expected = [generate(seed) for seed in range(4)]
    results = at_once([lambda seed=seed: generate(seed) for seed in range(4)])  # type: ignore[misc]
    for result, alone in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, alone)


def test_threads_that_change_their_number(two_threads: None) -> None:
    expected = attend()
    calls: list[Callable[[], Any]] = [attend] * 4
    calls += [lambda n=n: [sparsed.set_num_threads(n) for _ in range(100)] for n in (1, 2, 3)]  # type: ignore[misc]
    for result in at_once(calls)[:4]:
        np.testing.assert_array_equal(result, expected)


def test_sparse_calls_while_the_number_of_threads_changes(two_threads: None) -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 64, 16), np.float32)
    pattern = sparsed.BlockPattern.streaming(heads=2, q_len=64, kv_len=64, block_size=16, window=20, sinks=4)
    expected = sparsed.attention(q, q, q, pattern)
    calls: list[Callable[[], Any]] = [lambda: [sparsed.attention(q, q, q, pattern) for _ in range(400)]] * 3
    calls += [lambda: [sparsed.set_num_threads(1 + i % 3) for i in range(20000)]]
    for result in at_once(calls)[:3]:
        np.testing.assert_array_equal(result[-1], expected)


@pytest.mark.parametrize("main_first", [True, False])
def test_subinterpreters_are_refused(main_first: bool) -> None:
    code = f"""
import importlib.util
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if {main_first}:
    import sparsed
inner = '''
import importlib.util
path = {sys.modules["sparsed.kernels._core"].__file__!r}
spec = importlib.util.spec_from_file_location("sparsed.kernels._core", path)
try:
    importlib.util.module_from_spec(spec)
except ImportError as error:
    print("refused:", error)
'''
other = interpreters.create()
print(interpreters.run_string(other, inner) or "")
interpreters.destroy(other)
import numpy, sparsed
q = numpy.ones((1, 1, 16, 16), numpy.float32)
assert numpy.array_equal(sparsed.attention(q, q, q), q)
"""
    done = subprocess.run([sys.executable, "-uc", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stdout and "subinterpreter" in done.stdout
