"""Polling: asking the backend about jobs without a result, and what follows from its answers.

Run by the engine. When a job is over is decided in `tracking`; here its tasks get their outcome or
another job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from batchport.envelope import Envelope
from batchport.errors import EnvelopeError
from batchport.jobs import JobStatus
from batchport.tasks import Failure
from batchport.worker import verdicts
from batchport.worker.calls import Backoff, Calls
from batchport.worker.cancelling import Cancelling
from batchport.worker.ledger import Ledger
from batchport.worker.outcomes import Outcomes
from batchport.worker.results import Results
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry, Job, Rules, Verdict

__all__ = ["Polling"]

_log = logging.getLogger("batchport.worker")

_TRIES_TO_START = 3
"""How many jobs may die under a task before it starts; then it fails as they did."""
_END_S = 5.0
"""How long a leaving worker gives settled jobs to end by themselves."""


@dataclass(eq=False, kw_only=True)
class Polling:
    """Polls, every `every_s` seconds at the most and the least often, and judges after each poll."""

    ledger: Ledger
    storage: Storage
    calls: Calls
    outcomes: Outcomes
    results: Results
    cancelling: Cancelling
    rules: Rules
    every_s: tuple[float, float]
    retries: int

    async def watch(self) -> None:
        """Poll and judge while there are jobs; runs for ever."""
        (shortest, longest), backoff = self.every_s, Backoff(self.every_s[0])
        delay = shortest
        while True:
            await self.ledger.until(lambda: bool(self.ledger.jobs))
            asked = await self.cancelling.sent_within(delay)
            try:
                news = await self.poll()
            except Exception as error:  # noqa: BLE001 - a failed poll is not a failed job
                delay = backoff.next()
                _log.warning("a poll failed, no job is given up for it, next in %.0f s: %s", delay, error)
            else:
                backoff.reset()
                delay = shortest if news or asked else min(longest, delay * 1.5)
            await self.judge()

    async def poll(self, *, every_job: bool = False) -> bool:
        """Ask about all jobs that the backend must be asked about, and return whether there is news.

        Raises what the adapter raises, after all that can be asked has been asked.
        """
        now = time.monotonic()
        asked = {job.id: job for job in self.ledger.jobs.values() if job.id and (every_job or job.wants_poll(now))}
        ids, news, failed = list(asked), False, None
        size = self.calls.limits.poll_batch or len(ids) or 1
        for start in range(0, len(ids), size):
            some = ids[start : start + size]
            try:
                statuses = await self.calls.poll_jobs(some)
            except Exception as error:  # noqa: BLE001 - the other ids may well be answered
                failed = error
            else:
                news |= self._take_in({job_id: asked[job_id] for job_id in some}, statuses)
        if failed is not None:
            raise failed
        return news

    def _take_in(self, asked: Mapping[str, Job], statuses: Iterable[JobStatus]) -> bool:
        now, news, omitted = time.monotonic(), False, dict(asked)
        for status in statuses:
            job = asked.get(status.job_id)
            if job is None or status.name not in {None, job.name}:
                continue  # another job, maybe one under an id that the backend has used again
            omitted.pop(status.job_id, None)
            if job.saw(status, now):
                news = True
                if status.reason is not None and not status.state.is_final:
                    _log.warning("job %s can't start: %s; %s", job.name, status.reason.value, status.evidence)
        for job in omitted.values():
            job.was_omitted(now)
        return news

    async def judge(self) -> None:
        """Settle what is left of jobs that are over, after a last look for results."""
        jobs, now = self.ledger.jobs, time.monotonic()
        for job in jobs.values():
            if job.is_over:
                self.ledger.holders.discard(job)  # its place at the backend is free, whatever the grace brings
        if any(job.is_over or job.verdict(now, self.rules) for job in jobs.values()):
            try:
                await self.results.collect()
            except Exception as error:  # noqa: BLE001 - no verdict without a last look
                _log.warning("can't look for results before a verdict, will look again: %s", error)
                return
        for job in list(jobs.values()):
            if job.entries and (verdict := job.verdict(now, self.rules)):
                await self._end(job, verdict)
            if not job.entries and (job.is_over or job.omissions):
                self.outcomes.forget(job)
            elif job.wants_cancel(now):
                self.cancelling.want(job)
        await self.storage.tidy()
        self.ledger.notify()

    async def _end(self, job: Job, verdict: Verdict) -> None:
        """Give each remaining task of a job that is over its outcome, or another job."""
        if verdict is Verdict.BLOCKED:
            self.cancelling.want(job)
        await self._inspect(job)
        blamed = job.blamed(verdict)
        # From the last: each that goes back to wait goes to the head of the queue.
        for place, entry in reversed(list(job.entries.items())):
            if place not in job.entries:  # its result came while another task was settled
                continue
            if place not in blamed and not entry.cancelled and entry.unstarted + 1 < _TRIES_TO_START:
                entry.unstarted += 1
                await self._send_again(job, place, verdict)
                continue
            failure, output = await self._failure(job, place, entry, verdict)
            if failure.reason.retry_can_help and entry.attempts < self.retries:
                entry.attempts += 1
                await self._send_again(job, place, verdict)
            else:
                await self.outcomes.settle(job, place, failure=failure, output=output)

    async def _send_again(self, job: Job, place: int, verdict: Verdict) -> None:
        if verdict is Verdict.VANISHED:
            # The job may run on somewhere; its runner looks for this before it starts the task.
            key = self.storage.keys.stop(job.name, place)
            await self.storage.insist(f"write the stop marker {key}", self.storage.store.put, key, b"")
        if place in job.entries:
            self.ledger.waiting.add(self.ledger.take(job, place, time.monotonic()), first=True)

    async def _failure(self, job: Job, place: int, entry: Entry, verdict: Verdict) -> tuple[Failure, str]:
        """Return the failure of a task, and what it printed, by the best evidence there is."""
        if entry.cancelled:
            return verdicts.cancelled(entry.task.id), ""
        resources = entry.task.resources
        for key in job.evidence.get(place, []):
            data = await self.storage.insist(f"read the evidence {key}", self.storage.store.get, key)
            try:
                envelope = Envelope.from_bytes(data or b"", ("evidence",))
            except EnvelopeError as error:
                _log.warning("the evidence %s can't be read: %s", key, error)
            else:
                return verdicts.failure_of_evidence(job, resources, envelope), verdicts.output_of(envelope)
        return verdicts.failure_of_job(job, verdict, self.rules, resources, self.storage.store.url), ""

    async def _inspect(self, job: Job) -> None:
        """Add to the job's status what the adapter can tell of it now that it has ended badly."""
        assert job.id is not None
        try:
            more = await self.calls.inspect_job(job.id)
        except Exception as error:  # noqa: BLE001 - evidence is welcome, and not needed
            _log.warning("inspect_job of %s failed: %s", job.name, error)
            return
        if more is None or more.name not in {None, job.name}:
            return
        known = job.status or more
        lines = dict.fromkeys((*known.evidence.splitlines(), *more.evidence.splitlines()))
        job.status = replace(
            known,
            reason=known.reason or more.reason,
            exit_code=more.exit_code if known.exit_code is None else known.exit_code,
            evidence="\n".join(lines),
        )

    async def see_off(self) -> None:
        """Give settled jobs a moment to end, and cancel those that do not; called when the worker leaves."""
        deadline = time.monotonic() + _END_S
        while lingering := [job for job in self.ledger.jobs.values() if not job.entries and job.lingers]:
            try:
                await self.poll(every_job=True)
                if time.monotonic() > deadline:
                    _log.warning("cancelling %d jobs that live on after their last outcome", len(lingering))
                    await self.calls.cancel_jobs([job.id for job in lingering if job.id])
                    return
            except Exception as error:  # noqa: BLE001 - reported; what lingers then is the backend's to end
                _log.warning("could not see whether %d jobs have ended: %s", len(lingering), error)
                return
            if any(job.lingers for job in lingering):
                await asyncio.sleep(min(self.every_s[0], 0.5))
