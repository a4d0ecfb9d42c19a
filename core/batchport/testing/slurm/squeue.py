"""squeue: lists the jobs that the controller knows (https://slurm.schedmd.com/squeue.html)."""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import os
import pwd
import sys

from .arguments import controller_is_down, open_state, parse
from .columns import by_name, by_percent
from .job import COMPACT, Job
from .job_ids import job_id

__all__ = ["main"]

SHORT = (
    "h=noheader a=all r=array t=states= o=format= O=Format= j=jobs= n=name= u=user= p=partition= A=account= S=sort= "
    "l=long q=qos="
)
LONG = "me start steps"
USUAL = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
STATES = (
    "PENDING,RUNNING,SUSPENDED,COMPLETED,CANCELLED,FAILED,TIMEOUT,NODE_FAIL,PREEMPTED,BOOT_FAIL,DEADLINE,OUT_OF_MEMORY,"
    "COMPLETING,CONFIGURING,RESIZING,RESV_DEL_HOLD,REQUEUED,REQUEUE_FED,REQUEUE_HOLD,REVOKED,SIGNALING,SPECIAL_EXIT,"
    "STAGE_OUT,STOPPED"
)
LIVING = {"PENDING", "RUNNING", "COMPLETING"}


def main(arguments: list[str]) -> int:
    """List jobs."""
    options, _ = parse("squeue", arguments, SHORT, LONG, code=1)
    wanted = _states(options)
    asked = _asked(options)
    state = open_state()
    if controller_is_down(state, "slurm_load_jobs error"):
        return 1
    jobs = list(state.known())
    # A single unknown id is an error, one among others is not.
    if asked and len(asked) == 1 and not any(job.belongs(asked[0][0], None) for job in jobs):
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    names = set(options["name"].split(",")) if "name" in options else None
    partitions = set(options["partition"].split(",")) if "partition" in options else None
    mine = options.get("user") in {None, pwd.getpwuid(os.getuid()).pw_name, str(os.getuid())}
    rows: list[Job] = []
    for job in jobs:
        if mine and (wanted is None or job.queue_state in wanted) and (names is None or job.name in names):
            if (partitions is not None and job.partition not in partitions) or not _is_asked(job, asked):
                continue
            # An element that is asked for is shown by itself.
            alone = "array" in options or any(indexes is not None for _, indexes in asked)
            rows += [each for each in job.elements() if _is_asked(each, asked)] if alone else [job]
    heads, show = by_name(options["Format"]) if "Format" in options else by_percent(options.get("format", USUAL))
    lines = ([] if "noheader" in options else [heads]) + [show(job) for job in rows]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _states(options: dict[str, str]) -> set[str] | None:
    """Return the states to show, None for all."""
    if "states" not in options:
        return LIVING
    known = {short: name for name, short in COMPACT.items()} | {name: name for name in STATES.split(",")}
    words = options["states"].upper().split(",")
    for word in words:
        if word != "ALL" and word not in known:
            print(f"squeue: error: Invalid job state specified: {word.lower()}", file=sys.stderr)
            print(f"squeue: error: Valid job states include: {STATES}\n", file=sys.stderr)
            sys.exit(1)
    return None if "ALL" in words else {known[word] for word in words}


def _asked(options: dict[str, str]) -> list[tuple[int, list[int] | None]]:
    found = []
    for words in options.get("jobs", "").split(",") if "[" not in options.get("jobs", "") else [options["jobs"]]:
        try:
            found += [job_id(words)] if words else []
        except ValueError:
            print(f"squeue: error: Invalid job id: {words}", file=sys.stderr)
            sys.exit(1)
    return found


def _is_asked(job: Job, asked: list[tuple[int, list[int] | None]]) -> bool:
    return not asked or any(job.belongs(number, indexes) for number, indexes in asked)
