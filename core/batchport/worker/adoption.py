"""Adoption: a worker that starts again under its name takes over the jobs of its earlier start.

Run by the engine before its loops. The manifests, the ids noted after submission, and find_jobs for the
gap between the two are the whole journal. The tasks of an adopted job are known by their ids alone until
the host offers them again; on request their outcomes wait for that, in the store, so that a host that could do nothing
with them does not lose them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchport.errors import EnvelopeError
from batchport.worker import naming, verdicts
from batchport.worker.blobs import SharedBlobs
from batchport.worker.ledger import Ledger
from batchport.worker.lookup import Lookup
from batchport.worker.outcomes import Outcomes
from batchport.worker.payload import read_manifest
from batchport.worker.sending import Sending
from batchport.worker.storage import Storage
from batchport.worker.tracking import Job, Rules

__all__ = ["Adoption"]

_log = logging.getLogger("batchport.worker")
_READ_AT_ONCE = 64


@dataclass(eq=False, kw_only=True)
class Adoption:
    """Takes over what an earlier start left. `hold` says whether outcomes wait."""

    ledger: Ledger
    storage: Storage
    lookup: Lookup
    blobs: SharedBlobs
    outcomes: Outcomes
    sending: Sending
    last_look: Callable[[], Awaitable[None]]
    rules: Rules
    hold: bool
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    _unreadable: set[str] = field(default_factory=set)

    async def adopt(self) -> None:
        """Enter the jobs of earlier starts, and remove what belongs to none. Raises StoreError."""
        store, keys = self.storage.store, self.storage.keys
        noted = set(await self.storage.do(store.names, keys.ids))
        # The newest first: a task that was sent again is in two of them.
        names = sorted(await self.storage.do(store.names, keys.manifests), key=naming.age_of, reverse=True)
        for start in range(0, len(names), _READ_AT_ONCE):
            some = names[start : start + _READ_AT_ONCE]
            manifests = await self.storage.get_all(map(keys.manifest, some))
            ids = await self.storage.get_all(keys.job_id(name) for name in some if name in noted)
            known = dict(zip((name for name in some if name in noted), ids, strict=True))
            for name, data in zip(some, manifests, strict=True):
                if data is not None:
                    self._enter(name, data, known.get(name))
        await self._remove_strays(noted)
        unknown = [job for job in self.ledger.jobs.values() if job.id is None]
        if self.ledger.jobs:
            _log.info("adopted %d jobs of an earlier start, %d without an id", len(self.ledger.jobs), len(unknown))
        if unknown:
            self.spawn(self._look_up(unknown))

    def _enter(self, name: str, data: bytes, job_id: bytes | None) -> None:
        keys = self.storage.keys
        try:
            spec, per_element, entries = read_manifest(data)
        except (EnvelopeError, KeyError, TypeError, ValueError) as error:
            _log.warning("the manifest of job %s can't be read, and is left alone: %r", name, error)
            self._unreadable.add(name)
            return
        job = self.ledger.open_job(spec, entries, per_element)
        job.adopted = True
        job.left |= {keys.manifest(name), keys.job_id(name)}
        if spec.size > 1:
            job.left.add(keys.array(name))
        for entry in job.entries:
            self.blobs.adopt(entry)
            entry.held = self.hold
            self.ledger.counts["taken"] += not self.hold
        if job_id is not None:
            self.sending.has_id(job, job_id.decode())

    async def _remove_strays(self, noted: set[str]) -> None:
        """Remove what jobs without a manifest left: the manifest goes first, and the rest may have stayed."""
        store, keys, known = self.storage.store, self.storage.keys, self.ledger.jobs.keys() | self._unreadable
        self.storage.throw_away(keys.job_id(name) for name in noted if name not in known)
        for folder in (keys.out, keys.stops, keys.arrays):
            names = await self.storage.do(store.names, folder)
            self.storage.throw_away(f"{folder}/{name}" for name in names if name.partition(".")[0] not in known)
        await self.blobs.remove_strays()
        await self.storage.tidy()

    async def _look_up(self, jobs: Sequence[Job]) -> None:
        """Find out which of the jobs without a noted id were submitted."""
        for look in range(2):
            if look:
                await asyncio.sleep(self.rules.settle_s)
            try:
                found = await self.lookup.ids([job.name for job in jobs])
            except NotImplementedError:
                await self._wait_for_results(jobs)
                return
            for job in jobs:
                if ids := found[job.name]:
                    await self.lookup.cancel_twins(job.name, ids[1:])
                    await self.sending.submitted(job, ids[0])
            jobs = [job for job in jobs if job.id is None]
            if not jobs:
                return
        for job in jobs:  # never submitted: whoever offers its tasks again has them sent
            await self.outcomes.send_again(job)

    async def _wait_for_results(self, jobs: Sequence[Job]) -> None:
        """Wait out the grace where the backend can't be asked by name, and give up in words."""
        await asyncio.sleep(self.rules.grace_s)
        for job in jobs:
            self.spawn(self._give_up(job))

    async def _give_up(self, job: Job) -> None:
        """Have each task of a job fail that has no result, once it is not held."""
        why = "The worker ended between making the job and noting its id."
        failure = verdicts.unanswered(job, why, self.rules.grace_s)
        while job.entries:
            await self.ledger.until(lambda: not job.entries or any(not entry.held for entry in job.entries))
            free = [
                (element, place)
                for element in job.elements
                for place, entry in element.entries.items()
                if not entry.held
            ]
            await self.last_look()
            for element, place in free:
                if place in element.entries:  # else its result was there
                    await self.outcomes.settle(element, place, failure=failure)
        await self.ledger.until(lambda: job.is_settled)
        await self.outcomes.give_up(job, failure)
