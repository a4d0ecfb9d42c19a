"""The loop over the tasks of a job: what is skipped, run, ended and committed, and the exit code.

Called by `__main__`. Everything that is written to the store, and every signal that the runner gets, is
handled here.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TypeVar

from batchport.envelope import Envelope
from batchport.errors import EnvelopeError, StoreError, UsageError
from batchport.runner.child import Answer, Child
from batchport.runner.memory import out_of_memory_kills
from batchport.runner.payload import Call, Payload, ReportError
from batchport.runner.remote import RemoteStore
from batchport.runner.report import Report, readable
from batchport.store import FolderStore, Keys, OutKey, Store, open_store

__all__ = ["main"]

OK, FAILED, USAGE, STORE, TOLD = 0, 1, 2, 74, 143
"""The exit codes; 74 is EX_IOERR of sysexits.h, and 143 what a shell says of SIGTERM."""

STOPS_S = 2.0
"""How often a running task's stop marker is looked for."""
OUTPUT_S = 1.0
"""How often what a running task printed is written, at most; a shorter task writes none."""
PAUSES_S = (0.5, 1.5, 4.0, 8.0, 15.0)
"""How long to wait before the store is tried again: half a minute in all."""

T = TypeVar("T")


class _End(Enum):
    """Why a running task is being ended."""

    TIMEOUT = "time limit"
    STOPPED = "stop marker"
    TOLD = "told to end"


def main() -> int:
    """Run the job that the environment names; return the exit code."""
    try:
        url, worker, job = (os.environ[f"BATCHPORT_{name}"] for name in ("STORE", "WORKER", "JOB"))
    except KeyError as missing:
        return _say(f"{missing} is not set: the runner is started by a worker's job, not by people", USAGE)
    # What a task starts must not take this job's payload for its own.
    inline, element = (os.environ.pop(f"BATCHPORT_{name}", None) for name in ("PAYLOAD", "INDEX"))
    if url.startswith("memory:"):
        advice = "give the worker a folder that its jobs see, or an s3://, gs:// or az:// URL"
        return _say(f"the store {url} lives inside the worker's process, where no job can reach it: {advice}", USAGE)
    signals = _Signals()
    try:
        store = open_store(url) if url.startswith("file:") else RemoteStore(url)
        return _Pack(store, Keys(worker), job, signals).run(inline, element)
    except UsageError as error:
        return _say(str(error), USAGE)
    except ImportError as error:
        return _say(f"the store {url} needs obstore, which the job's Python cannot import: {error}", STORE)
    except StoreError as error:
        return _say(f"{error}; tried {len(PAUSES_S) + 1} times, so what this job still had to say is lost", STORE)


def _say(message: str, code: int) -> int:
    with suppress(OSError, ValueError, AttributeError):  # the backend gave no stderr, or closed it
        print(f"batchport runner: {message}", file=sys.stderr, flush=True)  # noqa: T201 - into the backend's log
    return code


class _Signals:
    """SIGTERM, SIGINT and the end of a child, as something that `poll` can wait for."""

    def __init__(self) -> None:
        self.told: int | None = None
        """The signal that told the runner to end."""
        self.fd, wake = os.pipe()
        for fd in (self.fd, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, _frame: object) -> None:
        self.told = self.told or number

    def wait(self, seconds: float) -> None:
        """Sleep, but not on when there is a signal."""
        self.clear()
        if not self.told:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            poll.poll(seconds * 1000)

    def clear(self) -> None:
        """Forget the signals that have been noticed, so that `fd` is quiet until the next."""
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)


class _SupersededError(Exception):
    """The job has no manifest any more."""


class _Run:
    """A task that runs: its child, and when that is to be looked at."""

    def __init__(self, place: int, task: str, call: Call) -> None:
        self.place, self.task = place, task
        self.kills = out_of_memory_kills()
        self.child = Child(call)
        self.end: _End | None = None
        """Why the child was ended, None if nobody did."""
        self.look_at = self.child.started + STOPS_S
        """When to look for the stop marker."""
        self.write_at = self.child.started + OUTPUT_S
        self.written = 0
        """How many bytes it had printed when the output was written."""

    @property
    def due(self) -> float:
        """When it has to be looked at, even if nothing is heard of it."""
        due = min(self.look_at, self.child.deadline) if self.child.kill_at is None else self.child.kill_at
        return min(due, self.write_at) if self.child.printed > self.written else due


class _Pack:
    """The tasks of one job or element: started in order, `width` of them at a time."""

    def __init__(self, store: Store, keys: Keys, job: str, signals: _Signals) -> None:
        self.store, self.keys, self.job, self.signals = store, keys, job, signals
        self.attempt = os.urandom(4).hex()
        self.failed = False
        """Whether a task has not succeeded, other than by its stop marker."""

    def run(self, inline: str | None, element: str | None) -> int:
        """Run what is to be run and return the exit code. Raises StoreError if the store stays out of reach."""
        try:
            return self._run_all(self._payload(inline, element))
        except ReportError as error:
            for place in error.places:
                self._leave_evidence(place, "", error.report, None)
            return _say(str(error), FAILED)
        except _SupersededError:
            if isinstance(self.store, FolderStore) and not self.store.root.is_dir():
                advice = "do the worker's machine and this one share it?"
                return _say(f"the store {self.store.root} is no folder on {os.uname().nodename}: {advice}", STORE)
            return _say(f"job {self.job} has no manifest any more: its worker is done with it, and nothing is run", OK)

    def _payload(self, inline: str | None, element: str | None) -> Payload:
        """Read the payload. Raises ReportError, _SupersededError and StoreError."""
        if element is None:
            manifest = self._patiently(lambda: self.store.get(self.keys.manifest(self.job)))
            if manifest is None:
                raise _SupersededError
            return Payload.of_job(manifest, inline, self.job, self.store, self.keys)
        self._look_for_manifest()  # no more: it is as large as the array
        try:
            return self._patiently(partial(Payload.of_element, element, self.job, self.store, self.keys))
        except ReportError:
            self._look_for_manifest()
            raise

    def _look_for_manifest(self) -> None:
        """Raise _SupersededError if there is none: the worker removes it first, and then what it names."""
        if not self._patiently(lambda: self.store.exists(self.keys.manifest(self.job))):
            raise _SupersededError

    def _run_all(self, payload: Payload) -> int:
        if len(payload.tasks) > 1:
            payload.preload()
        waiting = deque(enumerate(payload.tasks, payload.first))
        running: list[_Run] = []
        try:
            while True:
                while waiting and len(running) < payload.width and not self.signals.told:
                    if run := self._start(payload, *waiting.popleft()):
                        running.append(run)
                if not running:
                    break
                if over := next(filter(self._is_over, running), None):
                    running.remove(over)
                    self._finish(over)
                else:
                    self._wait(running)
        finally:
            for run in running:
                run.child.kill()
            payload.close()
        if self.signals.told and (waiting or self.failed):
            return TOLD
        return FAILED if self.failed else OK

    def _start(self, payload: Payload, place: int, task: str) -> _Run | None:
        """Start one task; return None if it needs no run or, with evidence left, cannot have one."""
        if self._is_settled(place):
            return None
        try:
            return _Run(place, task, self._patiently(partial(payload.call, place)))
        except ReportError as error:
            self._look_for_manifest()
            self._leave_evidence(place, task, error.report, None)
            return None

    def _is_settled(self, place: int) -> bool:
        """Whether a place needs no run: it has a result, or a stop marker, which is answered."""
        if self._patiently(lambda: self.store.exists(self._key(place, "result"))):
            return True
        if self._patiently(lambda: self.store.exists(self.keys.stop(self.job, place))):
            self._leave_stopped(place)
            return True
        return False

    def _is_over(self, run: _Run) -> bool:
        """Do what is due for one task; return whether its child has ended."""
        child = run.child
        if child.is_over():
            return True
        now = time.monotonic()
        if now >= run.write_at and child.printed > run.written:
            run.write_at, run.written = now + OUTPUT_S, child.printed
            with suppress(StoreError):  # no reason to fail the task, and it comes again in a second
                self.store.put(self._key(run.place, "output"), child.output.encode())
        if child.kill_at is None and (end := self._why_end(run, now)):
            run.end = end
            child.end()
        return False

    def _why_end(self, run: _Run, now: float) -> _End | None:
        """Return why a task must end now, None if it may go on."""
        if self.signals.told:
            return _End.TOLD
        if now >= run.child.deadline:
            return _End.TIMEOUT
        if now >= run.look_at:
            run.look_at = now + STOPS_S
            with suppress(StoreError):  # it is looked for again in two seconds
                if self.store.exists(self.keys.stop(self.job, run.place)):
                    return _End.STOPPED
        return None

    def _finish(self, run: _Run) -> None:
        """Write what a task came to, whose child is over."""
        place, task, child = run.place, run.task, run.child
        answer, output, code = child.answer(), child.output, child.exit_code
        if run.end is _End.STOPPED:
            self._leave_stopped(place)
        elif run.end is _End.TIMEOUT:
            self._leave_evidence(place, task, Report.timeout(child.time_limit_s, output), code, output)
        elif run.end is _End.TOLD:
            self._leave_evidence(place, task, Report.told(self.signals.told, output), code, output)
        elif answer is None:
            report = Report.died(code, output, out_of_memory=out_of_memory_kills() > run.kills)
            self._leave_evidence(place, task, report, code, output)
        elif answer.kind == "evidence":
            self.failed = True
            self._leave(place, "evidence", task, answer, output)
        else:
            self.failed |= answer.kind != "result"
            self._commit(place, task, answer, output)

    def _wait(self, running: Sequence[_Run]) -> None:
        """Sleep until something is heard of a child, something is due, or there is a signal."""
        children = {fd: run.child for run in running for fd in run.child.fds}
        poll = select.poll()
        for fd in (self.signals.fd, *children):
            poll.register(fd, select.POLLIN)
        due = min(run.due for run in running)
        # Rounded up, or the last millisecond would be spent in a busy loop.
        for fd, _ in poll.poll(max(0, int((due - time.monotonic()) * 1000) + 1)):
            if fd == self.signals.fd:
                self.signals.clear()
            else:
                children[fd].read(fd)

    def _commit(self, place: int, task: str, answer: Answer, output: str) -> None:
        """Write the answer create-only; where another attempt was first, leave a record of the second run."""
        if self._leave(place, "result", task, answer._replace(fields={**answer.fields, "nonce": self.attempt}), output):
            return
        # This may be the echo of our own write, so the nonce decides.
        first = self._patiently(lambda: self.store.get(self._key(place, "result")))
        if first is None:
            return  # the worker has had it, and removed it
        try:
            nonce = Envelope.from_bytes(first, ("result", "exception")).fields.get("nonce", "")
        except EnvelopeError:
            nonce = ""
        if nonce != self.attempt:
            self._leave(place, "second", task, Answer("second", b"", {"first": nonce}))

    def _leave_evidence(self, place: int, task: str, report: Report, code: int | None, output: str = "") -> None:
        self.failed = True
        # A signal as a shell says it, since that is how backends say it as well.
        code = 128 - code if code is not None and code < 0 else code
        answer = Answer("evidence", b"", {**report.fields, "exit_code": code})
        self._leave(place, "evidence", task, answer, readable(output))

    def _leave_stopped(self, place: int) -> None:
        data = Envelope("stopped", self.job).to_bytes()
        self._patiently(lambda: self.store.put(self._key(place, "stopped"), data))

    def _leave(self, place: int, where: str, task: str, answer: Answer, output: str = "") -> bool:
        """Write one envelope, create-only; return whether nothing was there before. Raises StoreError."""
        parts = (answer.value, output.encode())
        data = Envelope(answer.kind, self.job, task, parts, answer.fields, cloudpickle=answer.cloudpickle).to_bytes()
        return self._patiently(lambda: self.store.put(self._key(place, where), data, create=True))

    def _key(self, place: int, kind: str) -> str:
        attempt = self.attempt if kind in {"evidence", "second"} else ""
        return self.keys.left(OutKey(self.job, place, kind, attempt))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call the store, and again if it cannot be reached, unless the job is told to end. Raises StoreError."""
        for pause in PAUSES_S:
            try:
                return call()
            except StoreError:
                if self.signals.told:
                    break
                self.signals.wait(pause)
        return call()
