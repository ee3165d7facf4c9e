"""Finds the tensors of a checkpoint by name, and checks that they are those of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ModelConfig, TensorNames, recognise, tensor_shapes
from .files import read_json
from .quantization import Scheme, scale_shapes
from .safetensors import SafetensorsFile, TensorInfo

Array = NDArray[Any]

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_NAMED = 5  # tensors that an error message names
_COMPARED_ROWS = 4096  # rows of a tensor that are compared at a time


class Checkpoint(ABC):
    """The tensors of a model, by name, whatever files hold them.

    Their arrays may be views of mapped files. Pages that were read count as memory of this process until `release`.

    Attributes:
        path: The folder or the file of the checkpoint.
        on_read: Called once per tensor, with the number of its bytes in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_read: Callable[[int], object] | None = None
        self._read: set[str] = set()

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The place of each tensor, its shape, and the dtype of its array, by name."""

    @abstractmethod
    def release(self) -> None:
        """Gives back the memory of the pages read so far. Arrays stay valid; their pages are read again when needed."""

    @abstractmethod
    def _load(self, name: str) -> Array:
        """Returns a tensor."""

    @property
    def scratch_nbytes(self) -> int:
        """The bytes of the largest array that is not a view of a mapped file."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(info.end - info.begin for info in self.tensors.values())

    def array(self, name: str) -> Array:
        """Returns a tensor, read-only if it is a view of its mapped file."""
        if self.on_read is not None and name not in self._read:
            self._read.add(name)
            self.on_read(self.tensors[name].end - self.tensors[name].begin)
        return self._load(name)

    def in_order(self) -> list[tuple[str, TensorInfo]]:
        """Returns the places of all tensors in the order on disk."""
        return sorted(self.tensors.items(), key=lambda item: (item[1].file, item[1].begin))

    def stream(self) -> Iterator[tuple[str, Array]]:
        """Yields each tensor once, in the order on disk, and releases its pages before the next one."""
        for name, _ in self.in_order():
            yield name, self.array(name)
            self.release()


class SafetensorsCheckpoint(Checkpoint):
    """The tensors of all safetensors files of a folder. Their arrays are views of the mapped files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files: dict[str, SafetensorsFile] = {}  # by tensor
        if (path / _SINGLE_FILE).is_file():
            self._add(SafetensorsFile(path / _SINGLE_FILE))
        elif (path / _INDEX_FILE).is_file():
            self._add_shards(path / _INDEX_FILE)
        else:
            raise FileNotFoundError(
                f"load_model: neither {_SINGLE_FILE} nor {_INDEX_FILE} exists in {path}{recognise.contents(path)}"
            )

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The place of each tensor, by name."""
        return {name: file.tensors[name] for name, file in self._files.items()}

    def release(self) -> None:
        """Gives back the memory of the pages read so far."""
        for file in set(self._files.values()):
            file.release()

    def _load(self, name: str) -> Array:
        return self._files[name].array(name)

    def _add(self, file: SafetensorsFile) -> None:
        self._files |= dict.fromkeys(file.tensors, file)

    def _add_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"load_model: {index} has no weight_map, expected names of tensors and their files")
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            # Only plain file names are accepted, so that an index cannot reach out of its folder.
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ValueError(
                    f"load_model: {index} puts {name} into {shard!r}, expected a .safetensors file beside it"
                )
            shards.setdefault(shard, set()).add(name)
        for shard, names in shards.items():
            if not (index.parent / shard).is_file():
                raise FileNotFoundError(f"load_model: {index.parent / shard} does not exist, but {index.name} lists it")
            file = SafetensorsFile(index.parent / shard)
            _refuse("not in", names - set(file.tensors), file.path)
            _refuse(f"not listed by {index.name} for", set(file.tensors) - names, file.path)
            self._add(file)


def _refuse(problem: str, names: Iterable[str], where: Path) -> None:
    """Raises a ValueError that names the tensors, if there are any."""
    listed = sorted(names)
    if listed:
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        raise ValueError(f"load_model: tensors {problem} {where}: {', '.join(listed[:_NAMED])}{more}")


def check_tensors(
    checkpoint: Checkpoint, config: ModelConfig, names: TensorNames, scheme: Scheme | None = None
) -> tuple[str, str]:
    """Checks that the tensors are those of the config. Returns the names of the embedding and of the head.

    `scheme` says which linear layers are int8, with scales.

    Raises:
        ValueError: A tensor is missing, extra, of another dtype or shape, or tied tensors differ.
    """
    tensors = checkpoint.tensors
    expected = tensor_shapes(config, names)
    embedding, head = f"{names.embedding}.weight", f"{names.head}.weight"
    if config.tie_weights:
        # A checkpoint may hold a tied tensor under either of its two names, or under both.
        for absent, present in ((head, embedding), (embedding, head)):
            if absent not in tensors and present in tensors:
                del expected[absent]
                embedding = head = present
                break
    linear = [name for name, shape in expected.items() if len(shape) > 1 and name != embedding]
    expected |= scale_shapes(tensors, linear, scheme)
    _refuse("missing in", set(expected) - set(tensors), checkpoint.path)
    for name in sorted(set(tensors) - set(expected)):
        if not name.endswith("rotary_emb.inv_freq"):  # a buffer of older checkpoints, computed from rope_theta here
            _refuse("not expected in", [name], tensors[name].file)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"load_model: tensor {name} has shape {list(tensors[name].shape)}, expected {list(shape)} "
                f"(in {tensors[name].file})"
            )
    if config.tie_weights and head != embedding and not _same(checkpoint.array(embedding), checkpoint.array(head)):
        raise ValueError(f"load_model: {embedding} and {head} differ, expected the same (the config ties them)")
    return embedding, head


def _same(a: Array, b: Array) -> bool:
    # The bytes are compared, so that NaN equals NaN, and in parts, so that no large temporary array is made.
    return a.dtype == b.dtype and all(
        np.array_equal(a[i : i + _COMPARED_ROWS].view(np.uint8), b[i : i + _COMPARED_ROWS].view(np.uint8))
        for i in range(0, len(a), _COMPARED_ROWS)
    )
