"""`serve`: be a worker of an opengris-scaler cluster, whose tasks run as jobs of a batch backend.

Called by users, in a process of its own; needs the extra `scaler`. Neither clients nor the scheduler know the
difference: a client's functions run as jobs, its futures get the results, and its cancels end the jobs. What
passes by here are bytes, and none of them is unpickled.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from batchport.adapter import BatchWorkerAdapterBase
from batchport.errors import Reason
from batchport.hosts._waiting import Kept, WaitingBytes
from batchport.store import Store, open_store
from batchport.tasks import Blob, Failure, Outcome, Task
from batchport.worker import BatchWorker

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
    raise ImportError(
        f"batchport.hosts.scaler needs opengris-scaler 2.9: pip install 'batchport[scaler]' ({error})"
    ) from error

__all__ = ["SchedulerLostError", "serve"]

_AT_ONCE = 8
"""Tasks whose objects are fetched at the same time, so that not all of a burst is in memory."""


async def serve(  # noqa: PLR0913 - as a BatchWorker has, and the scheduler's address
    scheduler: str,
    adapter: BatchWorkerAdapterBase,
    store: Store | str,
    name: str,
    *,
    max_jobs: int = 1000,
    tasks_per_job: int = 1,
    **worker_options: Any,
) -> None:
    """Run what the scheduler at an address such as tcp://10.0.0.1:6378 gives to this worker, until told to stop.

    adapter, store, name, and what follows: as for BatchWorker. The scheduler has at most
    max_jobs * tasks_per_job tasks here at once, and keeps or gives to others what is more.

    Returns when a client shuts down the cluster, after the jobs have ended that nobody waits for any more.
    Cancelled, it tells the scheduler that it leaves, and its jobs live on. Started again under its name, it has
    those jobs again, and runs none of their tasks twice; but where there are other workers, the scheduler gives
    them the tasks at once, and they run there as well.

    A client must use Scaler's own serializer, else its tasks fail with words that say so. A function's exception
    arrives at the client as itself, with the job's traceback as a note; every other failure is a RuntimeError
    with the Failure's words, as a client need not have batchport.

    Raises SchedulerLostError when the scheduler cannot be reached, after about a minute of trying, or not any more;
    the jobs live on. Raises what a BatchWorker raises, and UsageError for an address that is none.
    """
    link = Link(scheduler, name, max_jobs * tasks_per_job)
    store = open_store(store) if isinstance(store, str) else store
    waiting = WaitingBytes(store, name)
    host = _Host(link, waiting)
    worker = BatchWorker(
        adapter, store, name, host.deliver, max_jobs=max_jobs, tasks_per_job=tasks_per_job, **worker_options
    )
    try:
        async with worker:
            await host.run(worker)
    finally:
        waiting.close()


class _Host:
    """Stands between the link's offers and the worker's tasks."""

    def __init__(self, link: Link, waiting: WaitingBytes) -> None:
        self._link, self._waiting = link, waiting
        self._offers: dict[str, Offer] = {}
        """What was offered and neither answered nor cancelled, by task id."""
        self._intakes: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        """Tasks whose outcome is still to come, and wanted by nobody."""
        self._early: dict[str, Outcome] = {}
        """Outcomes of tasks of an earlier start, which the scheduler has not offered again yet."""
        self._objects: WeakValueDictionary[str, _Object] = WeakValueDictionary()
        self._fetches: dict[str, asyncio.Task[_Object]] = {}
        self._plain: dict[bytes, bool] = {}
        """Whether the serializer with this id is Scaler's own."""
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def run(self, worker: BatchWorker) -> None:
        """Serve until told to stop."""
        lost: list[Exception] = []
        try:
            await asyncio.to_thread(self._waiting.remove_strays)
            await self._link.open()
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._link.beat())
                self._group.create_task(self._link.pump())
                self._group.create_task(self._listen(worker))
        except* ShutdownError:
            pass
        except* SchedulerLostError as group:
            lost.extend(group.exceptions)
        finally:
            await self._link.leave()
        if lost:
            raise lost[0]
        await self._end_all(worker)

    async def deliver(self, outcome: Outcome) -> None:
        """Bring an outcome to the client; the worker's `deliver`."""
        task_id = outcome.task_id
        if task_id in self._cancelled:
            self._cancelled.discard(task_id)
        elif (offer := self._offers.get(task_id)) is None:
            self._early[task_id] = outcome
        else:
            # Of an earlier start, and just offered again: a worker that has delivered would run the task once more.
            self._stop_intake(task_id)
            await self._answer(offer, outcome)

    async def _listen(self, worker: BatchWorker) -> None:
        while True:
            match await self._link.receive():
                case Offer(task_id) if task_id in self._offers:
                    pass  # after a silence the scheduler took this worker for dead, and has given it the task anew
                case Offer() as offer:
                    self._offers[offer.task_id] = offer
                    self._intakes[offer.task_id] = self._group.create_task(self._take(worker, offer))
                case Cancel(task_id, forced):
                    await self._link.confirm(task_id, self._cancel(worker, task_id, forced=forced))
                case Deletion(object_ids):
                    for object_id in object_ids:
                        self._plain.pop(object_id, None)

    async def _take(self, worker: BatchWorker, offer: Offer) -> None:
        """Make an offer a task of the worker's, or answer it."""
        outcome = self._early.pop(offer.task_id, None)
        if outcome is None:
            async with self._gate:
                if await self._is_plain(offer.serializer):
                    function, *args = [await self._blob(each) for each in (offer.function, *offer.args)]
                    await worker.submit(Task(offer.task_id, function, tuple(args), label="scaler"))
                else:
                    outcome = Outcome(offer.task_id, failure=_OTHER_SERIALIZER)
        del self._intakes[offer.task_id]  # from here on there is nothing that a cancel may interrupt
        if outcome is not None:
            await self._answer(offer, outcome)

    def _cancel(self, worker: BatchWorker, task_id: str, *, forced: bool) -> Confirm:
        """Cancel a task, and return what to tell the scheduler.

        A client is told at once, and its job ends soon after: it waits for the word, for each of its tasks by itself
        (`cancel_all_futures` in client/agent/future_manager.py), and a backend may take its time. An unforced
        cancel is refused, as nothing tells here whether a task has been sent.
        """
        if task_id not in self._offers:
            return Confirm.UNKNOWN
        if not forced:
            return Confirm.REFUSED
        del self._offers[task_id]
        self._stop_intake(task_id)
        self._group.create_task(self._end(worker, task_id))
        return Confirm.CANCELLED

    def _stop_intake(self, task_id: str) -> None:
        if (intake := self._intakes.pop(task_id, None)) is not None:
            intake.cancel()

    async def _end(self, worker: BatchWorker, task_id: str) -> None:
        self._cancelled.add(task_id)
        if not await worker.cancel(task_id):  # it was not taken in yet, or its outcome was just under way
            self._cancelled.discard(task_id)

    async def _end_all(self, worker: BatchWorker) -> None:
        for task_id in {*self._offers, *worker.in_jobs}:
            await self._end(worker, task_id)
        self._offers.clear()
        await worker.drain()

    async def _answer(self, offer: Offer, outcome: Outcome) -> None:
        failure = outcome.failure
        data = _pickled(failure) if failure is not None else outcome.result or b""
        await self._link.answer(offer, data, ok=failure is None)
        self._offers.pop(offer.task_id, None)

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


class _Object:
    """An object of Scaler's whose bytes are kept here, as long as a task needs them."""

    __slots__ = ("__weakref__", "_kept", "size")

    def __init__(self, size: int, kept: Kept) -> None:
        self.size, self._kept = size, kept

    async def read(self) -> bytes:
        return await self._kept()


_OTHER_SERIALIZER = Failure(
    Reason.ENVIRONMENT,
    "The client uses a serializer of its own, and jobs read and write what Scaler's default one does",
    advice="Leave serializer= out of Client(...).",
)


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
