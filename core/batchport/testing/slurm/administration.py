"""What an administrator, a node or a stronger job does to jobs. Called by scontrol and by SlurmSimulator."""

from __future__ import annotations

import os
import time

from .job import ENDED, Job
from .state import State

__all__ = ["fail_node", "hold", "lose_node", "preempt", "release", "requeue"]


def hold(jobs: list[Job], who: str = "") -> None:
    """Hold these jobs; those that run go on."""
    for job in jobs:
        if job.state not in ENDED:
            job.held = who or ("User" if os.getuid() else "Admin")
            job.wait_for(f"JobHeld{job.held}")


def release(state: State, jobs: list[Job], indexes: list[int] | None) -> None:
    """Let these jobs, or these elements of an array, go."""
    for job in jobs:
        if job.waiting is not None and indexes is not None and set(job.waiting) - set(indexes):
            for index in set(job.waiting) & set(indexes):
                state.serial += 1
                fields = {**vars(job), "id": state.new_id(), "serial": state.serial, "waiting": None, "index": index}
                state.jobs.append(Job(**{**fields, "held": "", "reason": "None"}))
            job.waiting = [index for index in job.waiting if index not in indexes]
        else:
            job.held, job.reason = "", "None"


def requeue(jobs: list[Job], *, held: bool = False) -> None:
    """Put these jobs back into the queue, those that have ended too."""
    for job in jobs:
        if job.state == "PENDING":
            continue
        over = job.is_over
        job.state, job.ending = "PENDING", "REQUEUE"
        if over:
            job.pid = 0
        if held:
            job.held = "User"
            job.wait_for("job requeued in held state")


def preempt(jobs: list[Job]) -> None:
    """Have jobs that run make way for stronger ones (https://slurm.schedmd.com/preempt.html)."""
    for job in jobs:
        if job.state == "RUNNING":
            job.ending = "PREEMPT_REQUEUE" if job.requeue else "PREEMPTED"
            job.state, job.end = ("PENDING", None) if job.requeue else ("PREEMPTED", time.time())


def fail_node(state: State, node: str) -> None:
    """Set a node down; its jobs are lost, or go back into the queue."""
    state.down = sorted({*state.down, node})
    lose_node([job for job in state.known() if job.state == "RUNNING" and node in [name for name, _ in job.nodes]])


def lose_node(jobs: list[Job]) -> None:
    """Have these jobs, which run, lose their node."""
    for job in jobs:
        job.ending, job.reason = "NODE_REQUEUE" if job.requeue else "NODE_FAIL", "NodeDown"
        job.state, job.end = ("PENDING", None) if job.requeue else ("NODE_FAIL", time.time())
