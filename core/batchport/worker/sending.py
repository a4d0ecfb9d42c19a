"""Sending: waiting tasks become jobs, and every job is submitted once, whatever the answer looks like.

Run by the engine. Only here is `submit_job` called, and here each of its errors has its consequence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from batchport.errors import (
    BackendFullError,
    BackendUnusableError,
    RejectedJobError,
    TransientBackendError,
)
from batchport.jobs import JobSpec, Resources
from batchport.worker import naming, verdicts
from batchport.worker.blobs import SharedBlobs
from batchport.worker.calls import Backoff, Calls
from batchport.worker.ledger import Ledger
from batchport.worker.outcomes import Outcomes
from batchport.worker.payload import make_payload
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry, Job, Rules

__all__ = ["Plan", "Sending"]

_log = logging.getLogger("batchport.worker")

_AT_ONCE = 8
"""Jobs that are made ready and submitted at the same time: enough to hide the store behind the backend."""
_LINGER_S = 0.03
"""How long a pack that is not full waits for more tasks."""
_TRIES_TO_SUBMIT = 5
"""How often a submit may fail without a word that says why, with the job proven absent each time."""
_EXTRA_TIME_S = 60
"""What a job may run longer than its tasks together."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How tasks become jobs: the worker's options that say so."""

    max_jobs: int
    tasks_per_job: int
    python: str
    path: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class Sending:
    """Makes jobs of waiting tasks and submits them.

    `collect` is the last look for results; `spawn` runs something beside the loop.
    """

    ledger: Ledger
    storage: Storage
    calls: Calls
    blobs: SharedBlobs
    outcomes: Outcomes
    collect: Callable[[], Awaitable[None]]
    plan: Plan
    rules: Rules
    epoch: naming.Epoch
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    _serial: int = 0
    _pause_until: float = 0.0
    _backoff: Backoff = field(default_factory=Backoff)
    _again: deque[Job] = field(default_factory=deque)
    _senders: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def send(self) -> None:
        """Send whatever waits while there is room; runs for ever."""
        ledger, most = self.ledger, self.plan.tasks_per_job
        while True:
            await ledger.until(lambda: bool(self._again) or self._has_room())
            if most > 1 and not self._again and not ledger.waiting.next_is_full(most):
                await asyncio.sleep(_LINGER_S)
            await self._senders.acquire()
            job = self._next_job()
            if job is None:
                self._senders.release()
            else:
                self.spawn(self._send(job)).add_done_callback(lambda _: self._senders.release())
            ledger.notify()

    def _has_room(self) -> bool:
        return len(self.ledger.waiting) > 0 and len(self.ledger.holders) < self.plan.max_jobs

    def _next_job(self) -> Job | None:
        if self._again:
            return self._again.popleft()
        if not self._has_room():
            return None
        entries = self.ledger.waiting.pack(self.plan.tasks_per_job)
        return self.ledger.open_job(self._spec(entries), entries)

    def _spec(self, entries: Sequence[Entry]) -> JobSpec:
        self._serial += 1
        label = naming.label_of(entries[0].task.label)
        name = naming.job_name(label, self.epoch, self._serial, self.calls.limits.name_length)
        keys = self.storage.keys
        return JobSpec(
            name=name,
            label=label,
            command=(self.plan.python, "-m", "batchport.runner"),
            env={"BATCHPORT_STORE": self.storage.store.url, "BATCHPORT_WORKER": keys.worker, "BATCHPORT_JOB": name},
            resources=_for_pack(entries[0].task.resources, len(entries)),
        )

    async def _send(self, job: Job) -> None:
        """Have a job at the backend, or its tasks failed, or its ambiguous submit looked up elsewhere."""
        if self.storage.keys.manifest(job.name) not in job.left and not await self._prepare(job):
            return
        while not job.all_cancelled:
            await self._pause()
            try:
                job_id = await self.calls.submit_job(job.spec)
            except BackendFullError as error:
                await self._wait_for_room(error)
            except TransientBackendError as error:
                self._back_off(f"submit_job failed: {error}")
            except BackendUnusableError as error:
                self._back_off(f"the backend can't be used: {error}")
            except RejectedJobError as error:
                await self.outcomes.give_up(job, verdicts.rejected(job, error))
                return
            except Exception as error:  # noqa: BLE001 - whatever else it is, the job may have been submitted
                self.spawn(self._look_up(job, error))
                return
            else:
                await self._submitted(job, job_id)
                return
        await self.outcomes.give_up(job, None)

    async def _prepare(self, job: Job) -> bool:
        """Put all that the job needs into the store, its manifest last."""
        tasks = [entry.task for entry in job.entries.values()]
        try:
            small = await self.blobs.ready(tasks)
        except Exception as error:  # noqa: BLE001 - whatever a host's read raises
            what = f"The function or an argument of job {job.name}"
            await self.outcomes.give_up(job, verdicts.unreadable(what, error))
            return False
        inline_bytes = self.calls.limits.inline_bytes
        made = await self.storage.do(make_payload, job.name, tasks, small, self.plan.path, inline_bytes)
        if made.inline is not None:
            job.spec = replace(job.spec, env={**job.spec.env, "BATCHPORT_PAYLOAD": made.inline})
        key = self.storage.keys.manifest(job.name)
        job.left.add(key)
        await self.storage.insist(f"write the manifest {key}", self.storage.store.put, key, made.manifest)
        return True

    async def _submitted(self, job: Job, job_id: str) -> None:
        self._backoff.reset()
        job.id = job_id
        job.spec = replace(job.spec, env={})  # an inline payload is not needed any more, and may be large
        if job.entries:
            key = self.storage.keys.job_id(job.name)
            job.left.add(key)
            await self.storage.insist(f"note an id at {key}", self.storage.store.put, key, job_id.encode())
        if not job.entries:  # its results came before the answer, or while the id was noted
            self.outcomes.clean(job)
        self.ledger.notify()

    async def _look_up(self, job: Job, error: Exception) -> None:
        """Find out what became of an ambiguous submit before anything is sent again."""
        _log.warning("submit_job of %s had no clear answer, looking the job up by name: %s", job.name, error)
        for look in range(2):
            if look:
                await asyncio.sleep(self.rules.settle_s)
            try:
                ids = await self._ids_of(job)
            except NotImplementedError:
                await asyncio.sleep(self.rules.grace_s)
                await self.collect()
                await self.outcomes.give_up(job, verdicts.unanswered(job, error, self.rules.grace_s))
                return
            if ids:
                await self._cancel_twins(job, ids[1:])
                await self._submitted(job, ids[0])
                return
        job.failed_submits += 1
        if job.failed_submits >= _TRIES_TO_SUBMIT:
            await self.outcomes.give_up(job, verdicts.not_submitted(job, error))
            return
        self._back_off(f"{job.name} is not at the backend after all, and is sent again")
        self._again.append(job)
        self.ledger.notify()
        await self._watch_for_twins(job)

    async def _ids_of(self, job: Job) -> list[str]:
        """Ask for the ids of all jobs of this name until there is an answer, since nothing may be sent before."""
        backoff = Backoff()
        while True:
            try:
                found = await self.calls.find_jobs([job.name])
                return sorted({job_id for name, job_id in found if name == job.name})
            except NotImplementedError:
                raise
            except Exception as error:  # noqa: BLE001 - reported, and asked again
                delay = backoff.next()
                _log.warning("find_jobs failed, will ask again in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)

    async def _watch_for_twins(self, job: Job) -> None:
        """After a job was sent again, look once more whether the first one has turned up late."""
        await self.ledger.until(lambda: job.id is not None or not job.entries)
        await asyncio.sleep(self.rules.settle_s)
        await self._cancel_twins(job, [job_id for job_id in await self._ids_of(job) if job_id != job.id])

    async def _cancel_twins(self, job: Job, ids: Sequence[str]) -> None:
        if not ids:
            return
        _log.warning("there are %d jobs named %s; cancelling %s", len(ids) + 1, job.name, ", ".join(ids))
        try:
            await self.calls.cancel_jobs(ids)
        except Exception as error:  # noqa: BLE001 - the first result counts, whichever job it comes from
            _log.warning("could not cancel %s: %s", ", ".join(ids), error)

    async def _pause(self) -> None:
        # A loop, since another sender may have put it off meanwhile.
        while (left := self._pause_until - time.monotonic()) > 0:  # noqa: ASYNC110 - it is a time that is waited for
            await asyncio.sleep(left)

    def _back_off(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._pause_until:  # else another sender met the same trouble and has said so
            delay = self._backoff.next()
            self._pause_until = now + delay
            _log.warning("no job is submitted for %.0f s: %s", delay, why)

    async def _wait_for_room(self, error: BackendFullError) -> None:
        there = self.ledger.at_backend
        if there:
            _log.info("the backend is full, waiting for one of %d jobs to end: %s", there, error)
            await self.ledger.until(lambda: self.ledger.at_backend < there)
        else:
            self._back_off(f"the backend says that it is full, and none of this worker's jobs is there: {error}")


def _for_pack(one: Resources, tasks: int) -> Resources:
    """Return what a job of that many tasks, one at a time, asks for: each task's time, and a minute more."""
    if one.time_limit_s is None:
        return one
    return replace(one, time_limit_s=one.time_limit_s * tasks + _EXTRA_TIME_S)
