"""The safetensors reader: views of the mapped file, and damaged files."""

from __future__ import annotations

import numpy as np
import pytest

from sparsed.models.safetensors import SafetensorsFile
from tiny_checkpoint import BFLOAT16, safetensors_bytes


def open_bytes(tmp_path, data):
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    return SafetensorsFile(path)


def header_bytes(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 5), (2, 3, 4)])
def test_tensors_are_read_only_views_of_the_file(tmp_path, dtype, shape) -> None:
    tensors = {"a": np.ones(2, np.float32), "b": np.random.default_rng(0).normal(size=shape).astype(dtype)}
    file = open_bytes(tmp_path, safetensors_bytes(tensors))
    array = file.array("b")
    assert array.dtype == dtype
    assert np.array_equal(array, tensors["b"])
    assert not array.flags.writeable
    assert array.size == 0 or array.base is not None


def test_unaligned_tensors_are_read(tmp_path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    values = np.array([1.0, -2.0, 3.0], np.float32)
    for padding in range(4):
        array = open_bytes(tmp_path, header_bytes(text + b" " * padding, values.tobytes())).array("a")
        assert np.array_equal(array, values)
        assert array.flags.aligned


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
TWO = {"a": np.zeros((2, 2), np.float32), "b": np.zeros((2, 2), np.float32)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is truncated: it has 0 bytes"),
        (b"1234567", "is truncated: it has 7 bytes"),
        (b"\xff" * 8, "its header has 18446744073709551615 bytes, expected at most 0"),
        ((200_000_000).to_bytes(8, "little") + b"{}", "its header has 200000000 bytes"),
        (header_bytes(b"not json"), "is not valid JSON"),
        (header_bytes(b"\xff\xfe"), "is not valid JSON"),
        (header_bytes(b"[]"), "holds a JSON list"),
        (header_bytes(b'{"a":' * 50_000), "is not valid JSON"),
        (header_bytes(b'{"a":{},"a":{}}'), "the name 'a' occurs twice"),
        (header_bytes(b"{}", b"rest"), "has 4 bytes of data, expected 0"),
        (safetensors_bytes(TWO) + b"more", "has 36 bytes of data, expected 32"),
        (safetensors_bytes(TWO)[:-1], r"tensor b has data_offsets \[16, 32\], expected .* within the 31 bytes"),
        (safetensors_bytes(TWO, a=3), "tensor a has the header 3"),
        (safetensors_bytes(TWO, a=ENTRY | {"more": 1}), "tensor a has the header"),
        (safetensors_bytes(TWO, a=ENTRY | {"dtype": "I64"}), "tensor a has dtype I64, expected one of BF16, F16, F32"),
        (safetensors_bytes(TWO, a=ENTRY | {"dtype": ["F32"]}), "tensor a has dtype"),
        (safetensors_bytes(TWO, a=ENTRY | {"shape": [2, 3]}), "tensor a has 16 bytes, expected 24"),
        (safetensors_bytes(TWO, a=ENTRY | {"shape": [-2, -2]}), "tensor a has shape"),
        (safetensors_bytes(TWO, a=ENTRY | {"shape": [2.0, 2]}), "tensor a has shape"),
        (safetensors_bytes(TWO, a=ENTRY | {"shape": 4}), "tensor a has shape"),
        (safetensors_bytes(TWO, a=ENTRY | {"shape": [2**62, 2**62]}), "expected at most 4611686018427387904 elements"),
        (safetensors_bytes(TWO, a=ENTRY | {"data_offsets": [16, 0]}), "tensor a has data_offsets"),
        (safetensors_bytes(TWO, a=ENTRY | {"data_offsets": [0]}), "tensor a has data_offsets"),
        (safetensors_bytes(TWO, a=ENTRY | {"data_offsets": [-16, 0]}), "tensor a has data_offsets"),
        (safetensors_bytes(TWO, a=ENTRY | {"data_offsets": [2**70, 2**70 + 16]}), "tensor a has data_offsets"),
        (safetensors_bytes(TWO, a=ENTRY | {"data_offsets": [16, 32]}), "begins at byte 16 of the data, expected 0"),
        (
            safetensors_bytes(TWO, b=ENTRY | {"data_offsets": [8, 24]}),
            "tensor b begins at byte 8 .*, expected 16",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, data, message) -> None:
    with pytest.raises(ValueError, match=rf"file\.safetensors.*{message}|{message}"):
        open_bytes(tmp_path, data)
