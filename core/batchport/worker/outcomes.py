"""Outcomes: each task gets exactly one, and what its job has in the store goes with the last.

Called by `results` for what runners left, by `polling` for jobs that are over, by `sending` for jobs that
never came to be, and by the engine for tasks that are cancelled while they wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from batchport.tasks import Failure, Outcome
from batchport.worker import verdicts
from batchport.worker.blobs import SharedBlobs
from batchport.worker.calls import Backoff
from batchport.worker.ledger import Ledger
from batchport.worker.storage import Storage
from batchport.worker.tracking import Element, Entry, Job

__all__ = ["Outcomes"]

_log = logging.getLogger("batchport.worker")


class Outcomes:
    """Delivers outcomes to the host, and lets go of what the task held."""

    def __init__(
        self, ledger: Ledger, storage: Storage, blobs: SharedBlobs, deliver: Callable[[Outcome], Awaitable[None]]
    ) -> None:
        self._ledger, self._storage, self._blobs, self._deliver = ledger, storage, blobs, deliver

    async def settle(
        self,
        element: Element,
        place: int,
        *,
        result: bytes | None = None,
        failure: Failure | None = None,
        output: str = "",
    ) -> None:
        """Give a task of a job its outcome."""
        job = element.job
        job.delivering += 1  # until the host has it, what is in the store stays, for the next start to find
        entry = self._ledger.take(element, place, time.monotonic())
        entry.attempts += 1
        try:
            await self.conclude(entry, result=result, failure=failure, output=output)
        except asyncio.CancelledError:
            # The worker leaves while the host takes its time. Counted as settled, it would be cleaned up, and lost.
            self._ledger.put_back(element, place, entry)
            raise
        finally:
            job.delivering -= 1
        if job.is_settled:
            self._ledger.rest(job)
            self.clean(job)

    async def conclude(
        self, entry: Entry, *, result: bytes | None = None, failure: Failure | None = None, output: str = ""
    ) -> None:
        """Deliver the outcome of a task that is in no job any more; insist until the host takes it."""
        task, backoff = entry.task, Backoff()
        outcome = Outcome(task.id, result, failure, max(entry.attempts, 1), output)
        while True:
            try:
                await self._deliver(outcome)
                break
            except Exception:  # noqa: BLE001 - whatever it is, the outcome must not be lost
                _log.exception("the host did not take the outcome of task %s, will offer it again", task.id)
                await asyncio.sleep(backoff.next())
        await self._blobs.let_go(entry)
        self._ledger.counts["done" if failure is None else "failed"] += 1  # what `drain` waits for, so it comes last
        self._ledger.notify()

    async def send_again(self, job: Job) -> None:
        """Have the tasks of a job that never came to be wait again, but for those that nobody wants any more."""
        for element in reversed(job.elements):
            for place, entry in reversed(list(element.entries.items())):
                if place not in element.entries:  # it got its outcome while another was settled
                    continue
                if entry.cancelled:  # its stop marker is for this job alone
                    await self.settle(element, place, failure=verdicts.cancelled(entry.task.id))
                else:
                    self._ledger.send_again(self._ledger.take(element, place, time.monotonic()))
        self.forget(job)
        await self._storage.tidy()
        self._ledger.notify()

    async def give_up(self, job: Job, failure: Failure | None) -> None:
        """End a job that is not at the backend; without a failure its tasks were cancelled."""
        for element in job.elements:
            for place, entry in list(element.entries.items()):
                if place in element.entries:  # else its result came meanwhile
                    await self.settle(element, place, failure=failure or verdicts.cancelled(entry.task.id))
        self.forget(job)
        await self._storage.tidy()

    def clean(self, job: Job) -> None:
        """Throw away what a settled job has in the store, unless its submit is under way and may need it."""
        if job.id is not None:
            self._throw_away(job)

    def _throw_away(self, job: Job) -> None:
        # The manifest first: whoever starts after it is gone knows of no job, and not of one without results.
        manifest = self._storage.keys.manifest(job.name)
        self._storage.throw_away(sorted(job.left, key=lambda key: key != manifest))
        job.left = set()

    def forget(self, job: Job) -> None:
        """Strike out a settled job that is over, and throw away all that it left."""
        self._throw_away(job)
        self._ledger.close_job(job)
