"""Checks arguments. All errors have one form: function or class, argument, what was given, what was expected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray


def store_plain_numbers(owner: Any) -> None:
    """Stores the numbers of a frozen dataclass, which may be scalars of numpy, as Python's int and float."""
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if isinstance(value, Integral) and not isinstance(value, bool):
            object.__setattr__(owner, field.name, int(value))
        elif isinstance(value, Real) and not isinstance(value, bool):
            object.__setattr__(owner, field.name, float(value))


class SparsedWarning(UserWarning):
    """Warns of something that works but that the caller probably wants to change."""


class Checker:
    """Checks the arguments of `owner`, a function or a class, with whose name the messages begin."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def number(self, name: str, value: object, *, low: float, high: float = math.inf, optional: bool = False) -> None:
        """Checks that `value` is a finite number from `low` to `high`."""
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{self.owner}: {name} is {value!r}, expected a number{' or None' * optional}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not low <= number <= high or math.isinf(number):
            bounds = f">= {low}" if math.isinf(high) else f"from {low} to {high}"
            finite = "finite " * math.isinf(number)
            raise ValueError(f"{self.owner}: {name} is {value}, expected a {finite}number {bounds}")

    def integer(self, name: str, value: object, *, low: int, high: int | None = None, optional: bool = False) -> None:
        """Checks that `value` is an integer from `low` to `high`."""
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{self.owner}: {name} is {value!r}, expected an integer{' or None' * optional}")
        if int(value) < low:
            raise ValueError(f"{self.owner}: {name} is {value}, expected an integer >= {low}")
        if high is not None and int(value) > high:
            raise ValueError(f"{self.owner}: {name} is {value}, expected an integer <= {high}")

    def choice(self, name: str, value: object, choices: tuple[str, ...]) -> None:
        """Checks that `value` is one of `choices`."""
        if value not in choices:
            raise ValueError(f"{self.owner}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}")

    def flag(self, name: str, value: object, *, optional: bool = False) -> None:
        """Checks that `value` is True or False."""
        if not isinstance(value, bool) and not (optional and value is None):
            raise TypeError(f"{self.owner}: {name} is {value!r}, expected True or False{' or None' * optional}")

    def texts(self, name: str, values: object) -> tuple[str, ...]:
        """Checks that `values` are one or more texts that are not blank, and returns them as a tuple.

        A single text is refused, because iterating over it would give its characters.

        Raises:
            TypeError: `values` is a single text or not iterable, or one of the values is not a text.
            ValueError: There are no texts, or one is blank.
        """
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise TypeError(f"{self.owner}: {name} is {values!r:.100}, expected a list of texts")
        texts = tuple(values)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{self.owner}: {name}[{i}] is {text!r:.100}, expected a text")
            if not text.strip():
                raise ValueError(f"{self.owner}: {name}[{i}] is {text!r:.100}, expected a text that is not blank")
        if not texts:
            raise ValueError(f"{self.owner}: {name} is empty, expected at least one text")
        return texts

    def text(self, name: str, value: object) -> None:
        """Checks that `value` is a text. It may be empty."""
        if not isinstance(value, str):
            raise TypeError(f"{self.owner}: {name} is {value!r:.100}, expected a text")


def even_array(owner: str, name: str, values: ArrayLike, expected: str = "rows of equal length") -> NDArray[Any]:
    """Converts `values` to a numpy array.

    Raises:
        ValueError: The rows have unequal lengths.
    """
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(f"{owner}: {name} has rows of unequal length, expected {expected}") from None


def id_array(owner: str, name: str, ids: ArrayLike, expected: str = "rows of equal length") -> NDArray[Any]:
    """Converts `ids` to a numpy array and checks that they are integers, of any shape and type.

    Raises:
        TypeError: They are not integers.
        ValueError: The rows have unequal lengths.
    """
    if isinstance(ids, (str, bytes, Mapping)) or ids is None:
        _refuse_words(owner, name, f"is a {type(ids).__name__}", ids)
    array = even_array(owner, name, ids, expected)
    if array.size and array.dtype.kind not in "iu":
        if array.dtype == object and any(np.ndim(entry) for entry in array.flat):
            raise ValueError(f"{owner}: {name} has rows of unequal length, expected {expected}")
        _refuse_words(owner, name, f"has dtype {array.dtype}", array.flat[0])
    return array


def _refuse_words(owner: str, name: str, found: str, entry: Any) -> NoReturn:
    """Raises a TypeError that says how to make token ids of a text, of messages or of another tokenizer's output."""
    if isinstance(entry, Mapping) and "input_ids" in entry:
        hint = f': the token ids are {name}["input_ids"]'
    elif isinstance(entry, Mapping):
        hint = ": tokenizer.chat(messages) makes token ids"
    elif isinstance(entry, (str, bytes)):
        hint = ": tokenizer.chat(text) or tokenizer.encode(text) makes token ids"
    else:
        hint = ""
    raise TypeError(f"{owner}: {name} {found}, expected integers{hint}")


def token_row(owner: str, name: str, ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Converts token ids to (n,) int64, where n may be 0.

    Raises:
        TypeError: They are not integers.
        ValueError: They have more than one dimension, or one of them is outside the vocabulary.
    """
    token_ids = id_array(owner, name, ids, "one row of token ids")
    if token_ids.ndim != 1:
        raise ValueError(f"{owner}: {name} has shape {list(token_ids.shape)}, expected one dimension")
    outside = np.flatnonzero((token_ids < 0) | (token_ids >= vocab_size))
    if outside.size:
        raise ValueError(f"{owner}: {name}[{outside[0]}] is {token_ids[outside[0]]}, expected 0 ... {vocab_size - 1}")
    return token_ids.astype(np.int64)


def dtype_name(dtype: object) -> object:
    """Returns the name of a dtype of numpy, ml_dtypes or torch, such as "float32". Other values are returned as is."""
    if isinstance(dtype, (np.dtype, type)):
        return np.dtype(dtype).name
    if isinstance(dtype, str) or type(dtype).__module__ == "torch":
        return str(dtype).removeprefix("torch.")
    return dtype
