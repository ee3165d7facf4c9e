"""What the tests share: the backends that can run here, dtypes, random arrays."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import sparsed
from device_arrays import send_to_device
from goldens import CASES, Golden, golden_case
from reference import num_blocks
from sparsed.kernels import _core

AVAILABLE = [backend.name for backend in sparsed.backends() if backend.available]
# For arrays in host memory.
BACKENDS = [name for name in AVAILABLE if name != "cuda"]
# Where arrays can lie: in host memory for each of these backends, and on a GPU (`pytest -m gpu`). torch warns of its
# features there.
ON_GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.filterwarnings("ignore")])
PLACES = [*BACKENDS, ON_GPU] if "cuda" in AVAILABLE else BACKENDS
DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@pytest.fixture(scope="session", autouse=True)
def python_sigint() -> None:
    """Python's own Ctrl-C handler, also where the shell started the tests with SIGINT ignored (in the background)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def set_backend() -> Iterator[Callable[[str | None], None]]:
    """Chooses a backend for arrays in host memory; None: by SPARSED_ISA. The end of the test takes it back."""
    yield _core.set_backend
    _core.set_backend(None)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, set_backend: Callable[[str | None], None]) -> str:
    """Each backend for arrays in host memory that can run here, chosen."""
    set_backend(request.param)
    assert sparsed.active_backend() == request.param
    return str(request.param)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, set_backend: Callable[[str], None]) -> str:
    """Where the arrays of a test lie: its calls run on each backend of the host, and on a GPU with arrays there."""
    if request.param == "cuda":
        send_to_device(monkeypatch)
    else:
        set_backend(request.param)
    return str(request.param)


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    result: np.dtype[Any] = DTYPES[request.param]
    return result


@pytest.fixture(scope="session", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each of the golden cases."""
    return golden_case(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = sparsed.get_num_threads()
    yield
    sparsed.set_num_threads(before)


def random_qkv(
    seed: int, batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int, dtype: Any = np.float32
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """q (B, H, L, D), k and v (B, H_kv, S, D), normally distributed."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal((batch, h, n, head_dim), np.float32).astype(dtype)
        for h, n in ((heads, q_len), (kv_heads, kv_len), (kv_heads, kv_len))
    )
    return q, k, v


def random_mask(seed: int, batch: int, heads: int, q_len: int, kv_len: int, block_size: int) -> NDArray[np.bool_]:
    """(B, H, q_blocks, kv_blocks): half of the blocks."""
    shape = (batch, heads, num_blocks(q_len, block_size), num_blocks(kv_len, block_size))
    return np.random.default_rng(seed).random(shape) < 0.5
