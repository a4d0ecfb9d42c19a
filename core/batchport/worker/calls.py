"""Asking the adapter: plain or async methods, off the event loop, each with a deadline, all counted.

Called by the engine alone, which never touches an adapter in any other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from batchport.adapter import CONTRACT, BatchWorkerAdapterBase
from batchport.errors import BatchportError, UsageError
from batchport.jobs import JobSpec, JobStatus, Limits

__all__ = ["Backoff", "Calls", "UnclearAnswerError", "overrides"]

_T = TypeVar("_T")


class UnclearAnswerError(BatchportError):
    """A call that did not answer in time, or whose answer is not what the contract asks for."""


def overrides(adapter: BatchWorkerAdapterBase, method: str) -> bool:
    """Return whether the adapter has its own version of an optional method."""
    return getattr(type(adapter), method) is not getattr(BatchWorkerAdapterBase, method)


class Backoff:
    """How long to wait after the nth failure in a row: doubling from `first` to `most` seconds, with jitter."""

    def __init__(self, first: float = 1.0, most: float = 60.0) -> None:
        self.first, self.most, self.failures = first, most, 0

    def next(self) -> float:
        """Count one more failure and return the seconds to wait: between half of the step and all of it."""
        step: float = min(self.most, self.first * 2 ** min(self.failures, 16))
        self.failures += 1
        return step * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self.failures = 0


class Calls:
    """All calls to one adapter. `counts` says how often each method was called.

    Plain methods run in threads, at most `limits.parallel_calls` at once (one before `open`).
    """

    def __init__(self, adapter: BatchWorkerAdapterBase, deadline_s: float) -> None:
        self._adapter = adapter
        self._deadline_s = deadline_s
        self._plain = asyncio.Semaphore(1)
        self._threads = _Threads()
        self._next_submit = 0.0
        self.counts: Counter[str] = Counter()
        _check_contract(adapter)
        for method, arguments in _HOOKS.items():
            _check_signature(adapter, method, arguments)

    limits: Limits
    """What the backend accepts: as it was when the adapter was opened, whatever the adapter does later."""

    async def open(self, worker: str) -> None:
        """Open the adapter and take its limits."""
        try:
            await self._call("open", None, worker)
            limits = getattr(self._adapter, "limits", None)
            if not isinstance(limits, Limits):
                raise UsageError(
                    f"{type(self._adapter).__name__}.limits is {limits!r} after open(): "
                    "set it to a batchport.Limits, in the class or in open()"
                )
            if limits.array_size > 1 and type(self._adapter).element_id is BatchWorkerAdapterBase.element_id:
                raise UsageError(
                    f"{type(self._adapter).__name__} has limits.array_size={limits.array_size} and no element_id: "
                    "implement it, to say how the backend names one element, or set array_size=1"
                )
        except BaseException:
            self._threads.close()
            raise
        self.limits = limits
        self._plain = asyncio.Semaphore(limits.parallel_calls)

    async def close(self) -> None:
        """Close the adapter."""
        try:
            await self._call("close", None)
        finally:
            self._threads.close()

    def element_id(self, job_id: str, index: int) -> str:
        """Return how the backend names an element of an array."""
        return self._adapter.element_id(job_id, index)

    async def submit_job(self, job: JobSpec, may_go: Callable[[], Awaitable[None]] | None = None) -> str:
        """Submit a job, no faster than the backend likes, and return its id.

        `may_go` is awaited when it is this call's turn; what it raises keeps the call from being made.
        """
        if rate := self.limits.submits_per_second:
            now = time.monotonic()
            self._next_submit = max(now, self._next_submit + 1 / rate)
            await asyncio.sleep(self._next_submit - now)
        job_id = await self._call("submit_job", None, job, may_go=may_go)
        if not isinstance(job_id, str) or not job_id:
            raise UnclearAnswerError(f"submit_job returned {job_id!r}, where the job's id (a str) belongs")
        return job_id

    async def poll_jobs(self, job_ids: Sequence[str]) -> list[JobStatus]:
        """Ask for these jobs' statuses; they must be within `limits.poll_batch`."""
        return await self._listed("poll_jobs", JobStatus, job_ids)

    async def find_jobs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Look jobs up by name. Raises NotImplementedError where the backend can't be asked."""
        return await self._listed("find_jobs", tuple, names)

    async def inspect_job(self, job_id: str) -> JobStatus | None:
        """Return what more there is to tell of one job."""
        return cast("JobStatus | None", await self._call("inspect_job", None, job_id))

    async def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        """Cancel these jobs: in one call where the adapter can, else one by one."""
        if not job_ids:
            return
        if overrides(self._adapter, "cancel_jobs"):
            await self._call("cancel_jobs", None, job_ids)
            return
        failed: Exception | None = None
        for job_id in job_ids:
            try:
                await self._call("cancel_job", None, job_id)
            except Exception as error:  # noqa: BLE001 - one that can't be cancelled must not keep the others
                failed = failed or error
        if failed is not None:
            raise failed

    async def _listed(self, method: str, kind: type[_T], argument: Sequence[str]) -> list[_T]:
        answer = await self._call(method, list, argument)
        if not isinstance(answer, list) or not all(isinstance(each, kind) for each in answer):
            raise UnclearAnswerError(f"{method} returned {answer!r:.200}, where {kind.__name__} items belong")
        return answer

    async def _call(
        self,
        method: str,
        collect: Callable[[Iterable[Any]], object] | None,
        *arguments: object,
        may_go: Callable[[], Awaitable[None]] | None = None,
    ) -> object:
        """Call one method. `collect` makes a list of its answer in the same thread: a generator works there."""
        if not overrides(self._adapter, method) and method not in _REQUIRED:
            # The defaults do nothing or say "not implemented": no call to count, no thread to start.
            return getattr(self._adapter, method)(*arguments)
        function = getattr(self._adapter, method)
        is_plain = not inspect.iscoroutinefunction(function)
        deadline = asyncio.timeout(None)
        try:
            async with self._plain if is_plain else contextlib.nullcontext():
                if may_go is not None:
                    await may_go()
                self.counts[method] += 1
                async with deadline:
                    # From now on: what waits for its turn behind slow calls has not been asked yet.
                    deadline.reschedule(asyncio.get_running_loop().time() + self._deadline_s)
                    if is_plain:
                        return await self._threads.run(lambda: _collected(function(*arguments), collect))
                    return _collected(await function(*arguments), collect)
        except TimeoutError as error:
            if not deadline.expired():  # the adapter's own
                raise
            raise UnclearAnswerError(f"{method} gave no answer within {self._deadline_s:g} s") from error


_HOOKS = {
    "open": ("worker",),
    "submit_job": ("job",),
    "poll_jobs": ("job_ids",),
    "cancel_job": ("job_id",),
    "find_jobs": ("names",),
    "inspect_job": ("job_id",),
    "cancel_jobs": ("job_ids",),
    "element_id": ("job_id", "index"),
    "check": (),
    "close": (),
}
_OLDEST_CONTRACT = 1
_REQUIRED = ("submit_job", "poll_jobs", "cancel_job")


def _check_contract(adapter: BatchWorkerAdapterBase) -> None:
    stated, name = adapter.contract, type(adapter).__name__
    if stated > CONTRACT:
        raise UsageError(
            f"{name} was written for version {stated} of the adapter contract, and this batchport knows {CONTRACT}: "
            "install a newer batchport"
        )
    if stated < _OLDEST_CONTRACT:
        raise UsageError(
            f"{name} was written for version {stated} of the adapter contract, and this batchport needs "
            f"{_OLDEST_CONTRACT}: run `copier update` in its project, and follow the changelog"
        )


def _check_signature(adapter: BatchWorkerAdapterBase, method: str, arguments: tuple[str, ...]) -> None:
    function = getattr(adapter, method)
    signature = inspect.signature(function)
    should = f"def {method}({', '.join(('self', *arguments))})"
    name = f"{type(adapter).__name__}.{method}"
    if inspect.isasyncgenfunction(function):
        raise UsageError(f"{name} is an async generator; return a list instead of yielding, in an async {should}")
    try:
        signature.bind(*arguments)
    except TypeError:
        raise UsageError(f"{name}{signature} does not take what the worker passes; write: {should}") from None


def _collected(answer: object, collect: Callable[[Iterable[Any]], object] | None) -> object:
    return collect(answer) if collect and isinstance(answer, Iterable) else answer


class _Threads:
    """Threads that are used again once their call is over.

    No pool of the standard library's: one that hangs is left behind here, and the next call gets another;
    and at the end of the process nobody waits for it.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Callable[[], None] | None]] = []
        self._closed = False

    def run(self, function: Callable[[], object]) -> Awaitable[object]:
        """Call a function in a thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        calls = self._idle.pop() if self._idle else self._start()

        def settle(answer: object, error: BaseException | None) -> None:
            if future.done():  # its deadline passed, and nobody waits any more
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        def work() -> None:
            answer, failed = None, None
            try:
                answer = function()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the call was made
                # A StopIteration cannot be set on a future; asyncio would raise here and the caller hang.
                failed = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
            self._idle.append(calls)  # before the answer is told, so that the next call finds it
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker gave up on this call long ago
                loop.call_soon_threadsafe(settle, answer, failed)

        calls.put(work)
        return future

    def close(self) -> None:
        """Let the threads end; one that is in a call ends after it."""
        self._closed = True
        for calls in self._idle:
            calls.put(None)

    def _start(self) -> SimpleQueue[Callable[[], None] | None]:
        calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

        def serve() -> None:
            while (work := calls.get()) is not None:
                work()
                del work  # and what it refers to, while there is nothing to do
                if self._closed:
                    break

        threading.Thread(target=serve, name="batchport-adapter", daemon=True).start()
        return calls
