"""What the system says of processes: when one was born, which belong to a job, how much memory they use.

Reads Linux's /proc, and asks ps where there is none. No more is imported than must be: each command loads this.
"""

# ruff: noqa: PTH110, SIM105, PTH123, PTH208 - pathlib and contextlib take longer to import than this takes

from __future__ import annotations

import os
import signal

__all__ = ["birth", "family", "kib", "signal_all"]


class Process:
    """One living process; where there is no /proc, its process group stands for its session."""

    def __init__(self, parent: int, session: int, birth: str, kib: int) -> None:
        self.parent, self.session, self.birth, self.kib = parent, session, birth, kib


def birth(pid: int) -> str:
    """Return when this process was born, in words that no later process of its number shares; "" if it is not there."""
    found = _read(pid) if os.path.exists("/proc/self/stat") else _all().get(pid)
    return found.birth if found else ""


def _read(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in {b"Z", b"X"}:
        return None
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return Process(int(fields[1]), int(fields[3]), fields[19].decode(), resident)


def _all() -> dict[int, Process]:
    if os.path.exists("/proc/self/stat"):
        found = {int(name): _read(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
        return {pid: process for pid, process in found.items() if process}
    import subprocess

    argv = ["ps", "-A", "-o", "pid=,ppid=,pgid=,rss=,stat=,lstart="]
    out = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
    rows = [line.split() for line in out.splitlines()]
    return {
        int(row[0]): Process(int(row[1]), int(row[2]), "_".join(row[5:]), int(row[3]))
        for row in rows
        if not row[4].startswith("Z")
    }


def family(leaders: list[int], strays: dict[int, int]) -> dict[int, dict[int, Process]]:
    """Return, for each leader of a session, the living processes of that session and all that descend from them.

    `strays` are processes that left it, with the leader of the job that they belong to.
    """
    everything = _all()
    owner = {leader: leader for leader in leaders} | strays
    owner |= {pid: each.session for pid, each in everything.items() if each.session in leaders}
    more = owner
    while more:
        more = {pid: owner[each.parent] for pid, each in everything.items() if each.parent in more and pid not in owner}
        owner |= more
    found: dict[int, dict[int, Process]] = {leader: {} for leader in leaders}
    for pid, leader in owner.items():
        if pid in everything and leader in found:
            found[leader][pid] = everything[pid]
    return found


def kib(pid: int, process: Process) -> int:
    """Return the memory of a process, of which what it shares with its children counts once.

    https://www.kernel.org/doc/html/latest/filesystems/proc.html, smaps_rollup
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):
        return process.kib


def signal_all(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to these processes, as far as they are there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass
