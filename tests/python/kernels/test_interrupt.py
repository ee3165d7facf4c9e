"""Ctrl-C inside the kernels: a call that would take long ends early, in the main thread, and the next call works."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import sparsed
from sparsed import ops

DELAY = 0.3  # seconds until the signal


def long_attention() -> Callable[[], object]:
    q = np.zeros((1, 16, 65536, 64), np.float32)
    return lambda: sparsed.attention(q, q, q)


def long_selection() -> Callable[[], object]:
    q = np.zeros((1, 16, 65536, 64), np.float32)
    return lambda: sparsed.attention_and_select(q, q, q, prompt_length=65000, block_size=128)


def long_linear() -> Callable[[], object]:
    x = np.zeros((65536, 4096), np.float32)
    weight = ops.pack_weight(np.zeros((8192, 4096), np.float32))
    return lambda: ops.linear(x, weight)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", [long_attention, long_selection, long_linear])
def test_returns_within_a_second(make: Callable[[], Callable[[], object]], threads: int) -> None:
    call = make()
    before = sparsed.get_num_threads()
    sparsed.set_num_threads(threads)
    sent = []

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(DELAY, interrupt)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        # Not how fast the kernels are: each of these calls takes more than twice as long on the fastest machine.
        assert time.monotonic() - sent[0] < 1.0
    finally:
        timer.join()
        sparsed.set_num_threads(before)
    q = np.ones((1, 1, 64, 16), np.float32)
    np.testing.assert_array_equal(sparsed.attention(q, q, q), q)


def test_the_cache_is_as_before() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 8, 32768, 64), np.float32)
    cache = sparsed.PatternCache(
        sparsed.SparseConfig(skip=0.0, block_size=128, min_length=0), steps=10, prompt_length=32000
    )
    cache.begin_step(0)
    assert cache.phase == "select"
    timer = threading.Timer(DELAY, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        cache.attend(0, q, q, q)
    timer.join()
    with pytest.raises((ValueError, RuntimeError)):
        cache.pattern(0)
    short = q[:, :1, :1024]
    other = sparsed.PatternCache(
        sparsed.SparseConfig(skip=0.0, block_size=128, min_length=0), steps=10, prompt_length=1000
    )
    other.begin_step(0)
    other.attend(0, short, short, short)
    assert other.pattern(0).heads == 1


@pytest.mark.slow
def test_a_handler_that_goes_on_does_not_stop_the_call() -> None:
    caught = []
    signal.signal(signal.SIGALRM, lambda number, frame: caught.append(number))
    q = np.random.default_rng(0).standard_normal((1, 4, 8192, 64), np.float32)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        out = sparsed.attention(q, q, q)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert caught
    np.testing.assert_array_equal(out, sparsed.attention(q, q, q))


def test_a_handler_may_read_the_cache_but_not_change_it() -> None:
    q = np.random.default_rng(0).standard_normal((1, 4, 8192, 64), np.float32)
    config = sparsed.SparseConfig(skip=0.0, min_length=0)
    cache = sparsed.PatternCache(config, steps=4, prompt_length=8000)
    cache.begin_step(0)
    seen = []

    def handler(number: int, frame: object) -> None:
        seen.append((cache.phase, cache.layers))
        with pytest.raises(ValueError, match=r"PatternCache\.begin_step: called by a signal handler inside another"):
            cache.begin_step(1)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        cache.attend(0, q, q, q)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert seen == [("select", [])] and cache.layers == [0]


def test_other_threads_finish() -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 8192, 64), np.float32)
    results = []
    worker = threading.Thread(target=lambda: results.append(sparsed.attention(q, q, q)))
    worker.start()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    worker.join()
    np.testing.assert_array_equal(results[0], sparsed.attention(q, q, q))
