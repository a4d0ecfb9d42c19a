"""start_of(): when a process started, since its number alone does not name it.

Called by the worker, which looks whether an earlier start of it still lives, and by the conformance suite.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["start_of"]


def start_of(pid: int) -> str | None:
    """Return when the process `pid` started, in the kernel's own unit; None if it is gone or only a zombie.

    Numbers are used again, and a later process of the same number started at another time. Where there is
    no /proc, "" stands for "it is there". Field 22 of https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    try:
        # The second field is the program's name in parentheses, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self").exists() else _is_there(pid)
    return None if fields[0] in {"Z", "X"} else fields[19]


def _is_there(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's, and so there
    return ""
