"""Cancelling: jobs that nobody wants any more are ended at the backend, many in one call where it can.

Run by the engine; asked by it when a host cancels, and by `polling` for jobs that can't start or that
live on after their last outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from batchport.worker.calls import Backoff, Calls
from batchport.worker.ledger import Ledger
from batchport.worker.tracking import Element

__all__ = ["Cancelling"]

_log = logging.getLogger("batchport.worker")


class Cancelling:
    """Sends cancels until they are accepted; whether the job then ends is for the next poll to see."""

    def __init__(self, ledger: Ledger, calls: Calls) -> None:
        self._ledger, self._calls = ledger, calls
        self._wanted: set[Element] = set()

    def want(self, element: Element) -> None:
        """Have an element ended, as soon as its id is known."""
        element.cancel_wanted = True
        self._wanted.add(element)
        self._ledger.notify()

    async def send(self) -> None:
        """Send what is wanted; runs for ever."""
        backoff = Backoff()
        while True:
            await self._ledger.until(lambda: any(map(_can_be_cancelled, self._wanted)))
            elements = list(filter(_can_be_cancelled, self._wanted))
            try:
                await self._calls.cancel_jobs(self._ids(elements))
            except Exception as error:  # noqa: BLE001 - reported, and asked again
                delay = backoff.next()
                _log.warning("a cancel failed, next try in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
                continue
            backoff.reset()
            self._wanted.difference_update(elements)
            for element in elements:
                element.cancel_sent_at = time.monotonic()
            self._ledger.poll_wanted.set()

    def _ids(self, elements: Iterable[Element]) -> list[str]:
        """Return what to cancel: an array whole if none of it is wanted, else its elements where that can be."""
        ids: dict[str, None] = {}
        for element in elements:
            job = element.job
            if element.is_over or element.id is None or job.id is None:
                continue
            if all(each.cancel_wanted or each.is_over or not each.entries for each in job.elements):
                ids[job.id] = None
            elif self._calls.limits.element_cancel:
                ids[element.id] = None
        return list(ids)


def _can_be_cancelled(element: Element) -> bool:
    """Return whether its id is known and, by the last answer, its own: a backend may give it to another job."""
    return element.id is not None and element.omissions == 0
