"""How an interrupted generation ends its cell in a Jupyter kernel."""

from __future__ import annotations

import sys
from typing import Any


def stop_queued_cells() -> None:
    """Marks the running cell of a Jupyter kernel as interrupted after its last statement; does nothing elsewhere.

    `generate` catches the interrupt to return the text so far. Without this the cell would count as a
    success, and "run all" would continue with half a text.
    """
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return

    def end_as_interrupted(result: Any) -> None:
        shell.events.unregister("post_run_cell", end_as_interrupted)
        if result.success:
            result.error_in_exec = KeyboardInterrupt("generate was interrupted; its result holds the text so far")
            shell.showtraceback((KeyboardInterrupt, result.error_in_exec, None), exception_only=True)

    shell.events.register("post_run_cell", end_as_interrupted)
