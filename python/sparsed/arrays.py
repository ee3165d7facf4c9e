"""Arrays of any library: what belongs together, and results in the library that the arguments came from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Library", "arguments"]


class Library(NamedTuple):
    """Where an array comes from.

    Attributes:
        name: "numpy", "torch", "jax" ...
        from_dlpack: Its function that takes a DLPack array without a copy; None: numpy, whose arrays the compiled
            module makes itself.
    """

    name: str
    from_dlpack: Callable[[Any], Any] | None

    def wrap(self, result: Any) -> Any:
        """A result of the compiled module as an array of this library."""
        return result if self.from_dlpack is None else self.from_dlpack(result)


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
    return library, [_exported(function, name, array) for name, array in (*arrays.items(), ("key_mask", key_mask))]


def _exported(function: str, name: str, array: Any) -> Any:
    """The array; a torch tensor without what DLPack cannot say."""
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
    return array.resolve_neg()


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
