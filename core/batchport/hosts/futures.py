"""TaskFuture: what `BatchExecutor.submit` returns, and how an outcome becomes its result or exception.

Made by executor.py, settled by `_loop.py`.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from batchport.errors import Reason, TaskFailedError
from batchport.tasks import Failure, Outcome

if TYPE_CHECKING:
    from batchport.hosts._loop import WorkerLoop

__all__ = ["RemoteTraceback", "TaskFuture"]

T = TypeVar("T")


class RemoteTraceback(Exception):  # noqa: N818 - it is no error: it shows the job's traceback as an exception's cause
    """The traceback of an exception in its job, in words; the `__cause__` of that exception here."""

    def __str__(self) -> str:
        """Return the traceback, set off as `concurrent.futures.process` does it."""
        return f'\n"""\n{self.args[0]}\n"""'


class TaskFuture(Future[T]):
    """A call that runs as a task on a batch backend.

    It is a `concurrent.futures.Future` in all but this: a job can be ended, so `cancel` also ends a task
    that runs, and `running` is what the backend said when it was last asked. All callbacks of an executor run
    in one thread, so one that waits for another of its futures waits for ever.

    `result` raises the function's own exception, with the job's traceback as its cause; MemoryError is such
    an exception. It raises TaskFailedError, whose `failure` has reason, evidence and advice, where there is
    none: the job died or was refused, the function called sys.exit, or what it returned or raised cannot be
    unpickled here.
    """

    def __init__(self, task_id: str, loop: WorkerLoop) -> None:
        # All that the base class's own would set, but for what `_MADE_WHEN_NEEDED` names, which takes 1.4 KB.
        self._state = "PENDING"
        self._result = None
        self._exception = None
        self.task_id = task_id
        self._loop = loop
        self._output: str | None = None

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not there yet. Nobody waits for most of many futures, one by one.
        if name not in _MADE_WHEN_NEEDED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        with _making:
            return self.__dict__.setdefault(name, _MADE_WHEN_NEEDED[name]())

    def cancel(self) -> bool:
        """End the task, whether or not it runs; return False only if it is done already.

        Who waits for it is told at once. Its job ends soon after; `shutdown` waits for that.
        """
        if not super().cancel():
            return False
        if self._loop.take(self.task_id) is not None:  # else another thread has it, and tells who waits
            self.set_running_or_notify_cancel()
            self._loop.cancel(self.task_id)
        return True

    def abandon(self) -> None:
        """Be cancelled although the task is not: it lives on, and another start of the script gets its outcome.

        Called by whoever took the future from the loop.
        """
        super().cancel()
        self.set_running_or_notify_cancel()

    def running(self) -> bool:
        """Return whether the task's job runs, as far as is known; the tasks of a pack all run or none."""
        return not self.done() and self._loop.worker.running(self.task_id)

    def output(self) -> str:
        """Return the end (64 KiB) of what the task has printed so far, by `print`, logging or a subprocess.

        While it runs, that is up to about a second old. Raises StoreError if the store can't be read.
        """
        printed = "" if self._output is not None else self._loop.output(self.task_id)
        # It may have ended while it was asked about.
        return printed if self._output is None else self._output

    def keep_output(self, text: str) -> None:
        """Note all that the task printed; called on the loop before the future is settled."""
        self._output = text

    def settle(self, end: Outcome | Exception) -> None:
        """Set the result or the exception, unless the future was cancelled since it was taken; callbacks run here.

        Called by whoever took the future from the loop, once. `end` is an Exception where there is no outcome.
        """
        value: Any = None
        error: Exception | None
        if isinstance(end, Outcome):
            self.keep_output(end.output)
            value, error = _opened(end)
        else:
            error = end
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            self.set_running_or_notify_cancel()


_MADE_WHEN_NEEDED: dict[str, Callable[[], Any]] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
}
_making = threading.RLock()


def _opened(outcome: Outcome) -> tuple[Any, Exception | None]:
    """Return what a task returned, or the exception to raise for it."""
    if outcome.failure is not None:
        return None, _exception(outcome.failure)
    try:
        return pickle.loads(outcome.result or b""), None
    except BaseException as error:  # noqa: BLE001 - unpickling runs the user's code, which may even call sys.exit
        failure = Failure(
            Reason.ENVIRONMENT,
            f"The task succeeded, but its result cannot be unpickled here: {_words(error)}",
            "".join(traceback.format_exception(error)),
            "Import here what the result is made of, in the job's release, or return something simpler.",
        )
        return None, TaskFailedError(failure)


def _exception(failure: Failure) -> Exception:
    if failure.exception is None:
        return TaskFailedError(failure)
    why = "it is no Exception"
    try:
        error = pickle.loads(failure.exception)
    except BaseException as failed:  # noqa: BLE001 - as above
        why = _words(failed)
    else:
        if isinstance(error, Exception):
            error.__cause__ = RemoteTraceback(failure.evidence)
            return error
    advice = f"The exception itself cannot be unpickled here ({why}). {failure.advice}"
    return TaskFailedError(replace(failure, exception=None, advice=advice.strip()))


def _words(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error}"
