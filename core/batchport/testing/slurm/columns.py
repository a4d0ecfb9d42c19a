"""The columns of squeue: `%.10i` of --format, `Name:.20` of --Format, and what each shows of a job."""

from __future__ import annotations

import os
import pwd
import sys

from .job import COMPACT, Job
from .words import duration, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["by_name", "by_percent"]

REASON_SHOWN = {"PENDING", "FAILED", "TIMEOUT", "OUT_OF_MEMORY"}
"""The states for which %R shows the reason and not the nodes."""


def _task(job: Job) -> str:
    return "N/A" if job.waiting is None and job.index is None else job.task.strip("[]")


def _reason_or_nodes(job: Job) -> str:
    shown = job.queue_state in REASON_SHOWN and job.reason != "None"
    return f"({job.reason})" if shown or job.queue_state == "PENDING" else job.node_list


def _limit(job: Job) -> str:
    return "UNLIMITED" if job.minutes is None else duration(job.minutes * 60)


def _time_left(job: Job) -> str:
    return "UNLIMITED" if job.minutes is None else duration(max(job.minutes * 60 - job.run_time, 0))


def _end(job: Job) -> str:
    if job.end or job.minutes is None or not (job.start or job.begin):
        return timestamp(job.end)
    return timestamp((job.start or job.begin) + job.minutes * 60)


COLUMNS: dict[str, tuple[str, str, Callable[[Job], object]]] = {
    "i": ("JOBID", "JobArrayID", lambda job: job.display_id),
    "F": ("ARRAY_JOB_ID", "ArrayJobID", lambda job: job.array or job.id),
    "K": ("ARRAY_TASK_ID", "ArrayTaskID", _task),
    "A": ("JOBID", "JobID", lambda job: job.id),
    "T": ("STATE", "State", lambda job: job.queue_state),
    "t": ("ST", "StateCompact", lambda job: COMPACT[job.queue_state]),
    "j": ("NAME", "Name", lambda job: job.name),
    "r": ("REASON", "Reason", lambda job: job.reason),
    "R": ("NODELIST(REASON)", "ReasonList", _reason_or_nodes),
    "N": ("NODELIST", "NodeList", lambda job: job.node_list),
    "B": ("EXEC_HOST", "BatchHost", lambda job: job.nodes[0][0] if job.nodes else "n/a"),
    "P": ("PARTITION", "Partition", lambda job: job.partition),
    "C": ("CPUS", "NumCPUs", lambda job: job.needed),
    "D": ("NODES", "NumNodes", lambda job: len(job.nodes) or 1),
    "u": ("USER", "UserName", lambda _: pwd.getpwuid(os.getuid()).pw_name),
    "U": ("UID", "UserID", lambda _: os.getuid()),
    "a": ("ACCOUNT", "Account", lambda job: job.account),
    "q": ("QOS", "QOS", lambda job: job.qos),
    "m": ("MIN_MEMORY", "MinMemory", lambda job: f"{job.memory_mib or 500}M"),
    "l": ("TIME_LIMIT", "TimeLimit", _limit),
    "M": ("TIME", "TimeUsed", lambda job: duration(job.run_time)),
    "L": ("TIME_LEFT", "TimeLeft", _time_left),
    "V": ("SUBMIT_TIME", "SubmitTime", lambda job: timestamp(job.submit)),
    "S": ("START_TIME", "StartTime", lambda job: timestamp(job.start or job.begin or job.end)),
    "e": ("END_TIME", "EndTime", _end),
    "E": ("DEPENDENCY", "Dependency", lambda job: job.dependency or "(null)"),
    "k": ("COMMENT", "Comment", lambda job: job.comment or "(null)"),
    "Z": ("WORK_DIR", "WorkDir", lambda job: job.workdir),
    "": ("EXIT_CODE", "exit_code", lambda job: job.status),
}
BY_NAME = {name.lower(): column for _, name, _ in COLUMNS.values() for column in COLUMNS.values() if column[1] == name}
WIDTH = 20
"""How wide a column of --Format is that says nothing else."""


def _fitted(value: object, width: int | None, *, right: bool) -> str:
    if width is None:
        return str(value)
    return str(value)[:width].rjust(width) if right else str(value)[:width].ljust(width)


def by_percent(words: str) -> tuple[str, Callable[[Job], str]]:
    """Return the head of `%i|%.8j`, and what makes a job's line."""
    parts: list[tuple[str, tuple[str, str, Callable[[Job], object]], int | None, bool]] = []
    rest, tail = words, ""
    while "%" in rest:
        before, _, rest = rest.partition("%")
        right, rest = rest.startswith("."), rest.removeprefix(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        letter, rest = rest[len(digits) : len(digits) + 1], rest[len(digits) + 1 :]
        if letter not in COLUMNS:
            print(f"squeue: error: Invalid job format specification: {letter}", file=sys.stderr)  # noqa: T201
            continue
        parts.append((before, COLUMNS[letter], int(digits) if digits else None, right))
        tail = rest

    def line(cell: Callable[[tuple[str, str, Callable[[Job], object]]], object]) -> str:
        return (
            "".join(before + _fitted(cell(column), width, right=right) for before, column, width, right in parts) + tail
        )

    return line(lambda column: column[0]), lambda job: line(lambda column: column[2](job))


def by_name(words: str) -> tuple[str, Callable[[Job], str]]:
    """Return the head of `JobID,Name:.30`, and what makes a job's line."""
    parts: list[tuple[tuple[str, str, Callable[[Job], object]], int | None, bool, str]] = []
    for word in words.split(","):
        name, colon, size = word.partition(":")
        if name.lower() not in BY_NAME:
            print(f"squeue: error: Invalid job format specification: {name}", file=sys.stderr)  # noqa: T201
            continue
        right, size = size.startswith("."), size.removeprefix(".")
        digits = size[: len(size) - len(size.lstrip("0123456789"))]
        width = int(digits) if digits else None if colon else WIDTH
        parts.append((BY_NAME[name.lower()], width, right, size[len(digits) :]))

    def line(cell: Callable[[tuple[str, str, Callable[[Job], object]]], object]) -> str:
        return "".join(_fitted(cell(column), width, right=right) + after for column, width, right, after in parts)

    return line(lambda column: column[0]), lambda job: line(lambda column: column[2](job))
