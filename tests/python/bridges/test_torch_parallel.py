"""The torch engine in parts: heads over the processes of a group, layers over devices."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sparsed  # noqa: E402
from goldens import golden_case  # noqa: E402
from paths import DATA, ROOT  # noqa: E402
from published_configs import PUBLISHED  # noqa: E402
from sparsed.apps.demo import demo_model_folder  # noqa: E402
from sparsed.models import ConfigReader, find_architecture  # noqa: E402
from sparsed.torch import parallel  # noqa: E402
from sparsed.torch.engine import Network, NetworkLayer  # noqa: E402
from sparsed.torch.parallel import HeadShare, resolve_device_map  # noqa: E402
from tiny_checkpoint import tiny_config, write_checkpoint  # noqa: E402

WORKER = ROOT / "tests" / "python" / "tensor_parallel_worker.py"


def config_of(values):
    return find_architecture(values, "config.json").read_config(ConfigReader(values, "config.json"))


# --- heads over processes --------------------------------------------------------------------------------------------


# dream_b32 has 4 heads that share 2 key/value heads, dream_margin 4 that share 1: both processes hold that one.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada_b32", "dream_b32", "dream_margin", "a2d_qwen3"])
def test_two_processes_give_the_tokens_of_one(tmp_path, name) -> None:
    commands = [[sys.executable, str(WORKER), str(rank), "2", str(tmp_path), name] for rank in range(2)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    goldens = golden_case(name).arrays
    native = sparsed.load_model(DATA / name, "float32")
    cached = sparsed.generate(native, kv_cache=sparsed.DelayedCache(refresh=3), **golden_case(name).options())
    window = sparsed.BlockPattern.sliding_window(
        1, native.config.num_heads, window=20, block_size=16, q_len=48, kv_len=48
    )
    given = sparsed.generate(native, np.arange(5, 45), gen_length=8, steps=4, sparse=window)
    heads = native.config.num_kv_heads
    store_bytes = 2 * 3 * native.config.num_layers * heads * native.config.head_dim * 4
    for part in parts:
        np.testing.assert_array_equal(part["dense"], goldens["dense_tokens"])
        np.testing.assert_array_equal(part["cached"], cached.tokens)
        np.testing.assert_array_equal(part["given"], given.tokens)
        expected = f"generate: sparse has heads {window.heads}, expected {window.heads // 2} (the query heads of the"
        assert str(part["heads_error"]).startswith(expected)
        assert "ids differ between the processes" in str(part["error"])
        assert "computed differ between the processes" in str(part["computed_error"])
        # Each process keeps its own key/value heads; there is at least one.
        assert part["key_values"][0] == part["key_values"][1] == store_bytes // min(2, heads)
    if golden_case(name).has_sparse:
        np.testing.assert_array_equal(parts[0]["sparse"], goldens["sparse_tokens"])
        np.testing.assert_array_equal(parts[1]["sparse"], goldens["sparse_tokens"])
        np.testing.assert_array_equal(np.concatenate([part["pattern"] for part in parts], axis=1), goldens["pattern"])
    whole = sparsed.load_model(DATA / name, "bfloat16", engine="torch")
    np.testing.assert_array_equal(parts[0]["bfloat16"], parts[1]["bfloat16"])
    error = parts[0]["bfloat16"] - (expected := whole.forward(goldens["dense_tokens"]))
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(expected**2))
    assert parts[0]["nbytes"] < 0.8 * 2 * whole.nbytes


def shares_of(config, size, monkeypatch):
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda group: size)
    for rank in range(size):
        monkeypatch.setattr(parallel.dist, "get_rank", lambda group, rank=rank: rank)
        yield HeadShare(config, "a group")


@pytest.mark.parametrize("size", [1, 2, 4, 28])
def test_heads_keep_their_key_value_heads(monkeypatch, size) -> None:
    """As in Dream-7B: 28 heads, 4 key/value heads."""
    config = dataclasses.replace(config_of(PUBLISHED["dream_7b"]), intermediate_size=28 * 16)
    heads, columns = [], []
    for share in shares_of(config, size, monkeypatch):
        ratio = len(share.heads) // len(share.kv_heads)
        assert [share.kv_heads[i // ratio] for i in range(len(share.heads))] == [head // 7 for head in share.heads]
        heads += share.heads
        columns += share.mlp_columns
    assert heads == list(range(28)) and columns == list(range(28 * 16))


@pytest.mark.parametrize(
    ("size", "message"),
    [(3, "num_heads is 28"), (7, "num_kv_heads is 4"), (8, "num_heads is 28"), (28, "intermediate_size is 18944")],
)
def test_uneven_shares_are_refused(monkeypatch, size, message) -> None:
    config = config_of(PUBLISHED["dream_7b"])
    if size == 7:
        config = dataclasses.replace(config, intermediate_size=7)
    with pytest.raises(ValueError, match=f"load_model: {message}, expected a multiple of the {size} processes"):
        list(shares_of(config, size, monkeypatch))


def test_a_process_outside_the_group_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda group: -1)
    monkeypatch.setattr(parallel.dist, "get_rank", lambda group: -1)
    with pytest.raises(ValueError, match="group does not contain this process"):
        HeadShare(config_of(tiny_config("llada_8b")), "a group")


# --- layers over devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llada_8b", "illada_8b"])
@pytest.mark.parametrize("device_map", ["auto", "sequential", {"": "cpu"}, "by module"])
def test_device_maps(tmp_path, name, device_map) -> None:
    pytest.importorskip("accelerate")
    if device_map == "by module":
        device_map = dict.fromkeys(("embedding", "layers.0", "layers.1", "final_norm", "head"), "cpu")
    folder = write_checkpoint(tmp_path, tiny_config(name))
    model = sparsed.load_model(folder, engine="torch", device_map=device_map)
    prompt = np.arange(40)[None]
    native = sparsed.load_model(folder)
    for cache in (None, sparsed.DelayedCache()):
        found, expected = (
            sparsed.generate(one, prompt, gen_length=8, steps=4, kv_cache=cache) for one in (model, native)
        )
        np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert all(hasattr(layer, "_hf_hook") for layer in model.network.layers) or len(set(device_map)) == 1


def test_whole_layers_are_split_over_devices() -> None:
    """Two devices of limited memory; nothing is allocated."""
    accelerate = pytest.importorskip("accelerate")
    config = config_of(tiny_config("llada_8b", n_layers=6))
    network = Network(config, torch.float32, HeadShare(config))
    size = sum(weight.nbytes for weight in network.parameters())
    devices = accelerate.infer_auto_device_map(
        network, max_memory={0: 0.6 * size, 1: size}, no_split_module_classes=[NetworkLayer.__name__]
    )
    assert set(devices.values()) == {0, 1}
    assert {name for name in devices if name.startswith("layers.")} == {f"layers.{i}" for i in range(6)}
    assert resolve_device_map(network, devices, NetworkLayer.__name__) == devices


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("fast", "load_model: device_map is 'fast', expected one of"),
        ({"layers": "cpu", "embedding": "cpu"}, "load_model: device_map has no device for final_norm, expected one of"),
        ({"": "cpu", "layers.1": "disk"}, "load_model: device_map puts weights on the disk"),
    ],
)
def test_refused_device_maps(tmp_path, device_map, message) -> None:
    pytest.importorskip("accelerate")
    folder = write_checkpoint(tmp_path, tiny_config("llada_8b"))
    with pytest.raises(ValueError, match=message):
        sparsed.load_model(folder, engine="torch", device_map=device_map)


def test_accelerate_is_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    folder = write_checkpoint(tmp_path, tiny_config("llada_8b"))
    with pytest.raises(ImportError, match="device_map needs accelerate"):
        sparsed.load_model(folder, engine="torch", device_map="auto")


def test_a_device_map_of_another_type() -> None:
    with pytest.raises(TypeError, match="load_model: device_map is 3, expected a strategy such as 'auto' or a dict"):
        sparsed.load_model(demo_model_folder(), engine="torch", device_map=3)
