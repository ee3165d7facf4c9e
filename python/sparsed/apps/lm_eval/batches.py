"""Batch sizes as lm-eval gives them: a number, or "auto" for as many rows as fit into memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ...checks import Checker

_log = logging.getLogger(__name__)

_AUTO = re.compile(r"auto(:[1-9]\d*(\.\d+)?)?")
_DEFAULT_MAXIMUM = 64  # as in lm-eval's hf backend

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchSize:
    """How many rows run at once.

    Args:
        given: A number, "auto" or "auto:N". "auto" starts with `maximum` rows and halves them whenever memory does not
            suffice; "auto:N" starts again N times, evenly spread over the rows.
        maximum: The most rows of "auto"; None: 64.

    Raises:
        TypeError, ValueError: Another value.
    """

    def __init__(self, given: int | str, maximum: int | None = None) -> None:
        Checker("SparsedLM").integer("max_batch_size", maximum, low=1, optional=True)
        text = str(given)
        self.is_auto = _AUTO.fullmatch(text) is not None
        if not self.is_auto and (isinstance(given, bool) or not text.isdecimal() or int(text) < 1):
            raise ValueError(
                f'SparsedLM: batch_size is {given!r}, expected an integer of at least 1, "auto" or "auto:N"'
            )
        self.number = (maximum or _DEFAULT_MAXIMUM) if self.is_auto else int(text)
        self._starts = int(float(text.partition(":")[2] or 1)) if self.is_auto else 1

    def run(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Yields the items in batches, each with the result of `work`."""
        size, start, part = self.number, 0, 0
        while start < len(items):
            if start * self._starts // len(items) > part:
                part, size = start * self._starts // len(items), self.number
            batch = items[start : start + size]
            try:
                result = work(batch)
            except (MemoryError, RuntimeError) as error:
                size = self.smaller(len(batch), error)
                continue
            yield batch, result
            start += len(batch)

    def smaller(self, size: int, error: Exception) -> int:
        """Returns half of `size`; raises `error` again if it is not about memory, or if no smaller size is left."""
        out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
        if not self.is_auto or size == 1 or not out_of_memory:
            raise error
        _log.info("%d rows do not fit into memory, %d are tried: %s", size, size // 2, error)
        return size // 2


def largest_divisor(number: int, at_most: int) -> int:
    """Returns the largest divisor of `number` that is not above `at_most`."""
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)
