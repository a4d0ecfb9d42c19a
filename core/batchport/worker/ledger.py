"""The worker's books: which tasks wait, which jobs there are, which task is in which place of which job.

Read and changed by all parts of the worker, on its event loop only, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from batchport.jobs import JobSpec
from batchport.worker.packing import Waiting
from batchport.worker.tracking import Entry, Job

__all__ = ["Counts", "Ledger"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a worker has done so far: tasks by where they are, jobs, and calls by method.

    `second_runs` counts tasks that ran to their end once more although their result was there.
    """

    waiting: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    jobs: int = 0
    second_runs: int = 0
    backend_calls: Counter[str] = field(default_factory=Counter)
    store_calls: Counter[str] = field(default_factory=Counter)


class Ledger:
    """All that a worker knows of its tasks and jobs.

    `jobs` keeps a job until the backend says that it ended; `holders` are those whose place at the backend
    is taken: some of their tasks have no outcome, and the job is not known to be over.
    """

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.jobs: dict[str, Job] = {}
        self.holders: set[Job] = set()
        self.counts: Counter[str] = Counter()
        self._places: dict[str, tuple[Job, int]] = {}
        self._change = asyncio.Event()

    def __contains__(self, task_id: object) -> bool:
        return task_id in self.waiting or task_id in self._places

    @property
    def sent(self) -> int:
        """How many tasks are in jobs."""
        return len(self._places)

    @property
    def at_backend(self) -> int:
        """How many holders have been submitted."""
        return sum(job.id is not None for job in self.holders)

    def open_job(self, spec: JobSpec, entries: Sequence[Entry]) -> Job:
        """Enter a new job that runs these tasks."""
        job = Job(spec, dict(enumerate(entries)))
        self.jobs[job.name] = job
        self.holders.add(job)
        for place, entry in job.entries.items():
            self._places[entry.task.id] = (job, place)
        self.counts["jobs"] += 1
        return job

    def find(self, task_id: str) -> tuple[Job, int] | None:
        """Return the job and place of a task that is in a job."""
        return self._places.get(task_id)

    def take(self, job: Job, place: int, now: float) -> Entry:
        """Take a task out of its job, for good or to wait again; the last one frees the job's place."""
        entry = job.entries.pop(place)
        del self._places[entry.task.id]
        if not job.entries:
            job.settled_at = now
            self.holders.discard(job)
        return entry

    def close_job(self, job: Job) -> None:
        """Strike out a job that has no tasks and is over."""
        self.holders.discard(job)
        self.jobs.pop(job.name, None)

    def notify(self) -> None:
        """Wake up whoever waits for something here to change."""
        self._change.set()
        self._change = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` is true; it is asked again after each change, so it must be cheap."""
        while not holds():
            await self._change.wait()
