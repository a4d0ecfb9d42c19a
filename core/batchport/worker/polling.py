"""Polling: asking the backend about jobs without a result, and what follows from its answers.

Run by the engine. When a job is over is decided in `tracking`; here its tasks get their outcome or
another job.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from batchport.envelope import Envelope
from batchport.errors import EnvelopeError, StoreError
from batchport.jobs import JobStatus
from batchport.tasks import Failure
from batchport.worker import verdicts
from batchport.worker.calls import Backoff, Calls
from batchport.worker.cancelling import Cancelling
from batchport.worker.fencing import Fence
from batchport.worker.ledger import Ledger
from batchport.worker.outcomes import Outcomes
from batchport.worker.results import Results
from batchport.worker.storage import Storage
from batchport.worker.tracking import Element, Entry, Job, Rules, Verdict

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
    fence: Fence
    rules: Rules
    every_s: tuple[float, float]
    retries: int
    width: int
    _polled_at: float = -math.inf

    async def watch(self) -> None:
        """Poll and judge while there are jobs; runs for ever."""
        (shortest, longest), backoff = self.every_s, Backoff(self.every_s[0])
        delay = shortest
        while True:
            await self.ledger.until(lambda: bool(self.ledger.jobs))
            news = await self._pause(delay)
            trouble = None
            try:
                news |= await self.poll()
            except Exception as error:  # noqa: BLE001 - a failed poll is not a failed job
                trouble = error
            if self.ledger.holders:
                await self.fence.check()  # an older start has no verdicts to give, and need not poll on
            news |= await self.judge()
            if trouble is not None:
                delay = backoff.next()
                _log.warning("a poll failed, no job is given up for it, next in %.0f s: %s", delay, trouble)
            else:
                backoff.reset()
                delay = shortest if news else min(longest, delay * 1.5)

    async def _pause(self, seconds: float) -> bool:
        """Wait until the next poll is due, and return whether it was wanted sooner."""
        try:
            async with asyncio.timeout(seconds):
                await self.ledger.poll_wanted.wait()
        except TimeoutError:
            return False
        # Of many that end one after the other, not each gets a poll.
        await asyncio.sleep(self._polled_at + min(seconds, self.every_s[0]) - time.monotonic())
        self.ledger.poll_wanted.clear()
        return True

    async def poll(self, *, every_job: bool = False) -> bool:
        """Ask about all jobs that the backend must be asked about, and return whether any is newly blocked.

        An array is asked about by its own id, and besides by those of the elements that the last answer left
        out. Raises what the adapter raises, after all that can be asked has been asked.
        """
        now = self._polled_at = time.monotonic()
        jobs = [
            job
            for job in (list(self.ledger.jobs.values()) if every_job else self.ledger.watched(now))
            if job.id and (every_job or any(element.wants_poll(now) for element in job.elements))
        ]
        missed = [each for job in jobs for each in job.elements if each.omissions and each.wants_poll(now)]
        ids = list(dict.fromkeys([*(job.id for job in jobs if job.id), *(each.id for each in missed if each.id)]))
        said: dict[str, JobStatus] = {}
        unanswered, failed = set[str](), None
        size = self.calls.limits.poll_batch or len(ids) or 1
        for start in range(0, len(ids), size):
            some = ids[start : start + size]
            try:
                said |= {status.job_id: status for status in await self.calls.poll_jobs(some)}
            except Exception as error:  # noqa: BLE001 - the other ids may well be answered
                failed = error
                unanswered.update(some)
        news = self._take_in(jobs, said, unanswered)
        if failed is not None:
            raise failed
        return news

    def _take_in(self, jobs: Sequence[Job], said: Mapping[str, JobStatus], unanswered: set[str]) -> bool:
        """Note what was said of each element: by its own status, else by its array's, else nothing."""
        now, news = time.monotonic(), False
        for element in [element for job in jobs for element in job.elements]:
            ids = [each for each in (element.id, element.job.id) if each is not None]
            known = [said[each] for each in ids if each in said]
            # One under another name is another job, maybe under an id that the backend has used again.
            status = next((each for each in known if each.name in {None, element.job.name}), None)
            if status is None:
                if unanswered.isdisjoint(ids):
                    element.was_omitted(now)
            elif element.saw(status, now) and status.reason is not None and not status.state.is_final:
                news = True
                _log.warning("job %s can't start: %s; %s", element.name, status.reason.value, status.evidence)
        return news

    async def judge(self) -> bool:
        """Settle what is left of elements that are over, after a last look for results; return whether there were any.

        Elements whose results are there are no news: thousands may end well, and none of them needs a poll sooner.
        """
        now = time.monotonic()
        elements = [element for job in self.ledger.watched(now) for element in job.elements]
        # Their places at the backend are free, whatever the grace brings.
        self.ledger.holders.difference_update(element for element in elements if element.is_over)
        # What is released later has not had its last look for a result.
        suspects = [
            (element, free)
            for element in elements
            if (free := {place for place, entry in element.entries.items() if not entry.held})
            and element.verdict(now, self.rules)
        ]
        if suspects or any(element.is_over for element in elements):
            try:
                await self.results.collect()
            except StoreError as error:  # no verdict without a last look
                _log.warning("can't look for results before a verdict, will look again: %s", error)
                return False
        if suspects:
            await self.fence.check()
        ended_badly = False
        for element, free in suspects:
            if not free.isdisjoint(element.entries) and (verdict := element.verdict(now, self.rules)):
                ended_badly = True
                await self._end(element, verdict, free)
        for job in self.ledger.watched(now):
            if job.id and job.may_end:
                self.outcomes.forget(job)
            else:
                for element in job.elements:
                    if element.wants_cancel(self._polled_at):  # else nobody has asked whether it lives on
                        self.cancelling.want(element)
        await self.storage.tidy()
        self.ledger.notify()
        return ended_badly

    async def _end(self, element: Element, verdict: Verdict, places: Collection[int]) -> None:
        """Give each task in these places of an element that is over its outcome, or another job."""
        blamed = element.blamed(verdict, self.width)
        evidence = {place: await self._evidence(element, place) for place in blamed}
        if not all(found and found.fields.get("reason") for found in evidence.values()):
            await self._inspect(element)  # the runner could not tell, or there was none
        if verdict is Verdict.BLOCKED:
            self.cancelling.want(element)  # not sooner, or its cancel would be what is told of it
        # From the last: each that goes back to wait goes to the head of the queue.
        for place, entry in reversed(list(element.entries.items())):
            if place not in places or place not in element.entries:  # its result came while another task was settled
                continue
            if place not in blamed and not entry.cancelled and entry.unstarted + 1 < _TRIES_TO_START:
                entry.unstarted += 1
                await self._send_again(element, place, verdict)
                continue
            failure, output = self._failure(element, entry, evidence.get(place), verdict)
            if failure.reason.retry_can_help and entry.attempts < self.retries:
                entry.attempts += 1
                await self._send_again(element, place, verdict)
            else:
                await self.outcomes.settle(element, place, failure=failure, output=output)

    async def _send_again(self, element: Element, place: int, verdict: Verdict) -> None:
        if verdict is Verdict.VANISHED:
            # The job may run on somewhere; its runner looks for this before it starts the task.
            key = self.storage.keys.stop(element.job.name, place)
            await self.storage.insist(f"write the stop marker {key}", self.storage.store.put, key, b"")
        if place in element.entries:
            self.ledger.send_again(self.ledger.take(element, place, time.monotonic()))

    async def _evidence(self, element: Element, place: int) -> Envelope | None:
        """Return what a runner has left about how a task died; of several attempts, the first that can be read."""
        for key in element.evidence.get(place, []):
            data = await self.storage.insist(f"read the evidence {key}", self.storage.store.get, key)
            try:
                return Envelope.from_bytes(data or b"", ("evidence",))
            except EnvelopeError as error:
                _log.warning("the evidence %s can't be read: %s", key, error)
        return None

    def _failure(
        self, element: Element, entry: Entry, evidence: Envelope | None, verdict: Verdict
    ) -> tuple[Failure, str]:
        """Return the failure of a task, and what it printed, by the best evidence there is."""
        if entry.cancelled:
            return verdicts.cancelled(entry.task.id), ""
        resources = entry.task.resources
        if evidence is not None:
            return verdicts.failure_of_evidence(element, resources, evidence), verdicts.output_of(evidence)
        return verdicts.failure_of_job(element, verdict, self.rules, resources, self.storage.store.url), ""

    async def _inspect(self, element: Element) -> None:
        """Add to the element's status what the adapter can tell of it now that it has ended badly."""
        assert element.id is not None
        try:
            more = await self.calls.inspect_job(element.id)
        except Exception as error:  # noqa: BLE001 - evidence is welcome, and not needed
            _log.warning("inspect_job of %s failed: %s", element.name, error)
            return
        if more is None or more.name not in {None, element.job.name}:
            return
        known = element.status or more
        lines = dict.fromkeys((*known.evidence.splitlines(), *more.evidence.splitlines()))
        element.status = replace(
            known,
            reason=known.reason or more.reason,
            exit_code=more.exit_code if known.exit_code is None else known.exit_code,
            evidence="\n".join(lines),
        )

    async def see_off(self) -> None:
        """Give settled jobs a moment to end, and cancel those that do not; called when the worker leaves."""
        deadline = time.monotonic() + _END_S
        while lingering := [job for job in self.ledger.jobs.values() if job.id and job.is_settled and not job.may_end]:
            try:
                await self.poll(every_job=True)
                if time.monotonic() > deadline:
                    _log.warning("cancelling %d jobs that live on after their last outcome", len(lingering))
                    await self.calls.cancel_jobs([job.id for job in lingering if job.id])
                    return
            except Exception as error:  # noqa: BLE001 - reported; what lingers then is the backend's to end
                _log.warning("could not see whether %d jobs have ended: %s", len(lingering), error)
                return
            if not all(job.may_end for job in lingering):
                await asyncio.sleep(min(self.every_s[0], 0.5))
