"""scancel: ends jobs (https://slurm.schedmd.com/scancel.html)."""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import os
import pwd
import sys
import time

from .arguments import controller_is_down, open_state, parse
from .job import ENDED, Job
from .job_ids import job_id

__all__ = ["main"]

SHORT = "n=name= t=state= u=user= p=partition= A=account= Q=quiet v=verbose f=full b=batch q=qos= w=nodelist="
LONG = "me jobname="


def main(arguments: list[str]) -> int:
    """End jobs; one that is unknown or over is no error."""
    options, rest = parse("scancel", arguments, SHORT, LONG, code=1)
    filters = options.keys() - {"quiet", "verbose", "full", "batch"}
    if not rest and not filters:
        print("scancel: error: No job identification provided", file=sys.stderr)
        return 1
    asked = []
    for words in rest:
        try:
            asked.append(job_id(words))
        except ValueError:
            print(f"scancel: error: Invalid job id {words}", file=sys.stderr)
            return 1
    state = open_state()
    for words in rest or [""]:
        if controller_is_down(state, f"scancel: error: Kill job error on job id {words}"):
            return 8
    with state:
        for job in [each for each in state.known() if not rest or any(each.belongs(*which) for which in asked)]:
            if _fits(job, options):
                indexes = [index for number, some in asked if number in {job.id, job.array} for index in some or []]
                whole = any(some is None and number in {job.id, job.array} for number, some in asked)
                _cancel(job, None if whole else indexes if rest else job.waiting)
        state.wake()
    return 0


def _fits(job: Job, options: dict[str, str]) -> bool:
    user = pwd.getpwuid(os.getuid()).pw_name
    name = options.get("name", options.get("jobname", job.name))
    state = options.get("state", job.queue_state).upper()
    return (
        name == job.name
        and options.get("user", user) in {user, str(os.getuid())}
        and options.get("partition", job.partition) == job.partition
        and state in {job.queue_state, job.queue_state[0]}
    )


def _cancel(job: Job, indexes: list[int] | None) -> None:
    """Cancel a record, or some of the elements that it stands for: those are then nowhere to be seen, as in Slurm."""
    if job.state in ENDED:
        return
    if job.waiting is not None and indexes is not None:
        left = [index for index in job.waiting if index not in indexes]
        if left or len(job.waiting) > 1 or job.shape[0] == 1:
            job.waiting = left or None
        else:  # the last one, which others have left behind
            job.index, job.waiting = job.waiting[0], None
        if left:
            return
    job.ending = "CANCELLED" if job.pid else ""
    job.state, job.end, job.by = "CANCELLED", time.time(), os.getuid()
