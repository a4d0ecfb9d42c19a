"""Cancelling: jobs that nobody wants any more are ended at the backend, many in one call where it can.

Run by the engine; asked by it when a host cancels, and by `polling` for jobs that can't start or that
live on after their last outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time

from batchport.worker.calls import Backoff, Calls
from batchport.worker.ledger import Ledger
from batchport.worker.tracking import Job

__all__ = ["Cancelling"]

_log = logging.getLogger("batchport.worker")


class Cancelling:
    """Sends cancels until they are accepted; whether the job then ends is for the next poll to see."""

    def __init__(self, ledger: Ledger, calls: Calls) -> None:
        self._ledger, self._calls = ledger, calls
        self._wanted: set[Job] = set()
        self._sent = asyncio.Event()

    def want(self, job: Job) -> None:
        """Have a job cancelled, as soon as its id is known."""
        job.cancel_wanted = True
        self._wanted.add(job)
        self._ledger.notify()

    async def sent_within(self, seconds: float) -> bool:
        """Wait until a cancel was accepted, at most so long; return whether one was."""
        try:
            async with asyncio.timeout(seconds):
                await self._sent.wait()
        except TimeoutError:
            return False
        self._sent.clear()
        return True

    async def send(self) -> None:
        """Send what is wanted; runs for ever."""
        backoff = Backoff()
        while True:
            await self._ledger.until(lambda: any(job.id for job in self._wanted))
            jobs = [job for job in self._wanted if job.id]
            try:
                await self._calls.cancel_jobs([job.id for job in jobs if job.id and not job.is_over])
            except Exception as error:  # noqa: BLE001 - reported, and asked again
                delay = backoff.next()
                _log.warning("a cancel failed, next try in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
                continue
            backoff.reset()
            self._wanted.difference_update(jobs)
            for job in jobs:
                job.cancel_sent_at = time.monotonic()
            self._sent.set()
