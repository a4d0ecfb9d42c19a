"""Which job starts next and where, and why the others wait. Called by the controller, the state being locked."""

from __future__ import annotations

import time

from .job import ENDED, Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .state import State

__all__ = ["next_start", "startable"]


def startable(state: State) -> Iterator[Job]:
    """Yield the pending jobs that wait for nothing but their turn, in that order, and note why the others wait."""
    for job in sorted(state.jobs, key=lambda each: (each.id if each.array is None else each.array, each.index or 0)):
        if job.state != "PENDING" or job.ending or job.forgotten:
            continue
        if reason := _obstacle(state, job):
            job.wait_for(reason)
        else:
            yield job


def _obstacle(state: State, job: Job) -> str:
    settings = state.settings
    longest = settings["partitions"][job.partition]
    if job.held:
        return job.reason if job.reason.startswith("job requeued") else f"JobHeld{job.held}"
    if job.needed > settings["cpus"] * settings["nodes"]:
        return "PartitionConfig"
    if longest is not None and (job.minutes is None or job.minutes > longest):
        return "PartitionTimeLimit"
    if job.dependency and (reason := _dependency(state, job)):
        return reason
    if job.begin > time.time():
        return "BeginTime"
    running = sum(each.array == job.array and each.state == "RUNNING" for each in state.jobs) if job.at_once else 0
    return "JobArrayTaskLimit" if running and running >= job.at_once else ""


def _dependency(state: State, job: Job) -> str:
    """Return why a job with --dependency waits; a job that is not known is as good as done, as in Slurm 22.05."""
    for clause in job.dependency.split(","):
        kind, _, numbers = clause.partition(":")
        for number in numbers.split(":"):
            records = state.named(int(number)) if number.isdecimal() else []
            if any(each.state not in ENDED or each.ending for each in records):
                return "Dependency"
            good = all(each.state == "COMPLETED" for each in records)
            if records and ((kind == "afterok" and not good) or (kind == "afternotok" and good)):
                return "DependencyNeverSatisfied"
    return ""


def next_start(state: State) -> Job | None:
    """Return the next job to start, with its nodes, as a record of its own; None if none can start now."""
    for job in startable(state):
        nodes = _place(state, job)
        if nodes is None:
            _note_queue(state, job)
            return None
        if job.waiting is not None:
            job = _split(state, job)  # noqa: PLW2901 - the element in the array's place
        job.nodes = nodes
        return job
    return None


def _note_queue(state: State, first: Job) -> None:
    """One job waits for resources and all after it for their turn: nothing overtakes here."""
    for job in startable(state):
        job.reason = "Resources" if job is first else "Priority"


def _split(state: State, job: Job) -> Job:
    assert job.waiting is not None
    index = job.waiting[0]
    if len(job.waiting) == 1:
        job.index, job.waiting = index, None
        return job
    job.waiting = job.waiting[1:]
    state.serial += 1
    element = Job(**{**vars(job), "id": state.new_id(), "serial": state.serial, "waiting": None, "index": index})
    state.jobs.append(element)
    return element


def _place(state: State, job: Job) -> list[tuple[str, int]] | None:
    taken = dict.fromkeys((f"n{number + 1}" for number in range(state.settings["nodes"])), 0)
    for each in state.jobs:
        if (each.state == "RUNNING" or each.ending) and not each.forgotten:
            for node, cpus in each.nodes:
                taken[node] += cpus
    found: list[tuple[str, int]] = []
    missing = job.needed
    for node, cpus in taken.items():
        if node in state.down or (job.wanted_nodes and node not in job.wanted_nodes.split(",")):
            continue
        free = (state.settings["cpus"] - cpus) // job.cpus * job.cpus
        if free and missing:
            found.append((node, min(free, missing)))
            missing -= found[-1][1]
    return None if missing else found
