"""Draws the text in a terminal while it is unmasked."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import numpy as np

from ...models.tokenizer import Tokenizer
from .palette import confidence_shade
from .pieces import is_special, token_texts

if TYPE_CHECKING:
    from ...generation.result import StepInfo

_MASKED, _MARK = "░░", "∎"  # a masked position; a special token, which has no text
_DIM, _NEW, _UNSURE, _PLAIN = "2", "1;36", "33", ""
_UNSURE_BELOW = 0.5
_BAR = 24


def can_draw(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal in which the cursor can move."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class LiveText:
    """Draws the generation of one row after each step; give it to `generate` as `on_step`, inside a `with`.

    Tokens of the last step are bright, those that the sampler was unsure of are yellow. The end erases the drawing.

    Args:
        stream: A terminal.
        tokenizer: What the prompt was made with.
        gen_length: Tokens that are generated.
    """

    def __init__(self, stream: TextIO, tokenizer: Tokenizer, gen_length: int) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._confidence = np.full(gen_length, np.nan, np.float32)
        self._unmasked = np.zeros(gen_length, np.bool_)
        self._colours = "NO_COLOR" not in os.environ
        self._height = 0  # lines of the drawing on the screen
        self._top = 0  # the first line of the text that is shown

    def __enter__(self) -> LiveText:
        """Hides the cursor."""
        self._write("\x1b[?25l")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(self._erase() + "\x1b[?25h")

    def __call__(self, info: StepInfo) -> None:
        """Draws the text after a step."""
        start = info.tokens.shape[1] - len(self._confidence)
        new = info.unmasked[0] - start
        self._confidence[new] = info.confidence[0]
        self._unmasked[new] = self._unmasked[info.filled[0] - start] = True
        columns, rows = shutil.get_terminal_size()
        cells = list(self._cells(info.tokens[0, start:].tolist(), frozenset(new.tolist())))
        lines, newest = _wrap(cells, columns - 1)
        room = max(rows - 2, 1)
        # The newest token stays in sight.
        self._top = min(max(self._top, newest - room + 1), max(len(lines) - room, 0), newest)
        shown = lines[self._top : self._top + room]
        unmasked = int(np.count_nonzero(self._unmasked))
        drawing = [*("".join(map(self._styled, line)) for line in shown), self._status(info, unmasked, columns - 1)]
        self._write(self._erase() + "\n".join(drawing) + "\n")
        self._height = len(drawing)

    def _cells(self, ids: list[int], new: frozenset[int]) -> Iterator[tuple[str, str]]:
        """(text, style) of each position."""
        unmasked = self._unmasked
        shade = confidence_shade(self._confidence)
        after_space = after_masked = True
        position = 0
        while position < len(ids):
            if not unmasked[position]:
                yield ("" if after_space else " ") + _MASKED, _DIM
                after_space, after_masked = False, True
                position += 1
                continue
            end = position
            while end < len(ids) and unmasked[end]:
                end += 1
            for i, text in enumerate(token_texts(self._tokenizer, ids[position:end]), start=position):
                special = is_special(self._tokenizer, ids[i])
                text = _MARK if special else _printable(text)
                gap = " " if (after_masked or special) and not after_space and not text[:1].isspace() else ""
                style = _NEW if i in new else _DIM if special else _UNSURE if shade[i] < _UNSURE_BELOW else _PLAIN
                yield gap + text, style
                after_space, after_masked = (gap + text)[-1:].isspace(), False
            position = end

    def _status(self, info: StepInfo, unmasked: int, width: int) -> str:
        total = len(self._confidence)
        bar = min(_BAR, width // 5)
        done = bar * unmasked // total
        line = (
            f"{'━' * done}{'╌' * (bar - done)} {unmasked}/{total}  step {info.step}  {info.phase}  "
            f"{info.seconds:.2f} s  density {info.density:.2f}"
        )
        return self._styled((line[:width], _DIM))

    def _styled(self, cell: tuple[str, str]) -> str:
        text, style = cell
        return f"\x1b[{style}m{text}\x1b[0m" if style and self._colours else text

    def _erase(self) -> str:
        return f"\x1b[{self._height}F\x1b[J" if self._height else ""

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _printable(text: str) -> str:
    """Without characters that move the cursor, but for the end of a line."""
    return "".join(
        letter if letter == "\n" else "  " if letter == "\t" else "" if unicodedata.category(letter) == "Cc" else letter
        for letter in text
    )


def letter_width(letter: str) -> int:
    """Cells that a character takes in a terminal: 0, 1 or 2."""
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def _wrap(cells: Iterable[tuple[str, str]], width: int) -> tuple[list[list[tuple[str, str]]], int]:
    """The cells in lines of at most `width`, and the line of the last new one."""
    lines: list[list[tuple[str, str]]] = [[]]
    newest = used = 0
    for text, style in cells:
        size = sum(map(letter_width, text))
        if used + size > width >= size and "\n" not in text:
            lines.append([])
            text, used = text.lstrip(" "), 0
        part = ""
        for letter in text:
            size = letter_width(letter)
            if letter == "\n" or used + size > width:
                lines[-1].append((part, style))
                lines.append([])
                part, used = "", 0
            if letter != "\n":
                part, used = part + letter, used + size
        lines[-1].append((part, style))
        if style == _NEW:
            newest = len(lines) - 1
    return lines, newest
