"""The worker's books: which tasks wait, which jobs there are, which task is in which place of which job.

Read and changed by all parts of the worker, on its event loop only, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from batchport.jobs import JobSpec
from batchport.worker.packing import Waiting
from batchport.worker.tracking import Element, Entry, Job

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

    `jobs` keeps a job until the backend says that it ended; one that has all its outcomes rests meanwhile, so
    that no round of polls or verdicts looks at it before it had a minute to end by itself. `holders` are the
    elements whose place at the backend is taken: some of their tasks have no outcome, and they are not known
    to be over. `parked` are tasks of an earlier start that must be sent again, and wait for the host to offer
    them. `poll_wanted` is set where something is over that only the backend can confirm.
    """

    def __init__(self) -> None:
        self.poll_wanted = asyncio.Event()
        self.waiting = Waiting()
        self.jobs: dict[str, Job] = {}
        self._active: dict[str, Job] = {}
        self._resting: dict[str, Job] = {}  # in the order in which they came to rest
        self.holders: set[Element] = set()
        self.parked: dict[str, Entry] = {}
        self.counts: Counter[str] = Counter()
        self._places: dict[str, tuple[Element, int]] = {}
        self._waiters: list[asyncio.Future[None]] = []

    def __contains__(self, task_id: object) -> bool:
        return task_id in self.waiting or task_id in self._places

    @property
    def in_jobs(self) -> list[str]:
        """The ids of the tasks that are in jobs."""
        return list(self._places)

    @property
    def sent(self) -> int:
        """How many tasks are in jobs."""
        return len(self._places)

    @property
    def all_submitted(self) -> bool:
        """Whether every job that anybody waits for is at the backend."""
        return all(job.id is not None or job.is_settled for job in self._active.values())

    @property
    def at_backend(self) -> int:
        """How many holders have been submitted."""
        return sum(element.id is not None for element in self.holders)

    def open_job(self, spec: JobSpec, entries: Sequence[Entry], per_element: int) -> Job:
        """Enter a new job that runs these tasks."""
        job = Job(spec, per_element)
        places = list(enumerate(entries))
        for index in range(spec.size):
            some = places[index * per_element : (index + 1) * per_element]
            # One that is in a newer job already was sent again before an earlier start ended.
            element = Element(job, index, {place: entry for place, entry in some if entry.task.id not in self})
            job.elements.append(element)
            if element.entries:
                self.holders.add(element)
            for place, entry in element.entries.items():
                self._places[entry.task.id] = (element, place)
        self.jobs[job.name] = self._active[job.name] = job
        self.counts["jobs"] += 1
        return job

    def find(self, task_id: str) -> tuple[Element, int] | None:
        """Return the element and place of a task that is in a job."""
        return self._places.get(task_id)

    def take(self, element: Element, place: int, now: float) -> Entry:
        """Take a task out of its element, for good or to wait again; the last one frees the element's place."""
        entry = element.entries.pop(place)
        del self._places[entry.task.id]
        if not element.entries:
            element.settled_at = now
            self.holders.discard(element)
            self.rest(element.job)
        return entry

    def put_back(self, element: Element, place: int, entry: Entry) -> None:
        """Undo a `take`: the task is in its job again."""
        element.entries[place], element.settled_at = entry, None
        self._places[entry.task.id] = (element, place)

    def send_again(self, entry: Entry) -> None:
        """Have a task wait again, ahead of the others; one that the host has not offered yet is parked."""
        entry.answered = False
        if entry.offered:
            self.waiting.add(entry, first=True)
        else:
            self.parked[entry.task.id] = entry
            self.counts["taken"] -= not entry.held

    def release(self, entry: Entry) -> None:
        """Have a task that was held get its outcome, now that the host has offered or cancelled it."""
        if entry.held:
            entry.held = False
            self.counts["taken"] += 1
            self.poll_wanted.set()  # its job may be over
            self.notify()

    def close_job(self, job: Job) -> None:
        """Strike out a job that has no tasks and is over."""
        self.holders.difference_update(job.elements)
        for jobs in (self.jobs, self._active, self._resting):
            jobs.pop(job.name, None)

    def rest(self, job: Job) -> None:
        """Let a job rest if it is settled, and is at the backend as far as is known."""
        if job.name in self._active and job.id is not None and job.is_settled and not job.may_end:
            self._resting[job.name] = self._active.pop(job.name)
            for element in job.elements:
                element.entries = {}  # an emptied dict keeps its size, and there may be very many such jobs

    def watched(self, now: float) -> list[Job]:
        """Return the jobs to look at: all but those that rest, and of these the ones that have rested long enough."""

        def is_due(job: Job) -> bool:
            return job.may_end or any(element.wants_poll(now) for element in job.elements)

        return [*self._active.values(), *takewhile(is_due, self._resting.values())]

    def notify(self) -> None:
        """Wake up whoever waits for something here to change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # else it was cancelled
                waiter.set_result(None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` is true; it is asked again after each change, so it must be cheap."""
        while not holds():
            self._waiters.append(waiter := asyncio.get_running_loop().create_future())
            await waiter
