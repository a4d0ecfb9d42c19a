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
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from batchport.errors import BatchportError
from batchport.hosts._progress import Bar, Progress
from batchport.hosts.futures import TaskFuture
from batchport.tasks import Outcome, Task
from batchport.worker import BatchWorker

__all__ = ["BrokenWorkerError", "WorkerLoop", "join_or_cancel"]

_log = logging.getLogger("batchport.executor")

_living: set[WorkerLoop] = set()


class BrokenWorkerError(BatchportError, BrokenExecutor):
    """The worker of an executor has crashed, by a bug; what became of the tasks is not known."""


class WorkerLoop:
    """Runs one worker until it is closed and all its work is done.

    The constructor returns once the worker is open, and raises what making or opening it raises; the threads
    end then. `make_worker` is given what the worker is to deliver to. `temporary` is a folder to remove at the
    end. Two threads: the loop's, where only the worker runs, and one where results are unpickled and callbacks
    run, since those may take their time or wait.
    """

    def __init__(
        self,
        make_worker: Callable[[Callable[[Outcome], Awaitable[None]]], BatchWorker],
        *,
        progress: bool = False,
        temporary: Path | None = None,
    ) -> None:
        self.worker = make_worker(self._deliver)
        self._bar = Bar(self._progress) if progress else None
        self._temporary = temporary
        # Re-entrant: the garbage collector may call `close` in a thread that is in here already.
        self._lock = threading.RLock()
        self._inbox: deque[Task] = deque()
        self._unfinished: dict[str, TaskFuture[Any]] = {}
        self._submitted = 0
        self._outcomes: SimpleQueue[Outcome | None] = SimpleQueue()
        self._cancels: set[asyncio.Task[bool]] = set()
        self._closed = False
        self._broken: BaseException | None = None
        self._opened: Future[None] = Future()
        self._news = asyncio.Event()
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
        future: TaskFuture[Any] = TaskFuture(task.id, self)
        with self._lock:
            if self._broken is not None:
                raise self._crash()
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._bar is not None and not self._unfinished:
                self._bar.show()
            self._submitted += 1
            self._unfinished[task.id] = future
            self._inbox.append(task)
            if not self._news_is_out:  # one call a burst, however many tasks
                self._news_is_out = True
                self._loop.call_soon_threadsafe(self._tell)
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

    def close(self) -> None:
        """Take no more tasks; the loop ends after its work. Does not wait, and may be called again."""
        with self._lock:
            self._closed = True
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._tell)

    def join(self) -> None:
        """Wait until all work is done and nothing of the loop is left. From a callback, only for the loop."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def cancel_all(self) -> None:
        """Cancel every task, running or not."""
        for future in self.unfinished():
            future.cancel()

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
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        with self._lock:
            self._closed, self._broken = True, error
        if not self._opened.done():
            self._opened.set_exception(error or RuntimeError("the worker ended before it was open"))
        elif error is not None:
            _log.error("the worker %s ended badly", self.worker.name, exc_info=error)
        self._outcomes.put(None)

    async def _main(self) -> None:
        async with self.worker:
            self._opened.set_result(None)
            closed = False
            while not closed:
                await self._news.wait()
                self._news.clear()
                closed = self._closed  # looked at first: after it, nothing is added to the inbox
                while self._inbox:
                    await self._submit(self._inbox.popleft())
            await self.worker.drain()
            if self._cancels:  # they may still write to the store
                await asyncio.wait(self._cancels)

    async def _submit(self, task: Task) -> None:
        if task.id in self._unfinished:
            await self.worker.submit(task)
            if task.id not in self._unfinished:  # cancelled while the worker had no room for it
                await self.worker.cancel(task.id)

    async def _deliver(self, outcome: Outcome) -> None:
        if (future := self._unfinished.get(outcome.task_id)) is not None:
            future.keep_output(outcome.output)
        self._outcomes.put(outcome)

    def _tell(self) -> None:
        self._news_is_out = False
        self._news.set()

    def _cancel(self, task_id: str) -> None:
        task = self._loop.create_task(self.worker.cancel(task_id))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    def _settle_all(self) -> None:
        for outcome in iter(self._outcomes.get, None):
            self._settle(outcome.task_id, outcome)
            del outcome  # or the last result would be kept while the next is waited for
        for future in self.unfinished():
            self._settle(future.task_id, self._crash())
        if self._bar is not None:
            self._bar.close()
        _living.discard(self)

    def _settle(self, task_id: str, end: Outcome | BrokenWorkerError) -> None:
        future = self.take(task_id)
        if future is None:  # it was cancelled, or this outcome is a repeat
            return
        try:
            future.settle(end)
        except BaseException:  # noqa: BLE001 - it is logged, and the other futures need this thread
            # The standard library logs a callback's Exception; SystemExit and the like come through.
            _log.exception("a callback of task %s raised", task_id)

    def _crash(self) -> BrokenWorkerError:
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
