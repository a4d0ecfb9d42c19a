"""The worker's books: which tasks wait, which jobs there are, which task is in which place of which job.

Read and changed by all parts of the worker, on its event loop only, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

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

    `jobs` keeps a job until the backend says that it ended; `holders` are the elements whose place at the
    backend is taken: some of their tasks have no outcome, and they are not known to be over. `parked` are
    tasks of an earlier start that must be sent again, and wait for the host to offer them.
    """

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.jobs: dict[str, Job] = {}
        self.holders: set[Element] = set()
        self.parked: dict[str, Entry] = {}
        self.counts: Counter[str] = Counter()
        self._places: dict[str, tuple[Element, int]] = {}
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
        self.jobs[job.name] = job
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
        return entry

    def put_back(self, element: Element, place: int, entry: Entry) -> None:
        """Undo `take`: the task's outcome was not delivered after all."""
        element.entries[place] = entry
        element.settled_at = None
        self._places[entry.task.id] = (element, place)

    def send_again(self, entry: Entry) -> None:
        """Have a task wait again, ahead of the others; one that the host has not offered yet is parked."""
        if entry.offered:
            self.waiting.add(entry, first=True)
        else:
            self.parked[entry.task.id] = entry
            self.counts["taken"] -= 1

    def close_job(self, job: Job) -> None:
        """Strike out a job that has no tasks and is over."""
        self.holders.difference_update(job.elements)
        self.jobs.pop(job.name, None)

    def elements(self) -> Iterable[Element]:
        """Return the elements of all jobs; safe while jobs come and go."""
        return [element for job in self.jobs.values() for element in job.elements]

    def notify(self) -> None:
        """Wake up whoever waits for something here to change."""
        self._change.set()
        self._change = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` is true; it is asked again after each change, so it must be cheap."""
        while not holds():
            await self._change.wait()
