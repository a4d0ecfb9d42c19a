"""How often the kernel has killed for want of memory where this process runs. Called by pack.py."""

from __future__ import annotations

from pathlib import Path

__all__ = ["out_of_memory_kills"]

PROC = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def out_of_memory_kills() -> int:
    """Return the `oom_kill` count of this process's cgroup (version 2) and those below it; 0 where there is none.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    try:
        groups = [line[3:] for line in PROC.read_text().splitlines() if line.startswith("0::")]
        events = (CGROUPS / groups[0].lstrip("/") / "memory.events").read_text()
        return next(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))
    except (OSError, IndexError, StopIteration, ValueError):
        return 0
