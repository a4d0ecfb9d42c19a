"""ScalerWorker: a worker of an opengris-scaler cluster, whose tasks run as jobs of a batch backend.

Called by `batchport worker` and by users; needs the extra `scaler`. Neither clients nor the scheduler know the
difference: a client's functions run as jobs, its futures get the results, and its cancels end the jobs. What
passes by here are bytes, and none of them is unpickled.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from batchport.adapter import BatchWorkerAdapterBase
from batchport.errors import Reason
from batchport.hosts._waiting import Kept, WaitingBytes
from batchport.jobs import Resources
from batchport.store import Store, open_store
from batchport.tasks import Blob, Failure, Outcome, Task
from batchport.worker import BatchWorker, Counts

try:
    from batchport.hosts._scaler_link import (
        PLAIN_SERIALIZERS,
        Cancel,
        Confirm,
        Deletion,
        Link,
        Offer,
        SchedulerLostError,
        ShutdownError,
    )
except ImportError as error:
    try:
        found = f"{version('opengris-scaler')} is installed"
    except PackageNotFoundError:
        found = "it is not installed"
    raise ImportError(
        f"batchport.hosts.scaler needs opengris-scaler 2.8 or 2.9, and {found}: "
        f"pip install 'batchport[scaler]' ({error})"
    ) from error

__all__ = ["ScalerWorker", "SchedulerLostError"]

_log = logging.getLogger("batchport.scaler")

_UNCLAIMED_S = 24 * 3600
"""Seconds after which a scheduler that has not offered a task again does not know it: it may have been restarted."""
_TIDY_S = 10.0
"""Seconds between two looks for what waited in the store and is not needed any more."""
_TOLD_S = 60.0
_AT_ONCE = 8
"""Tasks whose objects are fetched at the same time, so that not all of a burst is in memory."""


class ScalerWorker:
    """A worker of the scheduler at an address such as tcp://10.0.0.1:6378.

    adapter, store, name, and what follows: as for BatchWorker. The scheduler has at most max_jobs * tasks_per_job
    tasks here at once, and keeps or gives to others what is more.
    resources: what every task asks of the backend; what a client asks for does not reach a worker.
    capabilities: names that clients may ask for; a scheduler with the policy `allocate=capability` gives this worker
        the tasks that ask for no others.

    Started again under its name on the same host and store, it has the jobs again that lived on, and runs none of
    their tasks twice; but where there are other workers, the scheduler gives the tasks to them at once, and they run
    there as well.

    A function's exception arrives at the client as itself, with the job's traceback as a note; every other failure is
    a RuntimeError with the Failure's words, as a client need not have batchport. A client's own serializer is used in
    the job, which must be able to import what it needs.

    Raises UsageError for an address that is none, and for what a BatchWorker refuses.
    """

    def __init__(  # noqa: PLR0913 - as a BatchWorker has, and what the scheduler is told
        self,
        scheduler: str,
        adapter: BatchWorkerAdapterBase,
        store: Store | str,
        name: str,
        *,
        max_jobs: int = 1000,
        tasks_per_job: int = 1,
        resources: Resources | None = None,
        capabilities: Sequence[str] = (),
        **worker_options: Any,
    ) -> None:
        store = open_store(store) if isinstance(store, str) else store
        self._worker = BatchWorker(
            adapter,
            store,
            name,
            self._deliver,
            max_jobs=max_jobs,
            tasks_per_job=tasks_per_job,
            hold_adopted=True,
            **worker_options,
        )
        self._link = Link(scheduler, name, store.url, max_jobs * tasks_per_job, capabilities)
        self._waiting = WaitingBytes(store, name)
        self._resources = resources or Resources()
        self._draining = asyncio.Event()
        self._offers: dict[str, Offer] = {}
        """What was offered and neither answered nor cancelled, by task id."""
        self._intakes: dict[str, asyncio.Task[None]] = {}
        """Those of the offers that are about to become tasks of the worker's."""
        self._held: set[str] = set()
        """Those of the offers that will not run here, since it is drained."""
        self._objects: WeakValueDictionary[str, _Object] = WeakValueDictionary()
        self._fetches: dict[str, asyncio.Task[_Object]] = {}
        self._plain: dict[bytes, bool] = {}
        """Whether the serializer with this id is Scaler's own."""
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._lost: asyncio.Future[NoReturn]
        self._told: dict[Reason, float] = {}
        """When the operator was told of a failure, by reason."""

    async def run(self) -> None:
        """Run what the scheduler gives to this worker, until a client shuts down the cluster or `drain` is called.

        Either way it returns when nothing of it runs any more: a shutdown cancels all tasks. Cancelled, it tells the
        scheduler that it leaves, and its jobs live on. To be called once.

        Raises SchedulerLostError when the scheduler cannot be reached, after 20 s of trying, or not any more; the jobs
        live on. Raises what entering a BatchWorker raises.
        """
        try:
            async with self._worker:
                await self._serve()
        finally:
            self._waiting.close()

    def drain(self) -> None:
        """Have `run` start nothing more and return when what is in jobs has ended; others get the rest.

        Jobs of an earlier start are not waited for before the scheduler has offered their tasks again, and live on. To
        be called on the event loop that `run` is on.
        """
        self._draining.set()

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler has answered yet."""
        return self._link.is_heard

    @property
    def counts(self) -> Counts:
        """What this worker has done so far."""
        return self._worker.counts

    async def _serve(self) -> None:
        lost: list[Exception] = []
        is_shut_down = False
        try:
            await asyncio.to_thread(self._waiting.remove_strays)
            self._lost = asyncio.get_running_loop().create_future()
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._drain())
                link = self._link
                await link.open()
                ours = self._listen(), self._clear_up(), self._tidy()
                for loop in (link.beat(self._queued), link.pump(), *ours):
                    self._group.create_task(loop)
                await self._lost
        except* _DrainedError:
            pass
        except* ShutdownError:
            is_shut_down = True
        except* SchedulerLostError as group:
            lost.extend(group.exceptions)
        finally:
            await self._link.leave()
        if lost:
            raise lost[0]
        if is_shut_down:
            await self._end_all()

    def _queued(self) -> int:
        return len(self._held) + len(self._intakes) + self._worker.counts.waiting

    async def _drain(self) -> NoReturn:
        """Once told to, start nothing more, and wait until all that was started has ended."""
        await self._draining.wait()
        self._held.update(filter(self._take_back, list(self._offers)))
        await self._worker.drain()
        while self._intakes:  # of adopted jobs, which the worker does not wait for before it has their tasks
            await asyncio.wait(self._intakes.values())
            await self._worker.drain()
        raise _DrainedError

    def _take_back(self, task_id: str) -> bool:
        """Have a task not run here if it is in no job yet, and return whether it is so."""
        if self._worker.has_job(task_id):  # maybe of an earlier start, and just about to be taken
            return False
        return self._stop_intake(task_id) or self._worker.withdraw(task_id)

    def _stop_intake(self, task_id: str) -> bool:
        if (intake := self._intakes.pop(task_id, None)) is not None:
            intake.cancel()
        return intake is not None

    async def _deliver(self, outcome: Outcome) -> None:
        """Bring an outcome to the client."""
        if (offer := self._offers.get(outcome.task_id)) is None:  # nobody wants it any more
            return
        if (failure := outcome.failure) is not None:
            self._tell(failure)
        data = _pickled(failure) if failure is not None else outcome.result or b""
        try:
            await self._link.answer(offer, data, ok=failure is None)
        except SchedulerLostError as error:  # it is the end, and not for the worker to try again
            if not self._lost.done():
                self._lost.set_exception(error)
            await asyncio.Event().wait()
        self._offers.pop(outcome.task_id, None)

    def _tell(self, failure: Failure) -> None:
        """Tell the operator of what is hardly the user's fault, now and then where there is much of it."""
        now = time.monotonic()
        if failure.reason in {Reason.USER_ERROR, Reason.CANCELLED} or now < self._told.get(failure.reason, 0) + _TOLD_S:
            return
        self._told[failure.reason] = now
        _log.warning("a task failed; others that fail so are told of in %.0f s at the earliest: %s", _TOLD_S, failure)

    async def _listen(self) -> None:
        while True:
            match await self._link.receive():
                case Offer(task_id) if task_id in self._offers:
                    pass  # after a silence the scheduler took this worker for dead, and has given it the task anew
                case Offer() as offer:
                    self._offers[offer.task_id] = offer
                    if self._draining.is_set() and not self._worker.has_job(offer.task_id):
                        self._held.add(offer.task_id)
                    else:
                        self._intakes[offer.task_id] = self._group.create_task(self._take(offer))
                case Cancel(task_id, forced):
                    await self._link.confirm(task_id, self._cancel(task_id, forced=forced))
                case Deletion(object_ids):
                    for object_id in object_ids:
                        self._plain.pop(object_id, None)

    async def _take(self, offer: Offer) -> None:
        """Make an offer a task of the worker's."""
        async with self._gate:
            is_plain = await self._is_plain(offer.serializer)
            needed = (offer.function, *(() if is_plain else (offer.serializer,)), *offer.args)
            function, *args = [await self._blob(each) for each in needed]
            codec = "cloudpickle" if is_plain else "serializer"
            task = Task(offer.task_id, function, tuple(args), resources=self._resources, codec=codec, label="scaler")
            await self._worker.submit(task)
        del self._intakes[offer.task_id]  # from here on there is nothing that a cancel may interrupt

    def _cancel(self, task_id: str, *, forced: bool) -> Confirm:
        """Cancel a task, and return what to tell the scheduler.

        A client is told at once, and its job ends soon after: it waits for the word, for each of its tasks by itself
        (`cancel_all_futures` in client/agent/future_manager.py), and a backend may take its time. An unforced
        cancel takes back what has not been sent; a job may run already.
        """
        if task_id not in self._offers:
            return Confirm.UNKNOWN
        is_back = task_id in self._held or self._take_back(task_id)
        if not forced and not is_back:
            return Confirm.REFUSED
        del self._offers[task_id]
        self._held.discard(task_id)
        if not is_back:
            self._stop_intake(task_id)
            self._group.create_task(self._end([task_id]))
        return Confirm.CANCELLED

    async def _end(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            await self._worker.cancel(task_id)

    async def _end_all(self) -> None:
        offered, self._offers = self._offers, {}
        await self._end({*offered, *self._worker.in_jobs})
        await self._worker.drain()

    async def _clear_up(self) -> None:
        """Cancel what an earlier start has left and nobody wants any more, as far as can be told."""
        adopted = self._worker.in_jobs
        await asyncio.sleep(_UNCLAIMED_S)
        if unclaimed := [each for each in adopted if self._worker.has_job(each) and each not in self._offers]:
            _log.warning(
                "%d tasks of an earlier start were not offered again in %d hours, and their jobs are cancelled",
                len(unclaimed),
                _UNCLAIMED_S // 3600,
            )
            await self._end(unclaimed)

    async def _tidy(self) -> NoReturn:
        while True:
            await asyncio.sleep(_TIDY_S)
            await asyncio.to_thread(self._waiting.tidy)

    async def _is_plain(self, serializer: bytes) -> bool:
        if serializer not in self._plain:
            blob = await self._blob(serializer)
            self._plain[serializer] = await blob.read() in PLAIN_SERIALIZERS
        return self._plain[serializer]

    async def _blob(self, object_id: bytes) -> Blob:
        """Return an object as a blob; it is fetched once for all tasks that share it and are here at the time."""
        key = object_id.hex()
        if (found := self._objects.get(key)) is None:
            if key not in self._fetches:
                fetch = self._fetches[key] = self._group.create_task(self._fetch(key, object_id))
                fetch.add_done_callback(lambda _: self._fetches.pop(key))
            found = await asyncio.shield(self._fetches[key])  # others may wait for it, and the link bears no cancel
        return Blob(key, found.size, found.read)

    async def _fetch(self, key: str, object_id: bytes) -> _Object:
        data = await self._link.get(object_id)
        kept = await asyncio.to_thread(self._waiting.keep, data, size := len(data))
        found = self._objects[key] = _Object(size, kept)
        return found


class _DrainedError(Exception):
    """All that was started here has ended, and nothing more is."""


class _Object:
    """An object of Scaler's whose bytes are kept here, as long as a task needs them."""

    __slots__ = ("__weakref__", "_kept", "size")

    def __init__(self, size: int, kept: Kept) -> None:
        self.size, self._kept = size, kept

    async def read(self) -> bytes:
        return await self._kept()


class _Noted:
    """Pickles an exception that is pickled already, and adds a note; to unpickle takes no class but the exception's."""

    def __init__(self, pickled: bytes, note: str) -> None:
        self._pickled, self._note = pickled, note

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes], str, None, None, Callable[[Any, str], None]]:
        return pickle.loads, (self._pickled,), self._note, None, None, BaseException.add_note


def _pickled(failure: Failure) -> bytes:
    """Return what the client unpickles and raises (`deserialize_failure` in utility/serialization.py)."""
    if failure.exception is None:
        return pickle.dumps(RuntimeError(str(failure)))
    return pickle.dumps(_Noted(failure.exception, failure.evidence))
