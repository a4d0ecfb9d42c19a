"""BatchWorker: takes tasks from a host, runs them as jobs through one adapter, and brings back outcomes.

Called by hosts. Five loops share one event loop, and all state is changed there: submitting, watching
for results, polling, cancelling, and, for each job, sending it. Every rule about when a job is over is
in `tracking`; here is what is done about it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from batchport.adapter import BatchWorkerAdapterBase
from batchport.envelope import Envelope
from batchport.errors import (
    BackendFullError,
    BackendUnusableError,
    EnvelopeError,
    RejectedJobError,
    StoreError,
    TransientBackendError,
    UsageError,
)
from batchport.jobs import JobSpec, JobStatus, Resources
from batchport.store import Keys, OutKey, Store, open_store
from batchport.tasks import Failure, Outcome, Task
from batchport.worker import naming, payload, verdicts
from batchport.worker.blobs import SharedBlobs
from batchport.worker.calls import Backoff, Calls
from batchport.worker.packing import Waiting
from batchport.worker.tracking import Entry, Job, Rules, Verdict

__all__ = ["BatchWorker", "Counts"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger("batchport.worker")

_PLAIN = re.compile(r"[A-Za-z0-9_./:=+,@%-]*")
_SENDERS = 8
"""Jobs that are made ready and submitted at the same time: enough to hide the store behind the backend."""
_LINGER_S = 0.03
"""How long a pack that is not full waits for more tasks."""
_TRIES_TO_START = 3
_READ_AT_ONCE = 32
_END_S = 5.0
"""How long a leaving worker gives jobs, whose results are all there, to end by themselves."""
_EXTRA_TIME_S = 60


@dataclass(frozen=True, slots=True)
class Counts:
    """What a worker has done so far: tasks by where they are, jobs, and calls by method."""

    waiting: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    jobs: int = 0
    second_runs: int = 0
    backend_calls: Counter[str] = field(default_factory=Counter)
    store_calls: Counter[str] = field(default_factory=Counter)


class BatchWorker:
    """Runs tasks as jobs of one backend. An async context manager; use it on one event loop only.

    adapter: the backend. store: a URL or a Store that jobs can reach too. name: this worker's; no two
        may run under one name on one store at the same time.
    deliver: called with each task's outcome, at least once per task; a host drops a repeat by task id.
        While it raises, it is called again and nothing else is delivered.
    max_jobs: the most jobs that may be with the backend at once. tasks_per_job: how many tasks share one.
    retries: how often a task is run again after it was lost, preempted, or its node was.
    poll_s: the backend is polled this many seconds apart, from the first number while there is news to
        the second while there is none. results_s: seconds between two looks into the store.
    grace_s: seconds that a result may stay invisible after its job ended well.
    start_deadline_s: seconds after which a job that lives but cannot start is cancelled and its tasks
        fail; None: 600 for a bad image or configuration, for ever where waiting may help.
    call_deadline_s: seconds that one call to the adapter may take. waiting: how many tasks may wait here
        before `submit` makes the host wait. python: the interpreter in the job. path: entries for the
        job's sys.path, to be searched first.

    Entering raises UsageError if one of these can't work or a worker of this name is already running,
    StoreError if the store can't be used, and what the adapter's `open` raises. Leaving ends nothing that
    runs: call `drain` first to wait for it.
    """

    def __init__(
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
        python: str = sys.executable,
        path: Sequence[str] = (),
    ) -> None:
        naming.check_worker_name(name)
        for option, value, least in (
            ("max_jobs", max_jobs, 1),
            ("tasks_per_job", tasks_per_job, 1),
            ("retries", retries, 0),
            ("waiting", waiting, 1),
        ):
            if value < least:
                raise UsageError(f"{option}={value!r}: must be at least {least}")
        self._store = open_store(store) if isinstance(store, str) else store
        for what, text in (("python", python), ("the store's URL", self._store.url)):
            if not _PLAIN.fullmatch(text):
                raise UsageError(
                    f"{what} {text!r} holds a character that would need quoting at some backend; "
                    "use only A-Z a-z 0-9 _ . / : = + , @ % -"
                )
        self.name = name
        self._keys = Keys(name)
        self._calls = Calls(adapter, call_deadline_s)
        self._deliver_to_host = deliver
        self._max_jobs, self._tasks_per_job, self._retries = max_jobs, tasks_per_job, retries
        self._poll_s, self._results_s, self._grace_s = poll_s, results_s, grace_s
        self._start_deadline_s, self._most_waiting = start_deadline_s, waiting
        self._python, self._path = python, tuple(path)

        self._waiting = Waiting()
        self._jobs: dict[str, Job] = {}
        self._places: dict[str, tuple[Job, int]] = {}
        self._occupied: set[Job] = set()
        self._blobs = SharedBlobs(self._store, self._keys, self._insist)
        self._serial = 0
        self._counts: Counter[str] = Counter()
        self._to_cancel: set[Job] = set()
        self._trash: list[str] = []
        self._change = asyncio.Event()
        self._looking = asyncio.Lock()
        self._poll_soon = asyncio.Event()
        self._pause_until = 0.0
        self._backoff = Backoff()

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(_SENDERS, thread_name_prefix="batchport-store")
        try:
            self._epoch = await self._io(naming.begin_epoch, self._store, self._keys)
            try:
                await self._calls.open(self.name)
            except BaseException:
                await self._io(naming.end_epoch, self._store, self._keys, self._epoch)
                raise
        except BaseException:
            self._threads.shutdown(wait=False)
            raise
        limits = self._calls.limits
        self._rules = Rules(limits.settle_s, self._grace_s, self._start_deadline_s)
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._loops = [
            self._group.create_task(loop(), name=f"batchport {self.name} {loop.__name__.strip('_')}")
            for loop in (self._submitting, self._watching, self._polling, self._cancelling)
        ]
        self._senders = asyncio.Semaphore(_SENDERS)
        self._sending: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (*self._loops, *self._sending):
            task.cancel()
        try:
            # The group wraps what it is given in an ExceptionGroup; the body's own error shall stay itself.
            ours = kind is None or not issubclass(kind, asyncio.CancelledError)
            await self._group.__aexit__(None if ours else kind, None if ours else error, trace)
        finally:
            try:
                if error is None:
                    await self._end_lingering()
                    await self._sweep()
                await self._io(naming.end_epoch, self._store, self._keys, self._epoch)
                await self._calls.close()
            finally:
                self._threads.shutdown(wait=False)

    async def drain(self) -> None:
        """Wait until every task that was taken over has its outcome delivered."""
        await self._until(lambda: not self._waiting and not self._places)

    async def submit(self, task: Task) -> None:
        """Take over a task; waits while too many wait. A task whose id is known already is not run twice."""
        if task.id in self._waiting or task.id in self._places:
            return
        await self._until(lambda: len(self._waiting) < self._most_waiting)
        self._blobs.hold(task)
        self._waiting.add(Entry(task))
        self._notify()

    async def cancel(self, task_id: str) -> bool:
        """Ask for a task to end, and return whether it had no outcome yet; its outcome follows.

        A waiting task is never started; a running one is ended, its job with it if no other task of the
        job is wanted. A result that is there first wins.
        """
        if (entry := self._waiting.remove(task_id)) is not None:
            await self._conclude(entry, failure=verdicts.cancelled(task_id))
            return True
        if task_id not in self._places:
            return False
        job, place = self._places[task_id]
        job.entries[place].cancelled = True
        if job.all_cancelled:
            self._want_cancel(job)
        else:
            await self._insist(f"stop task {task_id}", self._store.put, self._keys.stop(job.name, place), b"")
            job.left.add(self._keys.stop(job.name, place))
        return True

    def running(self, task_id: str) -> bool:
        """Return whether the task's job runs, as far as is known."""
        job, _ = self._places.get(task_id, (None, 0))
        return job is not None and job.status is not None and job.status.state.value == "running"

    async def output(self, task_id: str) -> str:
        """Return the end of what a task has printed so far; "" if it printed nothing, or did not start."""
        if task_id not in self._places:
            return ""
        job, place = self._places[task_id]
        data = await self._io(self._store.get, self._keys.left(OutKey(job.name, place, "output")))
        return (data or b"").decode(errors="replace")

    @property
    def counts(self) -> Counts:
        """What this worker has done so far."""
        return Counts(
            waiting=len(self._waiting),
            sent=len(self._places),
            **self._counts,
            backend_calls=self._calls.counts.copy(),
            store_calls=self._store.calls.copy(),
        )

    async def _submitting(self) -> None:
        while True:
            await self._until(lambda: len(self._waiting) > 0 and len(self._occupied) < self._max_jobs)
            if not self._waiting.next_is_full(self._tasks_per_job):
                await asyncio.sleep(_LINGER_S if self._tasks_per_job > 1 else 0)
            await self._senders.acquire()
            if len(self._occupied) < self._max_jobs and (entries := self._waiting.pack(self._tasks_per_job)):
                task = self._group.create_task(self._send(self._make_job(entries)))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
                task.add_done_callback(lambda _: self._senders.release())
            else:
                self._senders.release()
            self._notify()

    def _make_job(self, entries: Sequence[Entry]) -> Job:
        first = entries[0].task
        label = naming.label_of(first.label)
        self._serial += 1
        name = naming.job_name(label, self._epoch, self._serial, self._calls.limits.name_length)
        spec = JobSpec(
            name=name,
            label=label,
            command=(self._python, "-m", "batchport.runner"),
            env={"BATCHPORT_STORE": self._store.url, "BATCHPORT_WORKER": self.name, "BATCHPORT_JOB": name},
            resources=_for_pack(first.resources, len(entries)),
        )
        job = Job(spec, dict(enumerate(entries)))
        self._jobs[name] = job
        self._occupied.add(job)
        for place, entry in job.entries.items():
            self._places[entry.task.id] = (job, place)
        self._counts["jobs"] += 1
        return job

    async def _send(self, job: Job) -> None:
        """Prepare a job and submit it, until it is at the backend or its tasks have failed."""
        tasks = [entry.task for entry in job.entries.values()]
        try:
            small = await self._blobs.ready(tasks)
        except Exception as error:  # noqa: BLE001 - whatever a host's read raises
            await self._give_up(job, verdicts.unreadable(f"The function or an argument of job {job.name}", error))
            return
        made = await self._io(payload.make_payload, job.name, tasks, small, self._path, self._calls.limits.inline_bytes)
        if made.inline is not None:
            job.spec = replace(job.spec, env={**job.spec.env, "BATCHPORT_PAYLOAD": made.inline})
        job.left.add(self._keys.manifest(job.name))
        await self._insist(
            f"write the manifest of job {job.name}", self._store.put, self._keys.manifest(job.name), made.manifest
        )
        looked_twice = False
        while not job.all_cancelled:
            await self._pause()
            try:
                job_id = await self._calls.submit_job(job.spec)
            except BackendFullError as error:
                await self._wait_for_room(error)
            except TransientBackendError as error:
                self._back_off(f"submit_job: {error}")
            except RejectedJobError as error:
                await self._give_up(job, verdicts.rejected(job, error))
                return
            except BackendUnusableError as error:
                self._back_off(f"the backend can't be used: {error}")
            except Exception as error:  # noqa: BLE001 - anything else may have submitted it
                found = await self._look_up(job, error)
                if found is None:
                    return
                if found:
                    await self._submitted(job, found)
                    return
                looked_twice = True
            else:
                await self._submitted(job, job_id)
                if looked_twice:
                    await self._end_twins(job)
                return
        await self._give_up(job, None)

    async def _submitted(self, job: Job, job_id: str) -> None:
        self._backoff.reset()
        job.id = job_id
        job.spec = replace(job.spec, env={})  # an inline payload is not needed any more, and may be large
        if job.entries:
            job.left.add(self._keys.job_id(job.name))
            await self._insist(
                f"note the id of job {job.name}", self._store.put, self._keys.job_id(job.name), job_id.encode()
            )
        if not job.entries:  # its results came before the answer, or while the id was noted
            self._clean(job)
        self._notify()

    async def _look_up(self, job: Job, error: Exception) -> str | None:
        """Find out what became of an ambiguous submit: its id; "" if it is proven absent; None if given up."""
        _log.warning(
            "submit_job of %s had no clear answer (%s); looking it up before it is sent again", job.name, error
        )
        backoff, looks = Backoff(), 0
        while True:
            try:
                ids = await self._ids_by_name(job)
            except NotImplementedError:
                await asyncio.sleep(self._grace_s)
                await self._collect()
                await self._give_up(job, verdicts.unanswered(job, error, self._grace_s))
                return None
            except Exception as failed:  # noqa: BLE001 - reported, and asked again: nothing may be sent before
                _log.warning("find_jobs failed, will ask again: %s", failed)
                await asyncio.sleep(backoff.next())
                continue
            looks += 1
            if ids:
                await self._cancel_twins(job, ids[1:])
                return ids[0]
            if looks > 1:
                return ""
            await asyncio.sleep(self._rules.settle_s)

    async def _ids_by_name(self, job: Job) -> list[str]:
        return sorted({job_id for name, job_id in await self._calls.find_jobs([job.name]) if name == job.name})

    async def _end_twins(self, job: Job) -> None:
        """After a job was sent again, look once more whether the first one has turned up."""
        await asyncio.sleep(self._rules.settle_s)
        try:
            ids = await self._ids_by_name(job)
            await self._cancel_twins(job, [each for each in ids if each != job.id])
        except Exception as error:  # noqa: BLE001 - a twin's result comes second, and is counted then
            _log.warning("could not look for a second job named %s: %s", job.name, error)

    async def _cancel_twins(self, job: Job, ids: Sequence[str]) -> None:
        if ids:
            _log.warning("there are %d jobs named %s; cancelling %s", len(ids) + 1, job.name, ", ".join(ids))
            await self._calls.cancel_jobs(ids)

    def _back_off(self, why: str) -> None:
        delay = self._backoff.next()
        self._pause_until = max(self._pause_until, time.monotonic() + delay)
        _log.warning("no job is submitted for %.0f s: %s", delay, why)

    async def _pause(self) -> None:
        while (left := self._pause_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _wait_for_room(self, error: BackendFullError) -> None:
        living = sum(job.id is not None for job in self._occupied)
        if not living:
            self._back_off(f"the backend says it is full, and none of this worker's jobs is there: {error}")
            return
        _log.info("the backend is full, waiting for one of %d jobs to end: %s", living, error)
        await self._until(lambda: sum(job.id is not None for job in self._occupied) < living)

    async def _watching(self) -> None:
        while True:
            await self._until(lambda: bool(self._occupied))
            try:
                await self._collect()
            except StoreError as error:
                _log.warning("can't look for results, will look again: %s", error)
                await asyncio.sleep(5 * self._results_s)
            await asyncio.sleep(self._results_s)

    async def _collect(self) -> None:
        """List what runners have left, once, and conclude every task that has its result there."""
        async with self._looking:
            results = []
            for name in await self._io(self._store.names, self._keys.out):
                out = OutKey.parse(name)
                job = self._jobs.get(out.job) if out else None
                if out is None or job is None:
                    continue
                job.left.add(self._keys.left(out))
                if out.kind == "result" and out.place in job.entries:
                    results.append((job, out))
                elif out.kind == "stopped" and out.place in job.entries and job.entries[out.place].cancelled:
                    await self._settle(job, out.place, failure=verdicts.cancelled(job.entries[out.place].task.id))
                elif out.kind == "evidence" and name not in job.evidence.setdefault(out.place, []):
                    job.evidence[out.place].append(name)
            for start in range(0, len(results), _READ_AT_ONCE):
                chunk = results[start : start + _READ_AT_ONCE]
                keys = [self._keys.left(out) for _, out in chunk]
                for (job, out), data in zip(chunk, await self._io(self._get_all, keys), strict=True):
                    if data is not None and out.place in job.entries:
                        await self._take_result(job, out.place, data)
            await self._empty_trash()

    def _get_all(self, keys: Iterable[str]) -> list[bytes | None]:
        return [self._store.get(key) for key in keys]

    async def _take_result(self, job: Job, place: int, data: bytes) -> None:
        try:
            envelope = Envelope.from_bytes(data, ("result", "exception"))
        except EnvelopeError as error:
            task_id = job.entries[place].task.id
            await self._settle(job, place, failure=verdicts.unreadable(f"The result of task {task_id}", error))
            return
        output = verdicts.output_of(envelope)
        if envelope.kind == "result":
            await self._settle(job, place, result=envelope.parts[0], output=output)
        else:
            await self._settle(job, place, failure=verdicts.failure_of_exception(envelope), output=output)

    async def _settle(
        self, job: Job, place: int, *, result: bytes | None = None, failure: Failure | None = None, output: str = ""
    ) -> None:
        """Give one task of a job its outcome, and let the job go after its last."""
        entry = job.entries.pop(place)
        del self._places[entry.task.id]
        entry.attempts += 1
        if not job.entries:
            job.settled_at = time.monotonic()
            self._occupied.discard(job)
        await self._conclude(entry, result=result, failure=failure, output=output)
        if not job.entries:
            self._clean(job)

    async def _conclude(
        self, entry: Entry, *, result: bytes | None = None, failure: Failure | None = None, output: str = ""
    ) -> None:
        task = entry.task
        outcome = Outcome(task.id, result, failure, max(entry.attempts, 1), output)
        self._counts["done" if failure is None else "failed"] += 1
        backoff = Backoff()
        while True:
            try:
                await self._deliver_to_host(outcome)
                break
            except Exception:
                _log.exception("the host did not take the outcome of task %s, will offer it again", task.id)
                await asyncio.sleep(backoff.next())
        await self._blobs.let_go(task)
        self._notify()

    async def _polling(self) -> None:
        delay, backoff = self._poll_s[0], Backoff(self._poll_s[0])
        while True:
            await self._until(lambda: bool(self._jobs))
            asked = await self._sleep_unless_asked(delay)
            try:
                news = await self._poll()
                backoff.reset()
                delay = self._poll_s[0] if news or asked else min(self._poll_s[1], delay * 1.5)
                await self._judge()
            except Exception as error:  # noqa: BLE001 - a failed poll is not a failed job
                delay = backoff.next()
                _log.warning("a poll failed, no job is given up for it, next in %.0f s: %s", delay, error)

    async def _sleep_unless_asked(self, delay: float) -> bool:
        try:
            await asyncio.wait_for(self._poll_soon.wait(), delay)
        except TimeoutError:
            return False
        self._poll_soon.clear()
        return True

    async def _poll(self, *, all_jobs: bool = False) -> bool:
        """Ask the backend about every job that it must be asked about; return whether there is news."""
        now = time.monotonic()
        asked = {job.id: job for job in self._jobs.values() if job.id and (all_jobs or job.wants_poll(now))}
        ids, news, failed = list(asked), False, None
        size = self._calls.limits.poll_batch or len(ids) or 1
        for start in range(0, len(ids), size):
            chunk = ids[start : start + size]
            try:
                statuses = await self._calls.poll_jobs(chunk)
            except Exception as error:  # noqa: BLE001 - the other chunks may well answer
                failed = error
                continue
            news |= self._take_statuses({job_id: asked[job_id] for job_id in chunk}, statuses)
        if failed is not None:
            raise failed
        return news

    def _take_statuses(self, asked: dict[str, Job], statuses: Iterable[JobStatus]) -> bool:
        now, news, omitted = time.monotonic(), False, dict(asked)
        for status in statuses:
            job = asked.get(status.job_id)
            if job is None or (status.name is not None and status.name != job.name):
                continue  # another job, maybe one under an id that the backend has used again
            omitted.pop(status.job_id, None)
            if job.saw(status, now):
                news = True
                if status.reason is not None and not status.state.is_final:
                    _log.warning("job %s can't start: %s; %s", job.name, status.reason.value, status.evidence)
        for job in omitted.values():
            job.was_omitted(now)
        return news

    async def _judge(self) -> None:
        """Conclude the jobs that are over without a result for each task."""
        over = [job for job in self._jobs.values() if job.is_over]
        for job in over:
            self._occupied.discard(job)  # the backend has its place back, whatever the grace brings
        now = time.monotonic()
        suspects = [job for job in self._jobs.values() if job.entries and job.verdict(now, self._rules)]
        if suspects or over:
            await self._collect()  # the last look: a result beats the backend's word
        for job in suspects:
            verdict = job.verdict(now, self._rules)
            if job.entries and verdict:
                await self._end(job, verdict)
        for job in list(self._jobs.values()):
            if not job.entries and (job.is_over or job.omissions):
                self._forget(job)
            elif job.wants_cancel(now):
                self._want_cancel(job)
        await self._empty_trash()
        self._notify()

    async def _end(self, job: Job, verdict: Verdict) -> None:
        """Give each remaining task of a job that is over its outcome, or another job."""
        if verdict is Verdict.BLOCKED:
            self._want_cancel(job)
        if job.id is not None and verdict is not Verdict.NO_RESULT:
            await self._inspect(job)
        blamed = self._blamed(job, verdict)
        for place, entry in list(job.entries.items()):
            if place not in blamed and not entry.cancelled and entry.unstarted + 1 < _TRIES_TO_START:
                entry.unstarted += 1
                await self._send_again(job, place, verdict)
                continue
            failure, output = await self._failure(job, place, entry, verdict)
            if failure.reason.retry_can_help and entry.attempts < self._retries:
                entry.attempts += 1
                await self._send_again(job, place, verdict)
            else:
                await self._settle(job, place, failure=failure, output=output)
        self._occupied.discard(job)

    def _blamed(self, job: Job, verdict: Verdict) -> set[int]:
        """Return the places of the tasks that a bad ending is about; the others never started.

        A runner takes its tasks in order, so without evidence it is the first one left that was running.
        """
        everything = set(job.entries)
        status = job.status
        never_ran = verdict in {Verdict.NO_RESULT, Verdict.BLOCKED}
        could_not_start = status is not None and status.exit_code in {126, 127}
        if never_ran or could_not_start or (status is not None and status.state.value == "cancelled"):
            return everything
        with_evidence = everything & job.evidence.keys()
        return with_evidence or {min(everything)}

    async def _failure(self, job: Job, place: int, entry: Entry, verdict: Verdict) -> tuple[Failure, str]:
        if entry.cancelled:
            return verdicts.cancelled(entry.task.id), ""
        resources = entry.task.resources
        for name in job.evidence.get(place, []):
            data = await self._insist("read evidence", self._store.get, f"{self._keys.out}/{name}")
            try:
                envelope = Envelope.from_bytes(data or b"", ("evidence",))
            except EnvelopeError as error:
                _log.warning("the evidence %s can't be read: %s", name, error)
                continue
            return verdicts.failure_of_evidence(job, resources, envelope), verdicts.output_of(envelope)
        return verdicts.failure_of_job(job, verdict, self._rules, resources, self._store.url), ""

    async def _inspect(self, job: Job) -> None:
        assert job.id is not None
        try:
            status = await self._calls.inspect_job(job.id)
        except Exception as error:  # noqa: BLE001 - evidence is welcome, and not needed
            _log.warning("inspect_job of %s failed: %s", job.name, error)
            return
        if status is not None and (job.status is None or not status.name or status.name == job.name):
            before = job.status.evidence if job.status else ""
            words = dict.fromkeys((*before.splitlines(), *status.evidence.splitlines()))
            known = job.status or status
            reason, code = known.reason or status.reason, known.exit_code
            code = status.exit_code if code is None else code
            job.status = replace(known, evidence="\n".join(words), reason=reason, exit_code=code)

    async def _send_again(self, job: Job, place: int, verdict: Verdict) -> None:
        if verdict is Verdict.VANISHED:
            # It may still run somewhere; its runner finds this before it starts the task.
            key = self._keys.stop(job.name, place)
            await self._insist("write a stop marker", self._store.put, key, b"")  # stays until the worker leaves
        entry = job.entries.pop(place)
        del self._places[entry.task.id]
        if not job.entries:
            job.settled_at = time.monotonic()
        self._waiting.add(entry, first=True)

    async def _give_up(self, job: Job, failure: Failure | None) -> None:
        """Conclude every task of a job that is not at the backend; without a failure they were cancelled."""
        for place, entry in list(job.entries.items()):
            if place in job.entries:
                await self._settle(job, place, failure=failure or verdicts.cancelled(entry.task.id))
        self._forget(job)
        await self._empty_trash()

    async def _cancelling(self) -> None:
        backoff = Backoff()
        while True:
            await self._until(lambda: any(job.id for job in self._to_cancel))
            wanted = [job for job in self._to_cancel if job.id]
            try:
                await self._calls.cancel_jobs([job.id for job in wanted if job.id])
            except Exception as error:  # noqa: BLE001 - reported, and asked again
                delay = backoff.next()
                _log.warning("a cancel failed, next try in %.0f s: %s", delay, error)
                await asyncio.sleep(delay)
                continue
            backoff.reset()
            self._to_cancel.difference_update(wanted)
            for job in wanted:
                job.cancel_sent_at = time.monotonic()
            self._poll_soon.set()

    def _want_cancel(self, job: Job) -> None:
        job.cancel_wanted = True
        self._to_cancel.add(job)
        self._notify()

    def _clean(self, job: Job) -> None:
        """Remove what a settled job has in the store; the job is kept until the backend says that it ended."""
        if job.id is not None:  # else its submit is still under way, and its runner may still need the manifest
            self._trash += job.left
            job.left = set()

    def _forget(self, job: Job) -> None:
        self._counts["second_runs"] += sum(".second." in key for key in job.left)
        self._trash += job.left
        self._occupied.discard(job)
        self._to_cancel.discard(job)
        self._jobs.pop(job.name, None)

    async def _empty_trash(self) -> None:
        trash, self._trash = self._trash, []
        if trash:
            try:
                await self._io(self._store.delete, trash)
            except StoreError as error:
                self._trash += trash
                _log.warning("can't clean up in the store, will try again: %s", error)

    async def _end_lingering(self) -> None:
        """Give settled jobs a moment to end; cancel those that do not."""
        lingering = [job for job in self._jobs.values() if not job.entries and job.id]
        deadline = time.monotonic() + _END_S
        while lingering:
            try:
                await self._poll(all_jobs=True)
            except Exception as error:  # noqa: BLE001 - reported; what lingers then ends by itself
                _log.warning("could not see whether %d jobs have ended: %s", len(lingering), error)
                return
            lingering = [job for job in lingering if not job.is_over and not job.omissions]
            if lingering and time.monotonic() > deadline:
                _log.warning("cancelling %d jobs that are still alive after their last outcome", len(lingering))
                await self._calls.cancel_jobs([job.id for job in lingering if job.id])
                return
            if lingering:
                await asyncio.sleep(min(self._poll_s[0], 0.5))

    async def _sweep(self) -> None:
        """Remove what jobs of this epoch wrote after they were let go."""
        unsettled = {name for name, job in self._jobs.items() if job.entries}
        for folder in (self._keys.out, self._keys.stops):
            names = await self._io(self._store.names, folder)
            ours = [name for name in names if f"-{self._epoch.birth}-" in name]
            self._trash += [f"{folder}/{name}" for name in ours if name.partition(".")[0] not in unsettled]
        await self._empty_trash()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._change.wait()

    async def _io(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def _insist(self, what: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something in the store, again and again until it works."""
        backoff = Backoff()
        while True:
            try:
                return await self._io(function, *args, **kwargs)
            except StoreError as error:
                delay = backoff.next()
                _log.warning("can't %s, will try again in %.0f s: %s", what, delay, error)
                await asyncio.sleep(delay)


def _for_pack(one: Resources, tasks: int) -> Resources:
    """Return what a job of that many tasks, one at a time, asks for: each task's time, and a minute more."""
    if one.time_limit_s is None:
        return one
    return replace(one, time_limit_s=one.time_limit_s * tasks + _EXTRA_TIME_S)
