"""Arrays of any library: what belongs together, and results in the library that the arguments came from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DeviceMemory", "Library", "arguments"]

_CUDA = 2  # DLPack's kDLCUDA


class DeviceMemory(NamedTuple):
    """What the compiled module asks the library of arrays on a CUDA device for.

    Attributes:
        device: The number of the device.
        stream: Returns the library's current stream there, as DLPack counts streams: 1 is the default one.
        empty: Makes an array (shape, dtype) there: results are written into it.
        current: Makes a context in which the device is the library's current one.
    """

    device: int
    stream: Callable[[], int]
    empty: Callable[[tuple[int, ...], str], Any]
    current: Callable[[], AbstractContextManager[Any]]


class Library(NamedTuple):
    """Where an array comes from.

    Attributes:
        name: "numpy", "torch", "jax" ...
        from_dlpack: Its function that takes a DLPack array without a copy; None: numpy, whose arrays the compiled
            module makes itself.
        memory: Where a call's arrays lie; None: in host memory.
    """

    name: str
    from_dlpack: Callable[[Any], Any] | None
    memory: DeviceMemory | None = None

    def current(self) -> AbstractContextManager[Any]:
        """For the call: where the arrays lie on a device, it is the current one."""
        return nullcontext() if self.memory is None else self.memory.current()

    def wrap(self, result: Any) -> Any:
        """A result of the compiled module as an array of this library."""
        return result if self.from_dlpack is None or self.memory is not None else self.from_dlpack(result)


NUMPY = Library("numpy", None)


def arguments(function: str, key_mask: Any, **arrays: Any) -> tuple[Library, list[Any]]:
    """The library of the arrays, then these and ``key_mask``, which may be of another one, ready for ``__dlpack__``.

    What is no array goes through: the compiled module refuses it.

    Raises:
        TypeError: Arrays of two libraries, or of one that has no ``from_dlpack``; a sparse or quantised tensor.
        ValueError: A tensor that requires grad while torch records gradients.
    """
    found = {name: _library(function, name, array) for name, array in arrays.items() if _is_array(array)}
    first, library = next(iter(found.items()), ("", NUMPY))
    for name, other in found.items():
        if other.name != library.name:
            raise TypeError(
                f"{function}: {name} is a {_type_name(arrays[name])}, expected an array of {library.name} "
                f"(from {first}, a {_type_name(arrays[first])})"
            )
    if found:
        library = library._replace(memory=_device_memory(function, first, library.name, arrays[first]))
    return library, [_exported(function, name, array) for name, array in (*arrays.items(), ("key_mask", key_mask))]


def _device_memory(function: str, name: str, library: str, array: Any) -> DeviceMemory | None:
    if (library == "torch" and not array.is_cuda) or not hasattr(array, "__dlpack_device__"):
        return None
    try:
        kind, device = array.__dlpack_device__()
    except Exception:  # the export, which comes next, says why
        return None
    if kind != _CUDA:
        return None
    if library == "torch":
        return _torch_memory(int(device))
    if library == "cupy":
        return _cupy_memory(int(device))

    def refuse() -> int:
        raise TypeError(
            f"{function}: {name} is a {_type_name(array)} on CUDA device {device}, expected an array of torch or CuPy "
            "there (results are written into an array of its library)"
        )

    return DeviceMemory(int(device), refuse, lambda *_: refuse(), nullcontext)


def _torch_memory(device: int) -> DeviceMemory:
    torch = sys.modules["torch"]

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{device}")

    return DeviceMemory(
        device, lambda: torch.cuda.current_stream(device).cuda_stream or 1, empty, lambda: torch.cuda.device(device)
    )


def _cupy_memory(device: int) -> DeviceMemory:
    cupy = sys.modules["cupy"]
    return DeviceMemory(
        device, lambda: cupy.cuda.get_current_stream().ptr or 1, cupy.empty, lambda: cupy.cuda.Device(device)
    )


def _exported(function: str, name: str, array: Any) -> Any:
    """The array; a torch tensor without what DLPack cannot say, a mask on a device without gaps."""
    cupy = sys.modules.get("cupy")
    if name == "key_mask" and cupy is not None and isinstance(array, cupy.ndarray):
        return cupy.ascontiguousarray(array)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return array
    if array.requires_grad:
        if torch.is_grad_enabled():
            raise ValueError(
                f"{function}: {name} requires grad, expected a tensor without (inference only: use torch.no_grad())"
            )
        array = array.detach()
    if array.layout != torch.strided:
        raise TypeError(f"{function}: {name} has layout {array.layout}, expected torch.strided")
    if array.is_quantized:
        raise TypeError(
            f"{function}: {name} has dtype {array.dtype} (quantised), expected float32, float16 or bfloat16"
        )
    array = array.resolve_neg()
    return array.contiguous() if name == "key_mask" else array


def _is_array(array: Any) -> bool:
    return isinstance(array, np.ndarray) or hasattr(array, "__dlpack__")


def _library(function: str, name: str, array: Any) -> Library:
    if isinstance(array, np.ndarray):
        return NUMPY
    for base in type(array).__mro__:
        package = base.__module__.partition(".")[0]
        take = getattr(sys.modules.get(package), "from_dlpack", None)
        if take is not None:
            return Library(package, take)
    if hasattr(array, "__array_namespace__"):
        namespace = array.__array_namespace__()
        return Library(namespace.__name__.partition(".")[0], namespace.from_dlpack)
    raise TypeError(f"{function}: {name} is a {_type_name(array)}, whose library has no from_dlpack")


def _type_name(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"
