"""The few shapes that the drawings are made of."""

from __future__ import annotations

from xml.sax.saxutils import escape

INK, PAPER, LINE, PALE = "#23272f", "#ffffff", "#c3c9d4", "#f1f3f7"


class Svg:
    """A picture of width x height pixels on white paper; shapes are drawn in the order of the calls."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._shapes = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: float = 0
    ) -> None:
        """A filled rectangle."""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK, size: int = 13,
             bold: bool = False) -> None:  # fmt: skip
        """One line; y is that of its baseline, `anchor` start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"{weight}>'
            f"{escape(text)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, title: str, *lines: str, fill: str = PALE) -> None:
        """A rounded box with a bold title and smaller lines below it."""
        self.rect(x, y, width, height, fill, LINE, 6)
        first = y + height / 2 + 5 - 8.5 * len(lines)
        self.text(x + width / 2, first, title, anchor="middle", bold=True)
        for i, line in enumerate(lines, 1):
            self.text(x + width / 2, first + 17 * i, line, anchor="middle", size=12)

    def arrow(self, *points: tuple[float, float], colour: str = "#6b7280") -> None:
        """A line through the points; its head lies at the last one."""
        (x0, y0), (x, y) = points[-2:]
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        along = (6 * (x - x0) / length, 6 * (y - y0) / length)
        head = [(x, y), (x - along[0] - along[1] / 2, y - along[1] + along[0] / 2),
                (x - along[0] + along[1] / 2, y - along[1] - along[0] / 2)]  # fmt: skip
        self._shapes.append(f'<polyline points="{_join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        self._shapes.append(f'<polygon points="{_join(head)}" fill="{colour}"/>')

    def line(self, x0: float, y0: float, x: float, y: float, colour: str, dash: str = "") -> None:
        """A straight line; `dash` as in stroke-dasharray."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._shapes.append(
            f'<line x1="{x0:g}" y1="{y0:g}" x2="{x:g}" y2="{y:g}" stroke="{colour}" stroke-width="1.5"{dashed}/>'
        )

    def __str__(self) -> str:
        return "\n".join([*self._shapes, "</svg>"]) + "\n"


def _join(points: list[tuple[float, float]] | tuple[tuple[float, float], ...]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
