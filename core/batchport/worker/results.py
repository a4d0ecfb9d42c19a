"""Results: one listing of what runners left, then an outcome for every task whose answer is there.

Called by the engine's loop every few tenths of a second, and by `polling` for a last look before any
verdict, since a result beats the backend's word.
"""

from __future__ import annotations

import asyncio
import logging

from batchport.envelope import Envelope
from batchport.errors import EnvelopeError, StoreError
from batchport.store import OutKey
from batchport.worker import verdicts
from batchport.worker.calls import Backoff
from batchport.worker.fencing import Fence
from batchport.worker.ledger import Ledger
from batchport.worker.outcomes import Outcomes
from batchport.worker.storage import Storage
from batchport.worker.tracking import Element, Job

__all__ = ["Results"]

_log = logging.getLogger("batchport.worker")
_READ_AT_ONCE = 32
"""How many results are in memory at a time."""
_LONGEST_S = 15
"""What a store that is back may have to wait for the next look."""


class Results:
    """Sees what runners have left in the store."""

    def __init__(self, ledger: Ledger, storage: Storage, outcomes: Outcomes, fence: Fence, every_s: float) -> None:
        self._ledger, self._storage, self._outcomes = ledger, storage, outcomes
        self._fence, self._every_s = fence, every_s
        self._looking = asyncio.Lock()

    async def watch(self) -> None:
        """Look again and again while any job may bring a result; runs for ever."""
        backoff = Backoff(5 * self._every_s, _LONGEST_S)
        while True:
            await self._ledger.until(lambda: bool(self._ledger.holders))
            counts = self._ledger.counts
            before = counts["done"] + counts["failed"]
            try:
                await self.collect()
                backoff.reset()
            except StoreError as error:
                delay = backoff.next()
                _log.warning("can't look for results, will look again in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
            # Sooner while results come in: each may make room for a task that waits.
            has_news = counts["done"] + counts["failed"] > before
            await asyncio.sleep(self._every_s / 4 if has_news else self._every_s)

    async def collect(self) -> None:
        """List what runners have left, once, and settle each task whose answer is there. Raises StoreError."""
        async with self._looking:
            answers: list[tuple[Element, OutKey]] = []
            stopped: list[tuple[Element, OutKey]] = []
            for name in await self._storage.do(self._storage.store.names, self._storage.keys.out):
                out = OutKey.parse(name)
                if out is not None and (job := self._ledger.jobs.get(out.job)) is not None:
                    self._note(job, out, answers, stopped)
            for element, out in stopped:
                if (entry := element.entries.get(out.place)) is not None:
                    await self._fence.check()
                    await self._outcomes.settle(element, out.place, failure=verdicts.cancelled(entry.task.id))
            for start in range(0, len(answers), _READ_AT_ONCE):
                some = answers[start : start + _READ_AT_ONCE]
                found = await self._storage.get_all(self._storage.keys.left(out) for _, out in some)
                for (element, out), data in zip(some, found, strict=True):
                    if data is not None and out.place in element.entries:
                        await self._fence.check()  # each time, for a host may take its time over each
                        await self._take(element, out.place, data)
            if answers or stopped:
                await self._fence.check()  # what is removed must not be another start's
            await self._storage.tidy()

    async def last_look(self) -> None:
        """Collect before a verdict that nothing else waits for; insist until the store can be read."""
        backoff = Backoff(5 * self._every_s, _LONGEST_S)
        while True:
            try:
                return await self.collect()
            except StoreError as error:
                delay = backoff.next()
                _log.warning("can't look for results before a verdict, will look again in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)

    def _note(
        self, job: Job, out: OutKey, answers: list[tuple[Element, OutKey]], stopped: list[tuple[Element, OutKey]]
    ) -> None:
        """Remember an object that belongs to a job, and whose answer it holds."""
        key = self._storage.keys.left(out)
        is_new = key not in job.left
        job.left.add(key)
        if out.kind == "second" and is_new:
            self._ledger.counts["second_runs"] += 1
            _log.warning("job %s ran its task %d a second time; the first result counts", job.name, out.place)
        element = job.element_of(out.place)
        if element is None or (entry := element.entries.get(out.place)) is None:
            return
        if out.kind == "result" and entry.held:
            entry.answered = True
        elif out.kind == "result":
            answers.append((element, out))
        elif out.kind == "stopped" and entry.cancelled:
            stopped.append((element, out))
        elif out.kind == "evidence" and is_new:
            element.evidence.setdefault(out.place, []).append(key)
            self._ledger.poll_wanted.set()  # a task died, and its job is about to end

    async def _take(self, element: Element, place: int, data: bytes) -> None:
        try:
            envelope = Envelope.from_bytes(data, ("result", "exception"))
        except EnvelopeError as error:
            what = f"The result of task {element.entries[place].task.id}"
            await self._outcomes.settle(element, place, failure=verdicts.unreadable(what, error))
            return
        output = verdicts.output_of(envelope)
        if envelope.kind == "result":
            await self._outcomes.settle(element, place, result=envelope.parts[0], output=output)
        else:
            await self._outcomes.settle(element, place, failure=verdicts.failure_of_exception(envelope), output=output)
