"""The colours of the phases, the same in every picture."""

from __future__ import annotations

PHASE_COLOURS = {
    "dense": "#5b7cfa",
    "select": "#e39a2d",
    "sparse": "#17a08c",
    "cached": "#b264d8",
    "mixed": "#8a8f9c",
}
PROMPT_COLOUR = "#e0603d"
