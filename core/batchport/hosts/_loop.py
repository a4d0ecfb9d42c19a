"""A BatchWorker on an event loop in a thread of its own: tasks go in from any thread, futures are settled in another.

Made by BatchExecutor. Nothing here refers to the executor, so that one that nobody holds any more can be
collected; its loop then ends after its work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from batchport.errors import BatchportError, StoreError, SupersededError
from batchport.hosts._durable import Run, is_answer
from batchport.hosts._progress import Bar, Progress
from batchport.hosts._waiting import WaitingBytes
from batchport.hosts.futures import TaskFuture
from batchport.store import FolderStore, Keys, Store
from batchport.tasks import Outcome, Task
from batchport.worker import BatchWorker
from batchport.worker.calls import Backoff

__all__ = ["BrokenWorkerError", "WorkerLoop", "join_or_cancel"]

_log = logging.getLogger("batchport.executor")

_living: set[WorkerLoop] = set()

_READERS = 8
"""Threads that read kept outcomes, where a script that is run again asks for many."""
_SILENT_S = 2.0
"""Seconds that leaving may take before it says what it waits for."""


class BrokenWorkerError(BatchportError, BrokenExecutor):
    """The worker of an executor has ended before its work: by a bug, or since it was started again elsewhere."""


class WorkerLoop:
    """Runs one worker until it is closed and all its work is done.

    The constructor returns once the worker is open, and raises what making or opening it raises; the threads
    end then. `make_worker` is given what the worker is to deliver to. `waiting` holds the bytes of calls.
    `run` is that of a durable executor: outcomes are kept in it, and calls whose outcome is there are not sent.
    `temporary` is a folder to remove at the end. Two threads: the loop's, where only the worker runs, and one
    where results are unpickled and callbacks run, since those may take their time or wait.
    """

    def __init__(
        self,
        make_worker: Callable[[Callable[[Outcome], Awaitable[None]]], BatchWorker],
        waiting: WaitingBytes,
        *,
        run: Run | None = None,
        progress: bool = False,
        temporary: Path | None = None,
    ) -> None:
        self.worker = make_worker(self._deliver)
        self.run = run
        self._waiting = waiting
        self._early: dict[str, Outcome] = {}
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=f"batchport-{self.worker.name}-kept")
        self._bar = Bar(self._progress) if progress else None
        self._temporary = temporary
        # Re-entrant: the garbage collector may call `close` in a thread that is in here already.
        self._lock = threading.RLock()
        self._inbox: deque[Task] = deque()
        self._unfinished: dict[str, TaskFuture[Any]] = {}
        self._submitted = 0
        self._outcomes: SimpleQueue[Outcome | None] = SimpleQueue()
        self._cancels: set[asyncio.Task[bool]] = set()
        self._closed = self._clean = self._detached = False
        self._broken: BaseException | None = None
        self._opened: Future[None] = Future()
        self._news, self._leave, self._hurry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._begun = asyncio.Event()
        self._news_is_out = False
        self._loop = asyncio.new_event_loop()
        self._threads = (
            threading.Thread(target=self._run, name=f"batchport-{self.worker.name}"),
            threading.Thread(target=self._settle_all, name=f"batchport-{self.worker.name}-results"),
        )
        for thread in self._threads:
            thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.close()
            raise

    def send(self, task: Task) -> TaskFuture[Any]:
        """Hand a task over, and return its future.

        Raises RuntimeError once the loop is closed, and BrokenWorkerError if its worker has crashed.
        """
        with self._lock:
            future = self._new_future(task.id)
            self._inbox.append(task)
            if not self._news_is_out:  # one call a burst, however many tasks
                self._news_is_out = True
                self._loop.call_soon_threadsafe(self._tell)
        return future

    def recall(self, task_id: str) -> TaskFuture[Any]:
        """Return the future of a call whose outcome is kept. Raises as `send` does."""
        with self._lock:
            future = self._new_future(task_id)
            self._readers.submit(self._read_kept, task_id)
        return future

    def check_open(self, what: str) -> None:
        """Raise RuntimeError once the loop is closed, and BrokenWorkerError if its worker has crashed."""
        if self._broken is not None:
            raise self._crash()
        if self._closed:
            raise RuntimeError(f"cannot {what} after shutdown")

    def _new_future(self, task_id: str) -> TaskFuture[Any]:
        self.check_open("schedule new futures")
        if self.run is not None:
            self.run.made(task_id)
        if self._bar is not None and not self._unfinished:
            self._bar.show()
        self._submitted += 1
        future = self._unfinished[task_id] = TaskFuture(task_id, self)
        return future

    def take(self, task_id: str) -> TaskFuture[Any] | None:
        """Take a future out: who gets it, and nobody else, brings it to its end."""
        with self._lock:
            future = self._unfinished.pop(task_id, None)
            if self._bar is not None and future is not None and not self._unfinished:
                self._bar.hide()
        return future

    def unfinished(self) -> list[TaskFuture[Any]]:
        """Return the futures that are not done, in the order of their submission."""
        with self._lock:
            return list(self._unfinished.values())

    def cancel(self, task_id: str) -> None:
        """Have a task ended whose future was taken."""
        with suppress(RuntimeError):  # the loop has ended, and with it every job
            self._loop.call_soon_threadsafe(self._cancel, task_id)

    def output(self, task_id: str) -> str:
        """Return what a task has printed so far; "" if there is nothing, or no worker any more to ask."""
        asked = self.worker.output(task_id)
        try:
            answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError:
            asked.close()
            return ""
        while self._threads[0].is_alive():
            with suppress(TimeoutError, CancelledError):  # the second at the loop's end
                return answer.result(timeout=1)
        return ""

    def close(self, *, clean: bool = False) -> None:
        """Take no more tasks; the loop ends after its work. Does not wait, and may be called again.

        `clean`: the script has what it wanted, and the run of a durable executor is over once all is done.
        """
        with self._lock:
            self._closed = True
            self._clean |= clean
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._tell)

    def join(self) -> None:
        """Wait until all work is done and nothing of the loop is left. From a callback, only for the loop."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def detach(self) -> None:
        """Have the loop end with its jobs living on, and wait for that; on KeyboardInterrupt submit nothing more."""
        with self._lock:
            self._closed = self._detached = True
        try:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._leave.set)
            self.join()
        except KeyboardInterrupt:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hurry.set)
            self.join()
            raise

    def cancel_all(self) -> None:
        """Cancel every task, running or not, also those of an earlier start that no call has asked for yet."""
        self._clean = False
        for future in self.unfinished():
            future.cancel()
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._cancel_in_jobs)

    def _run(self) -> None:
        _living.add(self)
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        except BaseException as crash:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            error = crash
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]  # the worker's task group wraps even a single one
        with self._lock:
            self._closed, self._broken = True, error  # first: the readers try on for as long as this is not known
        self._readers.shutdown()
        if self.run is not None and self._clean and not self._detached and error is None:
            self._end_run(self.run)  # last of all: until then a script that is killed can be run again
        self._waiting.close()
        if self.run is None:
            _remove_traces(self._waiting.store, Keys(self.worker.name))
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if not self._opened.done():
            self._opened.set_exception(error or RuntimeError("the worker ended before it was open"))
        elif error is not None:
            if isinstance(error, SupersededError):
                _log.error("%s", error)
            else:
                _log.error("the worker %s ended badly", self.worker.name, exc_info=error)
        self._outcomes.put(None)

    async def _main(self) -> None:
        async with self.worker:
            living = self.worker.in_jobs  # before anything is awaited: one that has ended already is soon out of them
            if self.run is not None:
                await asyncio.to_thread(self._waiting.remove_strays)
                for task_id in await asyncio.to_thread(self.run.begin, living):
                    self._cancel(task_id)
            self._begun.set()
            self._opened.set_result(None)
            work = asyncio.ensure_future(self._work())
            try:
                if not await _is_done_before(self._leave, work):
                    await _is_done_before(self._hurry, asyncio.ensure_future(self._send_off()))
            finally:
                work.cancel()
            if self._cancels:  # they may still write to the store
                await asyncio.wait(self._cancels)

    async def _work(self) -> None:
        """Take in tasks until the loop is closed, and wait until all have their outcomes."""
        closed = False
        while not closed:
            await self._news.wait()
            self._news.clear()
            closed = self._closed  # looked at first: after it, nothing is added to the inbox
            while self._inbox:
                await self._submit(self._inbox.popleft())
        await self.worker.drain()

    async def _send_off(self) -> None:
        """Wait until the backend has as many of the calls as it may."""
        words = "waiting up to a minute for the backend to take the calls; Ctrl-C leaves at once"
        say = self._loop.call_later(_SILENT_S, _log.warning, words)
        try:
            while await self.worker.sent() and self._inbox:  # noqa: ASYNC110 - the other coroutine empties it
                await asyncio.sleep(0.01)
        finally:
            say.cancel()
        assert self.run is not None  # no other executor can be left
        without_job = self._unfinished.keys() - self.worker.in_jobs
        if left := [each for each in without_job if not self.run.keeps(each)]:
            _log.warning("%d calls are not at the backend yet; they are sent when the script is run again", len(left))

    def _end_run(self, run: Run) -> None:
        try:
            run.end()
        except StoreError as error:
            _log.warning(
                "the outcomes of %s stay in the store, and the script's next run gets them: %s", self.worker.name, error
            )

    async def _submit(self, task: Task) -> None:
        if task.id not in self._unfinished:
            return
        if (early := self._early.pop(task.id, None)) is not None:
            self._outcomes.put(early)
        elif self.run is not None and self.run.keeps(task.id):
            self._readers.submit(self._read_kept, task.id)
        else:
            await self.worker.submit(task)
            if task.id not in self._unfinished:  # cancelled while the worker had no room for it
                await self.worker.cancel(task.id)

    async def _deliver(self, outcome: Outcome) -> None:
        if (future := self._unfinished.get(outcome.task_id)) is not None:
            future.keep_output(outcome.output)
        await self._begun.wait()  # what was adopted may have ended already, and is of a run that is not known yet
        if self.run is not None and self.run.has(outcome.task_id):
            await self._keep(self.run, outcome)
        self._outcomes.put(outcome)

    async def _keep(self, run: Run, outcome: Outcome) -> None:
        """Put an answer into the store, and hold any other outcome for a call that the script has yet to make."""
        if is_answer(outcome):
            # The worker does not know the task any more, and would run it if the call came just now.
            self._early[outcome.task_id] = outcome
            # A worker that is told to leave does so at once, and the answer must be in the store all the same.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, run.write, outcome))
            self._early.pop(outcome.task_id, None)
        elif run.is_to_come(outcome.task_id):
            self._early[outcome.task_id] = outcome

    def _read_kept(self, task_id: str) -> None:
        assert self.run is not None
        backoff = Backoff(most=5.0)
        while task_id in self._unfinished and not self._detached and self._broken is None:
            try:
                self._outcomes.put(self.run.read(task_id))
            except StoreError as error:
                delay = backoff.next()
                _log.warning("can't read the outcome of %s, will try again in %.0f s: %s", task_id, delay, error)
                time.sleep(delay)
            else:
                return

    def _tell(self) -> None:
        self._news_is_out = False
        self._news.set()

    def _cancel(self, task_id: str) -> None:
        task = self._loop.create_task(self.worker.cancel(task_id))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    def _cancel_in_jobs(self) -> None:
        for task_id in self.worker.in_jobs:
            self._cancel(task_id)

    def _settle_all(self) -> None:
        for outcome in iter(self._outcomes.get, None):
            self._settle(outcome.task_id, outcome)
            self._waiting.tidy()
            del outcome  # or the last result would be kept while the next is waited for
        for future in self.unfinished():
            self._settle(future.task_id, None if self._broken is None else self._crash())
        if self._bar is not None:
            self._bar.close()
        _living.discard(self)

    def _settle(self, task_id: str, end: Outcome | BrokenWorkerError | None) -> None:
        future = self.take(task_id)
        if future is None:  # it was cancelled, or this outcome is a repeat
            return
        try:
            if end is None:
                future.abandon()
            else:
                future.settle(end)
        except BaseException:  # noqa: BLE001 - it is logged, and the other futures need this thread
            # The standard library logs a callback's Exception; SystemExit and the like come through.
            _log.exception("a callback of task %s raised", task_id)

    def _crash(self) -> BrokenWorkerError:
        if isinstance(self._broken, SupersededError):
            return BrokenWorkerError(str(self._broken))
        error = BrokenWorkerError(
            f"the worker {self.worker.name!r} has crashed ({self._broken!r}), and what became of this task is not "
            "known: its job may still run at the backend. This is a bug, of the adapter's or of batchport's; "
            "the log of 'batchport.executor' has the traceback"
        )
        error.__cause__ = self._broken
        return error

    def _progress(self) -> Progress:
        counts = self.worker.counts
        return Progress(self._submitted, len(self._unfinished), counts.failed, counts.sent)


async def _is_done_before(event: asyncio.Event, work: asyncio.Future[None]) -> bool:
    """Wait for some work or for an event, and return whether the work is done. Raises what it raises."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
        return work.done()
    finally:
        waiting.cancel()


def _remove_traces(store: Store, keys: Keys) -> None:
    """Remove what a worker leaves for its next start, where there will be none: its name was made up for it."""
    with suppress(StoreError):
        store.delete([keys.birth, *(f"{keys.epochs}/{number}" for number in store.names(keys.epochs))])
    if isinstance(store, FolderStore):
        folder = store.root / keys.worker
        for each in (*folder.glob("*"), folder):
            with suppress(OSError):  # not empty: a job that was killed in the middle of a write has left its draft
                each.rmdir()


def join_or_cancel(*loops: WorkerLoop) -> None:
    """Wait until these loops are done; on KeyboardInterrupt cancel all tasks, wait for their jobs, and raise it."""
    try:
        for loop in loops:
            loop.join()
    except KeyboardInterrupt:
        for loop in loops:
            loop.cancel_all()
        for loop in loops:
            loop.join()
        raise


def _finish_all() -> None:
    """Wait for all work when the interpreter exits, as the standard library's executors do."""
    loops = list(_living)
    for loop in loops:
        loop.close()
    join_or_cancel(*loops)


# Plain atexit is too late: no thread can be started then (3.12 on), and the worker's thread pool is shut: the
# pool's own hook was registered when the worker's module was imported, and so runs after this one.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001 - concurrent.futures uses it too
os.register_at_fork(after_in_child=_living.clear)  # a fork has none of the threads, and must not wait for them
