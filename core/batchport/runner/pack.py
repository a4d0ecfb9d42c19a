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
from collections.abc import Callable
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
from batchport.runner.report import Report
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
    inline = os.environ.pop("BATCHPORT_PAYLOAD", None)
    if url.startswith("memory:"):
        advice = "give the worker a folder that its jobs see, or an s3://, gs:// or az:// URL"
        return _say(f"the store {url} lives inside the worker's process, where no job can reach it: {advice}", USAGE)
    signals = _Signals()
    try:
        store = open_store(url) if url.startswith("file:") else RemoteStore(url)
        return _Pack(store, Keys(worker), job, signals).run(inline)
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


class _Pack:
    """The tasks of one job, in order, one at a time."""

    def __init__(self, store: Store, keys: Keys, job: str, signals: _Signals) -> None:
        self.store, self.keys, self.job, self.signals = store, keys, job, signals
        self.attempt = os.urandom(4).hex()

    def run(self, inline: str | None) -> int:
        """Run what is to be run and return the exit code. Raises StoreError if the store stays out of reach."""
        manifest = self._patiently(lambda: self.store.get(self.keys.manifest(self.job)))
        if manifest is None:
            if isinstance(self.store, FolderStore) and not self.store.root.is_dir():
                advice = "do the worker's machine and this one share it?"
                return _say(f"the store {self.store.root} is no folder on {os.uname().nodename}: {advice}", STORE)
            return self._superseded()
        try:
            payload = Payload.read(manifest, inline, self.job, self.store, self.keys)
        except ReportError as error:
            for place in range(Payload.places(manifest)):
                self._leave_evidence(place, "", error.report, None)
            return FAILED
        return self._run_all(payload)

    def _run_all(self, payload: Payload) -> int:
        code = OK
        for place, task in enumerate(payload.tasks):
            if self.signals.told:
                return TOLD
            if self._is_settled(place):
                continue
            try:
                call = self._patiently(partial(payload.call, place))
            except ReportError as error:
                # The worker removes blobs once it has removed the manifest.
                if not self._patiently(lambda: self.store.exists(self.keys.manifest(self.job))):
                    return self._superseded()
                self._leave_evidence(place, task, error.report, None)
                code = FAILED
                continue
            if not self._run(place, task, call):
                code = FAILED
        return TOLD if self.signals.told and code == FAILED else code

    def _superseded(self) -> int:
        return _say(f"job {self.job} has no manifest any more: its worker is done with it, and nothing is run", OK)

    def _is_settled(self, place: int) -> bool:
        """Whether a place needs no run: it has a result, or a stop marker, which is answered."""
        if self._patiently(lambda: self.store.exists(self._key(place, "result"))):
            return True
        if self._patiently(lambda: self.store.exists(self.keys.stop(self.job, place))):
            self._leave_stopped(place)
            return True
        return False

    def _run(self, place: int, task: str, call: Call) -> bool:
        """Run one task and write what it came to; return whether it succeeded, or was stopped."""
        kills = out_of_memory_kills()
        child = Child(call)
        end = self._watch(place, child)
        answer, output, code = child.answer(), child.output, child.exit_code
        if end is _End.STOPPED:
            self._leave_stopped(place)
            return True
        if end is _End.TIMEOUT:
            self._leave_evidence(place, task, Report.timeout(call.time_limit_s, output), code, output)
        elif end is _End.TOLD:
            self._leave_evidence(place, task, Report.told(self.signals.told, output), code, output)
        elif answer is None:
            report = Report.died(code, output, out_of_memory=out_of_memory_kills() > kills)
            self._leave_evidence(place, task, report, code, output)
        elif answer.kind == "evidence":
            self._leave(place, "evidence", task, answer, output)
        else:
            self._commit(place, task, answer, output)
            return answer.kind == "result"
        return False

    def _watch(self, place: int, child: Child) -> _End | None:
        """Wait until the child is over; return why it was ended, None if it ended by itself."""
        end: _End | None = None
        look_at, write_at, written = child.started + STOPS_S, child.started + OUTPUT_S, 0
        while not child.is_over():
            now = time.monotonic()
            if now >= write_at and child.printed > written:
                write_at, written = now + OUTPUT_S, child.printed
                with suppress(StoreError):  # no reason to fail the task, and it comes again in a second
                    self.store.put(self._key(place, "output"), child.output.encode())
            if child.kill_at is None:
                end = self._why_end(child, place if now >= look_at else None)
                if now >= look_at:
                    look_at = now + STOPS_S
                if end:
                    child.end()
            due = min(look_at, child.deadline) if child.kill_at is None else child.kill_at
            self._wait(child, min(due, write_at) if child.printed > written else due)
        return end

    def _why_end(self, child: Child, look_for: int | None) -> _End | None:
        """Return why a child must end now, None if it may go on; `look_for`: whose stop marker to look for, if any."""
        if self.signals.told:
            return _End.TOLD
        if time.monotonic() >= child.deadline:
            return _End.TIMEOUT
        if look_for is not None:
            with suppress(StoreError):  # it is looked for again in two seconds
                if self.store.exists(self.keys.stop(self.job, look_for)):
                    return _End.STOPPED
        return None

    def _wait(self, child: Child, until: float) -> None:
        poll = select.poll()
        for fd in (self.signals.fd, *child.fds):
            poll.register(fd, select.POLLIN)
        # Rounded up, or the last millisecond would be spent in a busy loop.
        for fd, _ in poll.poll(max(0, int((until - time.monotonic()) * 1000) + 1)):
            if fd == self.signals.fd:
                self.signals.clear()
            else:
                child.read(fd)

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
        # A signal as a shell says it, since that is how backends say it as well.
        code = 128 - code if code is not None and code < 0 else code
        self._leave(place, "evidence", task, Answer("evidence", b"", {**report.fields, "exit_code": code}), output)

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
