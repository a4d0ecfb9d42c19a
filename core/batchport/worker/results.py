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
from batchport.worker.ledger import Ledger
from batchport.worker.outcomes import Outcomes
from batchport.worker.storage import Storage
from batchport.worker.tracking import Job

__all__ = ["Results"]

_log = logging.getLogger("batchport.worker")
_READ_AT_ONCE = 32
"""How many results are in memory at a time."""


class Results:
    """Sees what runners have left in the store."""

    def __init__(self, ledger: Ledger, storage: Storage, outcomes: Outcomes, every_s: float) -> None:
        self._ledger, self._storage, self._outcomes, self._every_s = ledger, storage, outcomes, every_s
        self._looking = asyncio.Lock()

    async def watch(self) -> None:
        """Look again and again while any job may bring a result; runs for ever."""
        while True:
            await self._ledger.until(lambda: bool(self._ledger.holders))
            try:
                await self.collect()
            except StoreError as error:
                _log.warning("can't look for results, will look again: %s", error)
                await asyncio.sleep(5 * self._every_s)
            await asyncio.sleep(self._every_s)

    async def collect(self) -> None:
        """List what runners have left, once, and settle each task whose answer is there. Raises StoreError."""
        async with self._looking:
            answers = []
            for name in await self._storage.do(self._storage.store.names, self._storage.keys.out):
                out = OutKey.parse(name)
                if out is not None and (job := self._ledger.jobs.get(out.job)) is not None:
                    answers += await self._note(job, out)
            for start in range(0, len(answers), _READ_AT_ONCE):
                some = answers[start : start + _READ_AT_ONCE]
                found = await self._storage.get_all(self._storage.keys.left(out) for _, out in some)
                for (job, out), data in zip(some, found, strict=True):
                    if data is not None and out.place in job.entries:
                        await self._take(job, out.place, data)
            await self._storage.tidy()

    async def _note(self, job: Job, out: OutKey) -> list[tuple[Job, OutKey]]:
        """Remember an object that belongs to a job, and return it if it holds the answer of a task."""
        key = self._storage.keys.left(out)
        is_new = key not in job.left
        job.left.add(key)
        if out.kind == "second" and is_new:
            self._ledger.counts["second_runs"] += 1
            _log.warning("job %s ran its task %d a second time; the first result counts", job.name, out.place)
        entry = job.entries.get(out.place)
        if entry is None:
            return []
        if out.kind == "result":
            return [(job, out)]
        if out.kind == "stopped" and entry.cancelled:
            await self._outcomes.settle(job, out.place, failure=verdicts.cancelled(entry.task.id))
        elif out.kind == "evidence" and is_new:
            job.evidence.setdefault(out.place, []).append(key)
        return []

    async def _take(self, job: Job, place: int, data: bytes) -> None:
        try:
            envelope = Envelope.from_bytes(data, ("result", "exception"))
        except EnvelopeError as error:
            what = f"The result of task {job.entries[place].task.id}"
            await self._outcomes.settle(job, place, failure=verdicts.unreadable(what, error))
            return
        output = verdicts.output_of(envelope)
        if envelope.kind == "result":
            await self._outcomes.settle(job, place, result=envelope.parts[0], output=output)
        else:
            await self._outcomes.settle(job, place, failure=verdicts.failure_of_exception(envelope), output=output)
