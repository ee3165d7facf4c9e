"""Arrays of any library: those of one call, and results that are arrays of the same library."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from . import _core

__all__ = ["Call", "Result", "to_host", "type_name"]

_CUDA = 2  # DLPack's kDLCUDA
_DTYPES = ("float32", "float16", "bfloat16")


class Device(NamedTuple):
    """The CUDA device on which a call's arrays lie.

    Attributes:
        stream: Returns the library's current stream there, as DLPack counts streams: 1 is the default one.
        current: Makes a context in which the device is the library's current one.
    """

    stream: Callable[[], int]
    current: Callable[[], AbstractContextManager[Any]]


class Library(NamedTuple):
    """Where an array comes from.

    Attributes:
        name: "numpy", "torch", "jax" ...
        from_dlpack: Its function that takes a DLPack array without a copy.
        new: Makes an array (shape, like) that can be written to, in the memory where `like` lies and with its dtype,
            or float32 where asked for; None: the library's arrays cannot be written to.
    """

    name: str
    from_dlpack: Callable[[Any], Any]
    new: Callable[[tuple[int, ...], Any, bool], Any] | None = None


class Result(NamedTuple):
    """An array that the compiled module writes.

    Attributes:
        target: What is handed to the compiled module. None if q is not an array or the result cannot fit into
            memory: the module says so, after it has checked the other arguments.
        library: The library of the result.
    """

    target: Any
    library: Library

    def array(self) -> Any:
        """The result as an array of its library."""
        return self.target if self.library.new is not None else self.library.from_dlpack(self.target)


class Call:
    """The arrays of one call, all of one library, ready for ``__dlpack__``, and its results.

    Anything that is not an array is passed on, and the compiled module refuses it.

    Args:
        function: Whom errors name.
        key_mask: May be of another library.
        arrays: By name, q first; None where there is none.

    Raises:
        TypeError: Arrays of two libraries, or of one without ``from_dlpack``; a sparse or quantised tensor.
        ValueError: A tensor requires grad while torch records gradients, or a device has no kernels.
    """

    def __init__(self, function: str, key_mask: Any, **arrays: Any) -> None:
        self._function, self._arrays = function, arrays
        found = {name: _library(function, name, array) for name, array in arrays.items() if _is_array(array)}
        first, self._library = next(iter(found.items()), ("", NUMPY))
        for name, other in found.items():
            if other.name != self._library.name:
                raise TypeError(
                    f"{function}: {name} is a {type_name(arrays[name])}, expected an array of {self._library.name} "
                    f"(from {first}, a {type_name(arrays[first])})"
                )
        self._device = _device(function, first, self._library.name, arrays[first]) if found else None
        self._exported = {name: _exported(function, name, array) for name, array in arrays.items()}
        self.key_mask = _exported(function, "key_mask", key_mask)

    def __getitem__(self, name: str) -> Any:
        """The array of that name as the compiled module takes it."""
        return self._exported[name]

    def current(self) -> AbstractContextManager[Any]:
        """For the call: where the arrays lie on a device, it is the current one."""
        return nullcontext() if self._device is None else self._device.current()

    def stream(self) -> int | None:
        """The current stream of the device, as DLPack counts streams; None for arrays in host memory."""
        return None if self._device is None else self._device.stream()

    def output(self) -> Result:
        """``out`` where it was given; else a new array like q, with heads or tokens outermost in memory as in q."""
        given = self._arrays.get("out")
        if given is None:
            return self._new("out")
        if _is_array(given) and self._library.new is None:
            raise TypeError(
                f"{self._function}: out is a {type_name(given)}, expected None "
                f"(arrays of {self._library.name} cannot be written to)"
            )
        return Result(self._exported["out"], self._library)

    def finish(self, result: Result) -> Any:
        """The result as the caller's array: ``out`` itself where it was given."""
        given = self._arrays.get("out")
        if given is None or result.target is not self._exported["out"]:
            return result.array()
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(given, torch.Tensor) and not given.is_inference():
            torch.autograd.graph.increment_version(given)  # what autograd and caches have kept of it is stale
        return given

    def lse(self, return_lse: object) -> Result | None:
        """A new array for the log-sum-exp of each row of q, where ``return_lse`` asks for it."""
        if not isinstance(return_lse, (bool, np.bool_)):
            raise TypeError(f"{self._function}: return_lse is a {type(return_lse).__name__}, expected True or False")
        return self._new("lse") if return_lse else None

    def scores(self, block_size: object) -> Result:
        """A new array for the block scores of a selection, float32 (B, H, blocks, blocks).

        Its target is None where q or block_size cannot be right: the compiled module says so.
        """
        q, library = self._arrays["q"], self._library
        if not _is_array(q) or q.ndim != 4 or not isinstance(block_size, Integral) or block_size < 16:
            return Result(None, library)
        batch, heads, length = (int(size) for size in q.shape[:3])
        blocks = -(-length // int(block_size))
        shape = (batch, heads, blocks, blocks)
        if self._device is None:
            _core.require_memory(min(4 * math.prod(shape), 2**64 - 1), f"{self._function}: scores")
        if library.new is None:
            return Result(_new_numpy(shape, q, True), library)
        return Result(library.new(shape, q, True), library)

    def _new(self, argument: str) -> Result:
        q, library = self._arrays["q"], self._library
        if library.new is None:
            return Result(_core.host_buffer(self._function, argument, self._exported["q"]), library)
        if not _is_array(q) or q.ndim != 4 or str(q.dtype).removeprefix("torch.") not in _DTYPES:
            return Result(None, library)
        shape = tuple(int(size) for size in q.shape)
        if self._device is None:
            itemsize = 4 if argument == "lse" else q.dtype.itemsize
            rows = math.prod(shape[:3] if argument == "lse" else shape)
            try:
                _core.require_memory(min(rows * itemsize, 2**64 - 1), f"{self._function}: {argument}")
            except MemoryError:
                if argument == "lse":
                    raise
                return Result(None, library)
        if argument == "lse":
            return Result(library.new(shape[:3], q, True), library)
        if not _tokens_outermost(shape, q):
            return Result(library.new(shape, q, False), library)
        batch, heads, length, head_dim = shape
        return Result(library.new((batch, length, heads, head_dim), q, False).swapaxes(1, 2), library)


def _tokens_outermost(shape: tuple[int, ...], q: Any) -> bool:
    """Whether q is (B, L, H, D) in memory. The stride of an axis of one element may be anything."""
    if 0 in shape:
        return False
    _, heads, length, head_dim = shape
    strides, unit = (q.stride(), 1) if hasattr(q, "stride") else (q.strides, q.dtype.itemsize)
    head = abs(strides[1]) if heads != 1 else length * head_dim * unit
    token = abs(strides[2]) if length != 1 else head_dim * unit
    return bool(head < token)


def _new_numpy(shape: tuple[int, ...], like: Any, single: bool) -> Any:
    return np.empty(shape, np.float32 if single else like.dtype)


def _new_torch(shape: tuple[int, ...], like: Any, single: bool) -> Any:
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=torch.float32 if single else like.dtype, device=like.device)


def _new_cupy(shape: tuple[int, ...], like: Any, single: bool) -> Any:
    return sys.modules["cupy"].empty(shape, np.float32 if single else like.dtype)


NUMPY = Library("numpy", np.from_dlpack, _new_numpy)
_WRITABLE = {"torch": _new_torch, "cupy": _new_cupy}


def _device(function: str, name: str, library: str, array: Any) -> Device | None:
    if (library == "torch" and not array.is_cuda) or not hasattr(array, "__dlpack_device__"):
        return None
    try:
        kind, number = (int(part) for part in array.__dlpack_device__())
    except Exception:  # the export, which comes next, says why
        return None
    if kind != _CUDA:
        return None
    reasons = _core.backends()[-1][2]
    if reasons:
        raise ValueError(f"{function}: {name} is on CUDA device {number}, expected the CPU ({', '.join(reasons)})")
    if library == "torch":
        cuda = sys.modules["torch"].cuda
        return Device(lambda: cuda.current_stream(number).cuda_stream or 1, lambda: cuda.device(number))
    if library == "cupy":
        cuda = sys.modules["cupy"].cuda
        return Device(lambda: cuda.get_current_stream().ptr or 1, lambda: cuda.Device(number))
    raise TypeError(
        f"{function}: {name} is a {type_name(array)} on CUDA device {number}, expected an array of torch or CuPy "
        "there (results are written into an array of its library)"
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
    if name == "out" and array.is_neg():
        raise ValueError(f"{function}: out has the negative bit, expected a tensor without (resolve_neg() copies it)")
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
            return Library(package, take, _WRITABLE.get(package))
    if hasattr(array, "__array_namespace__"):
        namespace = array.__array_namespace__()
        return Library(namespace.__name__.partition(".")[0], namespace.from_dlpack)
    raise TypeError(f"{function}: {name} is a {type_name(array)}, whose library has no from_dlpack")


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """An array of any library as numpy's; one that lies on a device is copied, which waits for the device."""
    if hasattr(array, "cpu"):  # torch
        array = array.cpu()
    elif hasattr(array, "get"):  # CuPy
        array = array.get()
    return np.asarray(array)


def type_name(array: Any) -> str:
    """The full name of an array's type."""
    return f"{type(array).__module__}.{type(array).__qualname__}"
