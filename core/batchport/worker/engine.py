"""BatchWorker: takes tasks from a host, runs them as jobs through one adapter, and brings back outcomes.

Called by hosts. Here are its options, its start and end, and what a host may call; the loops that do the
work are in the modules that it puts together.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from batchport.adapter import BatchWorkerAdapterBase
from batchport.errors import StoreError, SupersededError, UsageError
from batchport.jobs import JobState
from batchport.store import Keys, OutKey, Store, open_store
from batchport.tasks import Blob, Outcome, Task
from batchport.worker import naming, verdicts
from batchport.worker.adoption import Adoption
from batchport.worker.blobs import SharedBlobs
from batchport.worker.calls import Calls
from batchport.worker.cancelling import Cancelling
from batchport.worker.fencing import Fence
from batchport.worker.ledger import Counts, Ledger
from batchport.worker.lookup import Lookup
from batchport.worker.outcomes import Outcomes
from batchport.worker.polling import Polling
from batchport.worker.results import Results
from batchport.worker.sending import Plan, Sending
from batchport.worker.storage import Storage
from batchport.worker.tracking import Entry, Rules

__all__ = ["BatchWorker"]

_log = logging.getLogger("batchport.worker")

_PLAIN = re.compile(r"[A-Za-z0-9_./:=+,@%-]*")


class BatchWorker:
    """Runs tasks as jobs of one backend. An async context manager; use it on one event loop only.

    adapter: the backend. store: a URL or a Store that jobs can reach too. name: this worker's; of two
        that run under one name on one store, the older one stops.
    deliver: called with each task's outcome, at least once per task; a host drops a repeat by task id.
        While it raises, it is called again and nothing else is delivered.
    max_jobs: the most elements that may be with the backend at once. tasks_per_job: how many tasks share
        one; width: how many of those run at once.
    retries: how often a task is run again after it was lost, preempted, or its node was.
    poll_s: the backend is polled this many seconds apart, from the first number while there is news to
        the second while there is none. results_s: seconds between two looks into the store.
    grace_s: seconds that a result may stay invisible after its job ended well.
    start_deadline_s: seconds after which a job that lives but cannot start is cancelled and its tasks
        fail; None: 600 for a bad image or configuration, for ever where waiting may help.
    call_deadline_s: seconds that one call to the adapter may take. waiting: how many tasks may wait here
        before `submit` makes the host wait.
    python: the interpreter in the job; launcher: words before it, which must start exactly one runner.
    setup: lines of bash that each job runs first, as they are. path: entries for the job's sys.path, to be
        searched first; code: zips of modules to be searched before those.
    hold_adopted: whether outcomes of an earlier start's tasks wait in the store until the host has offered the tasks
        again, for a host that can do nothing with them before. `drain` does not wait for those tasks.

    A worker that starts under the name of one that died adopts its jobs: their outcomes are delivered, and
    a task that the host offers again by the same id is not run again.

    Entering raises UsageError if one of these can't work or a worker of this name is already running,
    StoreError if the store can't be used, and what the adapter's `open` raises. Leaving ends nothing that
    runs: call `drain` first to wait for it. The body and the leaving raise SupersededError once the worker
    was started again elsewhere under its name.
    """

    def __init__(  # noqa: PLR0913 - each option has its line above
        self,
        adapter: BatchWorkerAdapterBase,
        store: Store | str,
        name: str,
        deliver: Callable[[Outcome], Awaitable[None]],
        *,
        max_jobs: int = 1000,
        tasks_per_job: int = 1,
        retries: int = 0,
        poll_s: tuple[float, float] = (1.0, 10.0),
        results_s: float = 0.3,
        grace_s: float = 30.0,
        start_deadline_s: float | None = None,
        call_deadline_s: float = 120.0,
        waiting: int = 10_000,
        width: int = 1,
        python: str = sys.executable,
        launcher: Sequence[str] = (),
        setup: str = "",
        path: Sequence[str] = (),
        code: Sequence[Blob] = (),
        hold_adopted: bool = False,
    ) -> None:
        naming.check_worker_name(name)
        amounts = {"max_jobs": max_jobs, "tasks_per_job": tasks_per_job, "width": width, "waiting": waiting}
        for option, value in (*amounts.items(), ("retries", retries)):
            if value < (least := 0 if option == "retries" else 1):
                raise UsageError(f"{option}={value!r}: must be at least {least}")
        given: Sequence[object] = code
        if wrong := [each for each in given if not isinstance(each, Blob)]:
            raise UsageError(f"code holds {wrong[0]!r}: give zips of modules, each as a batchport.Blob")
        if isinstance(launcher, str):
            raise UsageError(f"launcher={launcher!r}: give its words one by one, such as {launcher.split()!r}")
        lines: object = setup
        if not isinstance(lines, str):
            raise UsageError(f"setup={lines!r}: give its lines as one str, such as 'module load gcc\\nmodule load mpi'")
        store = open_store(store) if isinstance(store, str) else store
        words = (("python", python), *(("launcher", word) for word in launcher), ("the store's URL", store.url))
        for what, text in words:
            if not _PLAIN.fullmatch(text):
                raise UsageError(
                    f"{what} {text!r} holds a character that would need quoting at some backend; "
                    "use only A-Z a-z 0-9 _ . / : = + , @ % -"
                )
        self.name = name
        self._calls = Calls(adapter, call_deadline_s)
        self._store = store
        fields: dict[str, Any] = {"path": list(path), "width": width, "code": [blob.key for blob in code]}
        command = (*launcher, python, "-m", "batchport.runner")
        self._deliver, self._code, self._hold_adopted = deliver, tuple(code), hold_adopted
        self._plan = Plan(max_jobs, tasks_per_job, width, command, setup, fields)
        self._grace_s, self._start_deadline_s, self._retries = grace_s, start_deadline_s, retries
        self._poll_s, self._results_s, self._most_waiting = poll_s, results_s, waiting
        self._ledger = Ledger()
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._storage = storage = Storage(self._store, Keys(self.name))
        try:
            self._epoch = await storage.do(naming.begin_epoch, self._store, storage.keys)
            try:
                await self._calls.open(self.name)
            except BaseException:
                await storage.do(naming.end_epoch, self._store, storage.keys, self._epoch)
                raise
        except BaseException:
            storage.close()
            raise
        ledger, calls = self._ledger, self._calls
        rules = Rules(calls.limits.settle_s, self._grace_s, self._start_deadline_s)
        fence, lookup = Fence(storage, self._epoch), Lookup(calls)
        self._blobs = SharedBlobs(storage, self._code)
        self._outcomes = Outcomes(ledger, storage, self._blobs, self._deliver)
        self._cancelling = Cancelling(ledger, calls)
        results = Results(ledger, storage, self._outcomes, fence, self._results_s)
        self._polling = Polling(
            ledger=ledger,
            storage=storage,
            calls=calls,
            outcomes=self._outcomes,
            results=results,
            cancelling=self._cancelling,
            fence=fence,
            rules=rules,
            every_s=self._poll_s,
            retries=self._retries,
            width=self._plan.width,
        )
        sending = Sending(
            ledger=ledger,
            storage=storage,
            calls=calls,
            lookup=lookup,
            fence=fence,
            blobs=self._blobs,
            outcomes=self._outcomes,
            last_look=results.last_look,
            plan=self._plan,
            rules=rules,
            epoch=self._epoch,
            spawn=self._spawn,
        )
        adoption = Adoption(
            ledger=ledger,
            storage=storage,
            lookup=lookup,
            blobs=self._blobs,
            outcomes=self._outcomes,
            sending=sending,
            last_look=results.last_look,
            rules=rules,
            hold=self._hold_adopted,
            spawn=self._spawn,
        )
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        try:
            await adoption.adopt()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        for loop in (sending.send, results.watch, self._polling.watch, self._cancelling.send):
            self._spawn(loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        superseded: Exception | None = None
        try:
            # A group wraps what it is given into an ExceptionGroup. The body's own error shall stay itself;
            # a cancellation must pass, since it may be the group's own after one of the loops failed.
            passes = kind is not None and issubclass(kind, asyncio.CancelledError)
            await self._group.__aexit__(kind if passes else None, error if passes else None, trace)
        except* SupersededError as group:
            superseded = group.exceptions[0]
        finally:
            try:
                if superseded is None:  # else all that is in the store is the other worker's
                    superseded = await self._leave(in_order=error is None)
            except StoreError as failed:  # the next start cleans up, and sees that no process of this one lives
                _log.warning("the worker %s could not note its end: %s", self.name, failed)
            finally:
                try:
                    await self._calls.close()
                finally:
                    self._storage.close()
        if superseded is not None:
            raise superseded

    async def _leave(self, *, in_order: bool) -> Exception | None:
        """Note the end of this start, after a clean-up if it ends in order; return an error if it is not the last one.

        Raises StoreError.
        """
        if in_order:
            await self._polling.see_off()
        # One that had nothing to do has not looked for long, and must leave what is another's now.
        other = await self._storage.do(naming.newer_start, self._store, self._storage.keys, self._epoch)
        if other is not None:
            return SupersededError(self.name, other)
        if in_order:
            await self._sweep()
        await self._storage.do(naming.end_epoch, self._store, self._storage.keys, self._epoch)
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def submit(self, task: Task) -> None:
        """Take over a task; waits while too many wait. A task whose id is known already is not run twice."""
        ledger = self._ledger
        if (found := ledger.find(task.id)) is not None:
            element, place = found
            if not (entry := element.entries[place]).offered:  # of an earlier start; now it could be sent again
                entry.task, entry.offered = task, True
                self._blobs.hold(entry)
                ledger.release(entry)
            return
        if task.id in ledger.waiting:
            return
        await ledger.until(lambda: len(ledger.waiting) < self._most_waiting)
        entry = ledger.parked.pop(task.id) if task.id in ledger.parked else Entry(task)
        entry.task, entry.offered, entry.held = task, True, False
        self._blobs.hold(entry)
        ledger.counts["taken"] += 1
        ledger.waiting.add(entry)
        ledger.notify()

    async def cancel(self, task_id: str) -> bool:
        """Ask for a task to end, and return whether it had no outcome yet; its outcome follows.

        A waiting task is never started; a running one is ended, its job with it if no other task of the
        job is wanted. A result that is there first wins.
        """
        if (entry := self._ledger.waiting.remove(task_id)) is not None:
            await self._outcomes.conclude(entry, failure=verdicts.cancelled(task_id))
            return True
        if (found := self._ledger.find(task_id)) is None:
            return False
        element, place = found
        element.entries[place].cancelled = True
        self._ledger.release(element.entries[place])
        job = element.job
        if job.all_cancelled or (element.all_cancelled and self._calls.limits.element_cancel):
            for each in job.elements:
                if each.entries and each.all_cancelled:
                    self._cancelling.want(each)
        else:
            job.left.add(key := self._storage.keys.stop(job.name, place))
            await self._storage.insist(f"write the stop marker {key}", self._store.put, key, b"")
        return True

    def withdraw(self, task_id: str) -> bool:
        """Take back a task that waits and is in no job yet; return whether it was one. No outcome follows."""
        if (entry := self._ledger.waiting.remove(task_id)) is None:
            return False
        self._ledger.counts["taken"] -= 1
        self._spawn(self._blobs.let_go(entry))
        self._ledger.notify()
        return True

    async def drain(self) -> None:
        """Wait until every task that was taken over has its outcome delivered."""
        ledger = self._ledger
        await ledger.until(lambda: ledger.counts["done"] + ledger.counts["failed"] == ledger.counts["taken"])

    async def sent(self, patience_s: float = 60.0) -> bool:
        """Wait until all tasks that were taken over are with the backend, or as many as may; return whether all are.

        Gives up after so many seconds in which the backend took no job. Called by a host before it leaves
        with work under way, so that no submit is left half done.
        """
        ledger = self._ledger

        def is_done() -> bool:
            no_more = not ledger.waiting or len(ledger.holders) >= self._plan.max_jobs
            return no_more and ledger.all_submitted

        there = ledger.at_backend

        def has_news() -> bool:
            nonlocal there
            before, there = there, ledger.at_backend  # fewer: jobs have ended, and the backend took none
            return is_done() or there > before

        while not is_done():
            try:
                async with asyncio.timeout(patience_s):
                    await ledger.until(has_news)
            except TimeoutError:
                return False
        return not ledger.waiting

    @property
    def in_jobs(self) -> list[str]:
        """The ids of the tasks that are in jobs: right after entering, those that were adopted."""
        return self._ledger.in_jobs

    def has_job(self, task_id: str) -> bool:
        """Return whether a task is in a job; as quick for many tasks as for few."""
        return self._ledger.find(task_id) is not None

    def running(self, task_id: str) -> bool:
        """Return whether the task's job runs, as far as is known."""
        found = self._ledger.find(task_id)
        status = found[0].status if found is not None else None
        return status is not None and status.state is JobState.RUNNING

    async def output(self, task_id: str) -> str:
        """Return the end of what a task has printed so far; "" if it printed nothing, or is in no job."""
        if (found := self._ledger.find(task_id)) is None:
            return ""
        element, place = found
        key = self._storage.keys.left(OutKey(element.job.name, place, "output"))
        data = await self._storage.do(self._store.get, key)
        return (data or b"").decode(errors="replace")

    @property
    def counts(self) -> Counts:
        """What this worker has done so far."""
        counts = self._ledger.counts
        return Counts(
            waiting=len(self._ledger.waiting),
            sent=self._ledger.sent,
            done=counts["done"],
            failed=counts["failed"],
            jobs=counts["jobs"],
            second_runs=counts["second_runs"],
            backend_calls=self._calls.counts.copy(),
            store_calls=self._store.calls.copy(),
        )

    async def _sweep(self) -> None:
        """Remove what jobs of this start wrote after they were let go."""
        unsettled = {name for name, job in self._ledger.jobs.items() if not job.is_settled}
        for job in self._ledger.jobs.values():
            if job.is_settled:
                self._outcomes.clean(job)
        for folder in (self._storage.keys.out, self._storage.keys.stops):
            names = await self._storage.do(self._store.names, folder)
            ours = [name for name in names if f"-{self._epoch.birth}-" in name]
            self._storage.throw_away(f"{folder}/{name}" for name in ours if name.partition(".")[0] not in unsettled)
        await self._storage.tidy()
