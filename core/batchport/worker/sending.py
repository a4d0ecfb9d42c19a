"""Sending: waiting tasks become jobs, and every job is submitted once, whatever the answer looks like.

Run by the engine. Only here is `submit_job` called, and here each of its errors has its consequence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from batchport.errors import (
    BackendFullError,
    BackendUnusableError,
    RejectedJobError,
    StoreError,
    SupersededError,
    TransientBackendError,
)
from batchport.jobs import JobSpec, Resources
from batchport.worker import naming, verdicts
from batchport.worker.blobs import SharedBlobs
from batchport.worker.calls import Backoff, Calls
from batchport.worker.fencing import Fence
from batchport.worker.ledger import Ledger
from batchport.worker.lookup import Lookup
from batchport.worker.outcomes import Outcomes
from batchport.worker.payload import make_payload
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry, Job, Rules

__all__ = ["Plan", "Sending"]

_log = logging.getLogger("batchport.worker")

_AT_ONCE = 8
"""Jobs that are made ready and submitted at the same time: enough to hide the store behind the backend."""
_LINGER_S = 0.03
"""How long a job that is not full waits for more tasks; again and again while they come."""
_LINGER_AT_MOST_S = 0.3
_TOGETHER = 16
"""Tasks whose jobs are made ready in one go, so that short ones do not cost a change of threads each."""
_TRIES_TO_SUBMIT = 5
"""How often a submit may fail without a word that says why, with the job proven absent each time."""
_NO_ENV: Mapping[str, str] = {}
_EXTRA_TIME_S = 60
"""What an element may run longer than its tasks together."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How tasks become jobs: the worker's options that say so."""

    max_jobs: int
    tasks_per_job: int
    width: int
    command: tuple[str, ...]
    setup: str
    fields: dict[str, Any]
    """What every payload of this worker says."""


@dataclass(eq=False, kw_only=True)
class Sending:
    """Makes jobs of waiting tasks and submits them.

    `spawn` runs something beside the loop.
    """

    ledger: Ledger
    storage: Storage
    calls: Calls
    lookup: Lookup
    fence: Fence
    blobs: SharedBlobs
    outcomes: Outcomes
    last_look: Callable[[], Awaitable[None]]
    plan: Plan
    rules: Rules
    epoch: naming.Epoch
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    _serial: int = 0
    _ceiling: int | None = None
    """How many elements may be at the backend, by its own word that it is full; None while it gave none."""
    _pause_until: float = 0.0
    _backoff: Backoff = field(default_factory=Backoff)
    _again: deque[Job] = field(default_factory=deque)
    _unnoted: dict[str, bytes] = field(default_factory=dict)
    _noting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _senders: set[asyncio.Task[None]] = field(default_factory=set)

    async def send(self) -> None:
        """Send whatever waits while there is room; runs for ever."""
        ledger = self.ledger
        while True:
            await ledger.until(lambda: bool(self._again) or self._room() > 0)
            if not self._again:
                await self._linger()
            await ledger.until(lambda: len(self._senders) < _AT_ONCE)
            if jobs := self._next_jobs():
                self._senders.add(sender := self.spawn(self._send_all(jobs)))
                sender.add_done_callback(self._is_done)
            ledger.notify()

    async def _linger(self) -> None:
        """Wait a moment for more tasks or places, again while they come, unless the next job is as large as may be."""
        waiting, began = self.ledger.waiting, time.monotonic()
        most = self.calls.limits.array_size * self.plan.tasks_per_job
        while most > 1 and time.monotonic() - began < _LINGER_AT_MOST_S:
            before = len(waiting), self._free
            if waiting.next_is_full(most) and self._free >= self.calls.limits.array_size:
                break
            await asyncio.sleep(_LINGER_S)
            if (len(waiting), self._free) == before:
                break

    def _is_done(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        self.ledger.notify()

    def _room(self) -> int:
        """Return how many more elements there could be, by the tasks that wait and the places that are free."""
        return min(len(self.ledger.waiting), self._free)

    @property
    def _free(self) -> int:
        return min(self.plan.max_jobs, self._ceiling or self.plan.max_jobs) - len(self.ledger.holders)

    def _next_jobs(self) -> list[Job]:
        """Return as many jobs as leave something for the other senders, together no more than are worth it."""
        if self._again:
            return [self._again.popleft()]
        jobs: list[Job] = []
        most = min(_TOGETHER, -(-self._room() // (_AT_ONCE - len(self._senders))))
        while sum(len(job.elements) for job in jobs) * self.plan.tasks_per_job < most and (job := self._next_job()):
            jobs.append(job)
        return jobs

    def _next_job(self) -> Job | None:
        elements = min(self._room(), self.calls.limits.array_size)
        if elements < 1:
            return None
        entries = self.ledger.waiting.pack(self.plan.tasks_per_job * elements)
        return self.ledger.open_job(self._spec(entries), entries, self.plan.tasks_per_job)

    def _spec(self, entries: Sequence[Entry]) -> JobSpec:
        self._serial += 1
        limits, keys, plan = self.calls.limits, self.storage.keys, self.plan
        label = naming.label_of(entries[0].task.label)
        name = naming.job_name(label, self.epoch, self._serial, limits.name_length)
        env = {"BATCHPORT_STORE": self.storage.store.url, "BATCHPORT_WORKER": keys.worker, "BATCHPORT_JOB": name}
        size = -(-len(entries) // plan.tasks_per_job)
        if size > 1:
            env["BATCHPORT_INDEX"] = f"{limits.array_index}:{limits.array_base}"
        resources = _for_element(entries[0].task.resources, min(plan.tasks_per_job, len(entries)), plan.width)
        return JobSpec(name, label, plan.command, env, resources, size, plan.setup)

    async def _send_all(self, jobs: Sequence[Job]) -> None:
        is_made = self.storage.keys.manifest(jobs[0].name) in jobs[0].left
        for job in jobs if is_made else await self._prepare(jobs):
            await self._send(job)

    async def _send(self, job: Job) -> None:
        """Have a job at the backend, or its tasks failed, or its ambiguous submit looked up elsewhere."""
        while not job.all_cancelled:
            await self._pause()
            try:
                job_id = await self.calls.submit_job(job.spec, self.fence.check)
            except SupersededError:
                raise
            except BackendFullError as error:
                if await self._is_too_large(job, error):
                    return
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
                self._grow()
                await self.submitted(job, job_id)
                return
        await self.outcomes.give_up(job, None)

    async def _prepare(self, jobs: Sequence[Job]) -> list[Job]:
        """Put all that the jobs need into the store, and return those that have it; the tasks of others failed."""
        small: dict[Job, Mapping[str, bytes]] = {}
        keys = self.storage.keys
        for job in jobs:
            try:
                small[job] = await self.blobs.ready(job)
            except Exception as error:  # noqa: BLE001 - whatever a host's read raises
                await self.fence.check()  # a newer start removes what waited for this one
                what = f"The function or an argument of job {job.name}"
                await self.outcomes.give_up(job, verdicts.unreadable(what, error))
                continue
            job.left.add(keys.manifest(job.name))
            if job.spec.size > 1:
                job.left.add(keys.array(job.name))
        try:
            inline = await self.storage.do(self._write, small)
        except StoreError:
            if (later := await self._written_later(small)) is None:
                return []
            inline = later
        self.fence.written()
        for job, payload in zip(small, inline, strict=True):
            if payload is not None:
                job.spec = replace(job.spec, env={**job.spec.env, "BATCHPORT_PAYLOAD": payload})
        return list(small)

    async def _written_later(self, small: Mapping[Job, Mapping[str, bytes]]) -> list[str | None] | None:
        """Insist on what `_write` could not do, as long as anybody wants one of the jobs; else cancel their tasks."""
        what = f"write the manifests of {len(small)} jobs at {self.storage.keys.manifests}"
        writing = asyncio.ensure_future(self.storage.insist(what, self._write, small))
        given_up = asyncio.ensure_future(self.ledger.until(lambda: all(job.all_cancelled for job in small)))
        try:
            await asyncio.wait((writing, given_up), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                return await writing
            writing.cancel()  # first: what is removed must not be written once there is room
            for job in small:
                await self.outcomes.give_up(job, None)
            return None
        finally:
            writing.cancel()
            given_up.cancel()

    def _write(self, small: Mapping[Job, Mapping[str, bytes]]) -> list[str | None]:
        """Write what each job needs, its manifest last, and return the payloads that travel inline; in a thread."""
        store, keys, inline = self.storage.store, self.storage.keys, []
        for job, blobs in small.items():
            made = make_payload(job, blobs, self.plan.fields, self.calls.limits.inline_bytes)
            if made.array is not None:
                store.put(keys.array(job.name), made.array)
            store.put(keys.manifest(job.name), made.manifest)
            inline.append(made.inline)
        return inline

    async def submitted(self, job: Job, job_id: str) -> None:
        """Take in the id of a job that is at the backend, and note it; also called by `adoption`."""
        self._backoff.reset()
        self.has_id(job, job_id)
        job.spec = replace(job.spec, env=_NO_ENV)  # an inline payload is not needed any more, and may be large
        if not job.is_settled:
            job.left.add(key := self.storage.keys.job_id(job.name))
            await self._note(key, job_id)
        if job.is_settled:  # its results came before the answer, or while the id was noted
            self.outcomes.clean(job)
            self.ledger.rest(job)
        self.ledger.notify()

    async def _note(self, key: str, job_id: str) -> None:
        """Write down the id of a job, and with it all ids that came while earlier ones were written."""
        self._unnoted[key] = job_id.encode()
        async with self._noting:
            if key in self._unnoted:  # else another sender has written it with its own
                ids, self._unnoted = self._unnoted, {}
                await self.storage.insist(f"note {len(ids)} ids, such as {key}", self.storage.put_all, ids)

    def has_id(self, job: Job, job_id: str) -> None:
        """Give the job and its elements their ids; also called by `adoption`."""
        job.id = job_id
        for element in job.elements:
            element.id = self.calls.element_id(job_id, element.index) if job.spec.size > 1 else job_id

    async def _look_up(self, job: Job, error: Exception) -> None:
        """Find out what became of an ambiguous submit before anything is sent again."""
        _log.warning("submit_job of %s had no clear answer, looking the job up by name: %s", job.name, error)
        for look in range(2):
            if look:
                await asyncio.sleep(self.rules.settle_s)
            try:
                ids = (await self.lookup.ids([job.name]))[job.name]
            except NotImplementedError:
                await asyncio.sleep(self.rules.grace_s)
                await self.last_look()
                await self.fence.check()
                await self.outcomes.give_up(job, verdicts.unanswered(job, error, self.rules.grace_s))
                return
            if ids:
                await self.lookup.cancel_twins(job.name, ids[1:])
                await self.submitted(job, ids[0])
                return
        job.failed_submits += 1
        if job.failed_submits >= _TRIES_TO_SUBMIT:
            await self.fence.check()
            await self.outcomes.give_up(job, verdicts.not_submitted(job, error))
            return
        self._back_off(f"{job.name} is not at the backend after all, and is sent again")
        self._again.append(job)
        self.ledger.notify()
        await self._watch_for_twins(job)

    async def _watch_for_twins(self, job: Job) -> None:
        """After a job was sent again, look once more whether the first one has turned up late."""
        await self.ledger.until(lambda: job.id is not None or job.is_settled)
        await asyncio.sleep(self.rules.settle_s)
        ids = (await self.lookup.ids([job.name]))[job.name]
        await self.lookup.cancel_twins(job.name, [job_id for job_id in ids if job_id != job.id])

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

    def _grow(self) -> None:
        """Try a little more after the backend took all that its last word allowed: others may have left it room."""
        if self._ceiling is not None and self._free <= 0:
            more = self._ceiling + max(1, self._ceiling // 8)
            self._ceiling = more if more < self.plan.max_jobs else None

    async def _is_too_large(self, job: Job, error: BackendFullError) -> bool:
        """Wait for room at a full backend; return True if the job was taken apart, to be offered as smaller ones."""
        there = self.ledger.at_backend
        self._ceiling = max(1, there + job.spec.size // 2)
        if job.spec.size > 1:
            _log.info("the backend is full; at most %d elements are offered next: %s", job.spec.size // 2, error)
            await self.outcomes.send_again(job)
        if there:
            _log.info("the backend is full, waiting for one of %d elements to end: %s", there, error)
            # Not for ever: jobs whose results are here may be there for a while longer, and others' jobs end too.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next()):
                    await self.ledger.until(lambda: self.ledger.at_backend < there)
        elif job.spec.size == 1:
            self._back_off(f"the backend says that it is full, and none of this worker's jobs is there: {error}")
        return job.spec.size > 1


def _for_element(one: Resources, tasks: int, width: int) -> Resources:
    """Return what an element asks for that runs so many tasks, `width` at a time: time for all, and a minute more."""
    rounds = -(-tasks // width)
    if width == 1 and one.time_limit_s is None:
        return one
    return replace(
        one,
        cpus=one.cpus * width,
        memory_mib=one.memory_mib and one.memory_mib * width,
        gpus=one.gpus * width,
        time_limit_s=one.time_limit_s and one.time_limit_s * rounds + _EXTRA_TIME_S,
    )
