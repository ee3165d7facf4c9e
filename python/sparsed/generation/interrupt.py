"""Ctrl-C during a generation."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType


class WorkAbandoned(BaseException):
    """Leaves work that Ctrl-C makes useless. It is no Exception, so that nothing on the way takes it for an error."""


class SigintLatch:
    """Turns the first Ctrl-C into a flag, and ends the work that may be abandoned at once.

    It acts only in the main thread, and only in place of Python's default handler: a handler that the program has
    installed keeps its meaning.
    """

    def __init__(self) -> None:
        self.caught = False
        self._installed = False
        self._abandons = False

    def __enter__(self) -> SigintLatch:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextlib.contextmanager
    def abandonable(self) -> Iterator[None]:
        """Makes the first Ctrl-C raise WorkAbandoned within this context: between operations, and inside long ones."""
        self._abandons = True
        try:
            yield
        finally:
            self._abandons = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = True
        if self._abandons:
            raise WorkAbandoned
