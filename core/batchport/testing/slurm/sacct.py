"""sacct: lists what accounting knows (https://slurm.schedmd.com/sacct.html).

Accounting keeps what the controller forgets. It hears of things `late_s` after they happened, if told so.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import os
import pwd
import sys
import time

from .arguments import parse
from .job import ENDED, Job
from .job_ids import job_id
from .state import State, folder_of_environment
from .words import duration, moment, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

SHORT = (
    "X=allocations n=noheader P=parsable2 p=parsable j=jobs= o=format= S=starttime= E=endtime= u=user= s=state= "
    "a=allusers D=duplicates L=allclusters M=clusters= r=partition= A=accounts= l=long"
)
LONG = "name= delimiter= noconvert units="
USUAL = "JobID,JobName,Partition,Account,AllocCPUS,State,ExitCode"
REFUSED = "Connection refused"
FAILING = (
    f"slurm_persist_conn_open_without_init: failed to open persistent connection to host:127.0.0.1:6819: {REFUSED}",
    "Sending PersistInit msg: Connection refused",
    "Problem talking to the database: Connection refused",
)


class Row:
    """One line: a job, or its batch step."""

    def __init__(self, job: Job, step: str, now: float) -> None:
        self.job, self.step = job, step
        ended = job.end is not None and job.state in ENDED and job.end <= now
        started = job.start is not None and job.start <= now and bool(job.nodes)
        self.state = job.state if ended else "RUNNING" if started else "PENDING"
        self.told = job.told if ended else "0:0"
        self.end = job.end if ended else None
        if step and ended:
            self._judge_step(job)
        elif self.state == "CANCELLED":
            self.state = f"CANCELLED by {job.by}"

    def _judge_step(self, job: Job) -> None:
        code, number = job.status >> 8, job.status & 127
        if job.state == "NODE_FAIL":
            self.state, self.told = "CANCELLED", ""
        elif job.state != "OUT_OF_MEMORY" and job.told != "0:53":
            self.told = f"{code & 127}:{number}"
            self.state = "CANCELLED" if number else "FAILED" if code else "COMPLETED"
        elif job.told == "0:53":
            self.state = "CANCELLED"

    @property
    def id(self) -> str:
        """12, 12_3 or 12_[4-5], and the step."""
        return self.job.display_id + self.step


COLUMNS: dict[str, tuple[int, Callable[[Row], object]]] = {
    "JobID": (-12, lambda row: row.id),
    "JobIDRaw": (-12, lambda row: f"{row.job.id}{row.step}"),
    "JobName": (10, lambda row: "batch" if row.step else row.job.name),
    "Partition": (10, lambda row: "" if row.step else row.job.partition),
    "Account": (10, lambda row: row.job.account),
    "AllocCPUS": (10, lambda row: row.job.needed if row.job.nodes else 0),
    "ReqCPUS": (8, lambda row: row.job.needed),
    "State": (10, lambda row: row.state),
    "ExitCode": (8, lambda row: row.told),
    "DerivedExitCode": (15, lambda row: "" if row.step else "0:0"),
    "NodeList": (15, lambda row: row.job.node_list or "None assigned"),
    "Reason": (22, lambda row: "" if row.step else row.job.told_reason),
    "ReqMem": (10, lambda row: f"{row.job.memory_mib or 500}M"),
    "Timelimit": (10, lambda row: "" if row.step else _limit(row.job)),
    "User": (9, lambda row: "" if row.step else pwd.getpwuid(os.getuid()).pw_name),
    "UID": (6, lambda row: "" if row.step else os.getuid()),
    "QOS": (10, lambda row: "" if row.step else row.job.qos),
    "Cluster": (10, lambda _: "simulated"),
    "Submit": (19, lambda row: timestamp(row.job.submit)),
    "Start": (19, lambda row: timestamp(None if row.state == "PENDING" else row.job.start or row.job.end, "Unknown")),
    "End": (19, lambda row: timestamp(row.end, "Unknown")),
    "Elapsed": (10, lambda row: duration(row.job.run_time, full=True)),
    "WorkDir": (20, lambda row: "" if row.step else row.job.workdir),
}
BY_NAME = {name.lower(): name for name in COLUMNS}


def _limit(job: Job) -> str:
    return "UNLIMITED" if job.minutes is None else duration(job.minutes * 60, full=True)


def main(arguments: list[str]) -> int:
    """List jobs that accounting knows."""
    options, _ = parse("sacct", arguments, SHORT, LONG, code=1)
    state = State(folder_of_environment())
    if not state.settings["accounting"]:
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    columns = _columns(options)
    asked = _asked(options)
    since = _since(options, asked)
    if state.faults.get("sacct_fails"):
        sys.stderr.write("".join(f"sacct: error: {line}\n" for line in FAILING))
        return 1
    now = time.time() - state.faults.get("sacct_late_s", 0)
    names = set(options["name"].split(",")) if "name" in options else None
    rows: list[Row] = []
    for job in _latest(state, duplicates="duplicates" in options):
        if job.submit > now or (names is not None and job.name not in names) or (job.end or now) < since:
            continue
        if not asked and job.held and not job.start:
            continue  # never eligible: https://slurm.schedmd.com/sacct.html#OPT_starttime
        if not asked or any(job.belongs(number, indexes) for number, indexes in asked):
            rows.append(Row(job, "", now))
            if "allocations" not in options and rows[-1].state != "PENDING" and job.nodes:
                rows.append(Row(job, ".batch", now))
    wanted = {each.upper() for each in options["state"].split(",")} if "state" in options else None
    rows = [row for row in rows if wanted is None or row.state.split()[0] in wanted]
    _print(rows, columns, options)
    return 0


def _latest(state: State, *, duplicates: bool) -> list[Job]:
    """Return what there is, sorted by id; of two jobs that had one id, the first is shown only with --duplicates."""
    jobs = sorted(state.jobs, key=lambda job: (job.array or job.id, -1 if job.index is None else job.index, job.serial))
    last = {(job.display_id): job for job in jobs}
    return jobs if duplicates else list(last.values())


def _columns(options: dict[str, str]) -> list[tuple[str, int]]:
    found = []
    for word in options.get("format", USUAL).split(","):
        name, _, width = word.partition("%")
        if name.lower() not in BY_NAME:
            print(f'sacct: error: Invalid field requested: "{name}"', file=sys.stderr)
            sys.exit(1)
        known = BY_NAME[name.lower()]
        found.append((known, int(width or COLUMNS[known][0])))
    return found


def _asked(options: dict[str, str]) -> list[tuple[int, list[int] | None]]:
    found = []
    for words in options.get("jobs", "").split(","):
        try:
            found += [job_id(words)] if words else []
        except ValueError:
            print(f"sacct: fatal: Bad job/step specified: {words}", file=sys.stderr)
            sys.exit(1)
    return found


def _since(options: dict[str, str], asked: list[tuple[int, list[int] | None]]) -> float:
    """Without --starttime: today, or at any time for jobs that are asked for by id."""
    try:
        return moment(options["starttime"]) if "starttime" in options else 0 if asked else moment("today")
    except ValueError:
        print(f"Invalid time specification (pos=0): {options['starttime']}", file=sys.stderr)
        sys.exit(1)


def _print(rows: list[Row], columns: list[tuple[str, int]], options: dict[str, str]) -> None:
    heads = [] if "noheader" in options else [[name for name, _ in columns]]
    lines = heads + [[str(COLUMNS[name][1](row)) for name, _ in columns] for row in rows]
    if "parsable2" in options or "parsable" in options:
        between = options.get("delimiter", "|")
        end = "" if "parsable2" in options else between
        sys.stdout.write("".join(f"{between.join(line)}{end}\n" for line in lines))
        return
    if heads:
        lines.insert(1, ["-" * abs(width) for _, width in columns])
    for line in lines:
        print("".join(f"{_cut(cell, width)} " for cell, (_, width) in zip(line, columns, strict=True)))


def _cut(cell: str, width: int) -> str:
    cell = cell if len(cell) <= abs(width) else f"{cell[: abs(width) - 1]}+"
    return cell.ljust(-width) if width < 0 else cell.rjust(width)
