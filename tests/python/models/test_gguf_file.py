"""The reader of GGUF headers: what it reads, and damaged files."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import sparsed
from sparsed.models.gguf_file import MAX_HEADER_BYTES, GgufFile
from tiny_checkpoint import random_tensors, tiny_config
from tiny_gguf import write_gguf


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, type_: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", type_) + value


def entry(name: bytes, shape: list[int], type_: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset)


def file_bytes(keys=(), tensors=(), data=b"", version=3, counts=None) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    header += b"".join((*keys, *tensors))
    return header + bytes(-len(header) % 32) + data


def open_bytes(tmp_path, data):
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return GgufFile(path, "load_model")


def test_every_type_of_metadata(tmp_path) -> None:
    numbers = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60_000), 3: ("h", -3), 4: ("I", 2**32 - 1), 5: ("i", -3)}
    numbers |= {6: ("f", 1e-5), 7: ("?", True), 10: ("Q", 2**64 - 1), 11: ("q", -3), 12: ("d", 1e-5)}
    keys = [key(b"%d" % type_, type_, struct.pack(f"<{format}", value)) for type_, (format, value) in numbers.items()]
    keys += [key(b"text", 8, text("naïve".encode()))]
    keys += [key(b"texts", 9, struct.pack("<IQ", 8, 3) + text(b"a") + text(b"") + text(b"bc"))]
    keys += [key(b"numbers", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)), key(b"last", 4, struct.pack("<I", 5))]
    file = open_bytes(tmp_path, file_bytes(keys))
    for type_, (_, value) in numbers.items():
        assert file.get(str(type_)) == value  # 1e-5 is not a float32, but the shortest decimal of one
    assert (file.get("text"), file.get("texts"), file.texts("texts")) == ("naïve", ["a", "", "bc"], ["a", "", "bc"])
    assert (file.get("numbers"), file.get("last"), file.get("absent")) == ([1, -2, 3], 5, None)


def test_tensors_are_read_only_views_of_the_file(tmp_path) -> None:
    values = np.arange(12, dtype=np.float32)
    keys = [key(b"general.alignment", 4, struct.pack("<I", 64))]
    header = file_bytes(keys, [entry(b"a", [4, 3]), entry(b"b", [2], offset=64)])
    data = header + bytes(-len(header) % 64) + values.tobytes() + bytes(16) + b"\0\0\x80\x3f\0\0\0\x40"
    file = open_bytes(tmp_path, data)
    assert np.array_equal(file.blocks("a"), values.reshape(3, 4))  # the file says the last dimension first
    assert np.array_equal(file.blocks("b"), [1.0, 2.0])
    assert not file.blocks("a").flags.writeable
    file.release()
    assert np.array_equal(file.blocks("a"), values.reshape(3, 4))


ALIGN = b"general.alignment"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"GGUF", "the version reaches to byte 8, but the file ends at byte 4"),
        (b"GGUF\x03\0\0\0", "the number of tensors reaches to byte 16"),
        (file_bytes(version=1), "is a GGUF file of version 1, expected version 2 or 3"),
        (file_bytes(version=3 << 24), r"version 50331648 \(a file for big-endian machines\)"),
        (file_bytes(counts=(0, 1)), "key 0 of the metadata reaches to byte"),
        (file_bytes(counts=(1, 0)), "the entry of tensor 0|tensor ''"),
        (file_bytes(counts=(2**64 - 1, 0)), "truncated or damaged"),
        (file_bytes(counts=(0, 2**64 - 1)), "truncated or damaged"),
        (file_bytes([struct.pack("<Q", 2**63)]), "key 0 of the metadata reaches to byte"),
        (file_bytes([key(b"a", 99, b"")]), "'a' has the type 99, expected one from 0 to 12"),
        (file_bytes([key(b"a", 0, b"1"), key(b"a", 0, b"1")]), "the key 'a' occurs twice"),
        (file_bytes([key(b"\xff", 0, b"1")]), "key 0 of the metadata is not UTF-8"),
        (file_bytes([key(b"a", 9, struct.pack("<IQ", 9, 1))]), "'a' is an array of the type 9, expected numbers or"),
        (file_bytes([key(b"a", 9, struct.pack("<IQ", 4, 2**60))]), "a reaches to byte"),
        (file_bytes([key(b"a", 9, struct.pack("<IQ", 8, 2**60))]), "a reaches to byte"),
        (file_bytes([key(b"a", 9, struct.pack("<IQ", 8, 3) + text(bytes(64)))]), "a reaches to byte 129"),
        (file_bytes([key(b"a", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 2**62))]), "a reaches to byte"),
        (file_bytes([key(ALIGN, 4, struct.pack("<I", 0))]), "general.alignment is 0, expected a power of 2"),
        (file_bytes([key(ALIGN, 4, struct.pack("<I", 48))]), "general.alignment is 48, expected a power of 2"),
        (file_bytes([key(ALIGN, 8, text(b"32"))]), "general.alignment is b'32', expected a power of 2"),
        (file_bytes((), [entry(b"w", [])]), "tensor 'w' has 0 dimensions, expected 1 to 4"),
        (file_bytes((), [entry(b"w", [1] * 5)]), "tensor 'w' has 5 dimensions, expected 1 to 4"),
        (file_bytes((), [entry(b"w", [0, 3])]), r"tensor 'w' has shape \[3, 0\], expected 1 to"),
        (file_bytes((), [entry(b"w", [2**40, 2**40])]), "tensor 'w' has shape .*, expected 1 to"),
        (file_bytes((), [entry(b"w", [32], 3)]), "tensor 'w' has the type Q4_1, expected one of F32"),
        (file_bytes((), [entry(b"w", [32], 77)]), "tensor 'w' has the type number 77, expected one of F32"),
        (file_bytes((), [entry(b"w", [31, 2], 8)]), r"has shape \[2, 31\], expected rows of a multiple of 32 for Q8_0"),
        (
            file_bytes((), [entry(b"w", [4], offset=32)], bytes(64)),
            "tensor w begins at byte 32 of the data, expected 0",
        ),
        (file_bytes((), [entry(b"w", [4])], bytes(15)), r"tensor w ends at byte \d+, expected at most \d+, the size"),
        (file_bytes((), [entry(b"w", [4]), entry(b"w", [4], offset=32)], bytes(64)), "the tensor 'w' occurs twice"),
        (file_bytes((), [entry(b"w", [4]), entry(b"v", [4])], bytes(64)), "tensor v begins at byte 0 .* expected 32"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, message) -> None:
    with pytest.raises(
        ValueError, match=rf"^load_model: .*file\.gguf(:| is) .*({message})|^load_model: .*file\.gguf {message}"
    ):
        open_bytes(tmp_path, data)


def test_texts_that_are_not_utf8(tmp_path) -> None:
    file = open_bytes(tmp_path, file_bytes([key(b"a", 8, text(b"\xff"))]))
    with pytest.raises(ValueError, match=r"file\.gguf: a is not UTF-8"):
        file.get("a")


def test_headers_have_a_limit(tmp_path) -> None:
    data = file_bytes([key(b"a", 8, struct.pack("<Q", MAX_HEADER_BYTES))])
    path = tmp_path / "file.gguf"
    with open(path, "wb") as file:
        file.write(data)
        file.truncate(3 * MAX_HEADER_BYTES)
    with pytest.raises(ValueError, match=r"a reaches to byte .* expected a header of at most 100000000 bytes"):
        GgufFile(path, "load_model")


def test_every_truncation_is_an_error(tmp_path) -> None:
    values = tiny_config("llada_8b", n_layers=1, vocab_size=8, embedding_size=8, mask_token_id=1, eos_token_id=2)
    data = write_gguf(tmp_path / "whole.gguf", values | {"pad_token_id": 2}, random_tensors(values)).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(4, 1500, 7), *range(1500, len(data), 4001)]:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"^load_model: .*cut\.gguf"):
            sparsed.load_model(path)


def test_any_damaged_byte_of_the_header_loads_or_is_an_error(tmp_path) -> None:
    values = tiny_config("llada_8b", n_layers=1)
    whole = write_gguf(tmp_path / "whole.gguf", values, random_tensors(values)).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.gguf"
    for at in rng.integers(4, 2000, 300):
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            sparsed.load_model(path)
        except (ValueError, MemoryError) as error:
            assert "damaged.gguf" in str(error) or str(error).startswith("load_model: ")
