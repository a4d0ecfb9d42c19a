"""sdiag: when the controller answers, by its clock (https://slurm.schedmd.com/sdiag.html)."""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import time

from .arguments import controller_is_down, open_state

__all__ = ["main"]

LINE = "*" * 55


def main(arguments: list[str]) -> int:  # noqa: ARG001 - it has options, and none that is used here
    """Print the head of what sdiag prints; the statistics are left out."""
    if controller_is_down(open_state(), "slurm_get_statistics"):
        return 1
    now = time.time()
    print(LINE, f"sdiag output at {time.ctime(now)} ({int(now)})", LINE, sep="\n")
    return 0
