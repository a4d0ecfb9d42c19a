"""One task's process: fork it, call the function there, bring back its answer and what it printed.

Called by pack.py, which waits on `Child.fds`, hands them to `Child.read`, and decides when a child must end.
Nothing here blocks the parent but `Child.kill`, so that it can watch several.

The child leads a process group of its own, so that whatever it started can be ended with it. It must not
outlive its parent, which may be killed: the read end of a pipe whose write end the parent alone holds is
set to send SIGKILL to the child's group once that end closes. (F_SETOWN, F_SETSIG and O_ASYNC,
https://man7.org/linux/man-pages/man2/fcntl.2.html. Unlike PR_SET_PDEATHSIG it reaches what the child
started too, and needs no ctypes.)
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, NoReturn

from batchport.runner.payload import Call, ReportError
from batchport.runner.report import Report

__all__ = ["Answer", "Child"]

LEFTOVERS_S = 5.0
"""How long a child may take for its threads and exit functions, once the function has returned."""
ENDING_S = 2.0
"""How long a child that was told to end may take before it is killed."""

_TAIL = 64 << 10
_CHUNK = 64 << 10
_PIPE = 1 << 20
"""No pipe holds more, https://man7.org/linux/man-pages/man7/pipe.7.html."""
_HEAD = struct.Struct(">IQ")
_PLAIN = frozenset((bool, bytes, complex, float, int, str, type(None)))
"""The types that need no more than a plain pickle, and so no import of cloudpickle."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


class Answer(NamedTuple):
    """What a child hands back: an envelope's kind (result, exception or evidence), its pickle, its fields."""

    kind: str
    value: bytes
    fields: dict[str, Any]
    cloudpickle: str = ""
    """The version that made the pickle."""


class Child:
    """A task's process, from fork to end."""

    # A child that held them would keep its siblings alive when the parent dies, and their pipes open.
    _parents_ends: ClassVar[set[int]] = set()

    def __init__(self, call: Call) -> None:
        self.started = time.monotonic()
        self.time_limit_s = call.time_limit_s
        self.deadline = self.started + (call.time_limit_s or math.inf)
        self.exit_code = 0
        """Once it is over: its exit code, negative for a signal's number."""
        self.kill_at: float | None = None
        """When to kill it; None while it may still take its time."""
        self.printed = 0
        """How many bytes it has printed."""
        self._tail = bytearray()
        self._reply = bytearray()
        self._reply_fd, reply = os.pipe()
        self._output_fd, output = os.pipe()
        lifeline, self._lifeline = os.pipe()
        self.fds = {self._reply_fd, self._output_fd}
        self._parents_ends.update((*self.fds, self._lifeline))
        parent = os.getpid()
        # Until the child has handlers of its own, a signal would go to the parent's, and be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.freeze()  # or the child's first collection would touch, and so copy, every page that it shares with us
        self.pid = os.fork()
        if self.pid == 0:
            for fd in self._parents_ends:
                os.close(fd)
            _live(call, reply, output, lifeline, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        with suppress(OSError):  # the child does so too; whoever comes first
            os.setpgid(self.pid, self.pid)
        for fd in (reply, output, lifeline):
            os.close(fd)
        for fd in self.fds:
            os.set_blocking(fd, False)

    def answer(self) -> Answer | None:
        """Hand over the answer, None unless it is here and whole. It is kept no longer, as it may be large."""
        if not self._reply_is_whole():
            return None
        reply, self._reply = memoryview(self._reply), bytearray()
        start = _HEAD.size + _HEAD.unpack_from(reply)[0]
        head = json.loads(bytes(reply[_HEAD.size : start]))
        return Answer(head["kind"], bytes(reply[start:]), head["fields"], head["cloudpickle"])

    @property
    def output(self) -> str:
        """The end of what it has printed."""
        # What was cut off may have been the first half of a character.
        cut = self._tail if self.printed == len(self._tail) else self._tail.lstrip(bytes(range(0x80, 0xC0)))
        return cut.decode(errors="replace")

    def read(self, fd: int) -> None:
        """Take what there is to read from one of `fds`."""
        with suppress(BlockingIOError):
            data = os.read(fd, _CHUNK)
            if not data:
                self.fds.discard(fd)
            elif fd == self._reply_fd:
                self._reply += data
                if self.kill_at is None and self._reply_is_whole():
                    self.kill_at = time.monotonic() + LEFTOVERS_S
            else:
                self._tee(data)

    def end(self) -> None:
        """Tell the child and all that it started to end, and give it a moment to do so."""
        self.kill_at = time.monotonic() + ENDING_S
        self._signal(signal.SIGTERM)

    def is_over(self) -> bool:
        """Kill it if it is time to; return whether it has ended, with nothing of it left to read or to kill.

        To be asked until it is so, and not after.
        """
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self._signal(signal.SIGKILL)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        self.exit_code = os.waitstatus_to_exitcode(status)
        # The rest of its group may hold the pipes open, so what counts is what is in them now.
        self._signal(signal.SIGKILL)
        for fd in list(self.fds):
            for _ in range(_PIPE // _CHUNK + 1):
                self.read(fd)
        for fd in (self._reply_fd, self._output_fd, self._lifeline):
            os.close(fd)
            self._parents_ends.discard(fd)
        return True

    def kill(self) -> None:
        """Kill it and all that it started, and wait until it has ended; for when its answer is not wanted any more."""
        self._signal(signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _reply_is_whole(self) -> bool:
        if len(self._reply) < _HEAD.size:
            return False
        head, value = _HEAD.unpack_from(self._reply)
        return len(self._reply) == _HEAD.size + int(head) + int(value)

    def _tee(self, data: bytes) -> None:
        self.printed += len(data)
        self._tail += data
        del self._tail[:-_TAIL]
        with suppress(OSError):  # the backend's log is full or closed: no reason to fail the task
            while data:
                data = data[os.write(1, data) :]

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # all gone; macOS says so of zombies
            os.killpg(self.pid, number)


def _live(call: Call, reply: int, output: int, lifeline: int, parent: int) -> NoReturn:
    """Be the child: never returns, whatever happens."""
    code = 1
    try:
        me = os.getpid()
        os.setpgid(0, 0)
        _die_with(parent, lifeline)
        _settle(output, call.time_limit_s)
        answer = _answer(call)
        if os.getpid() != me:  # the function forked, and its fork returned as well
            os._exit(0)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        head = json.dumps({**answer._asdict(), "value": None}).encode()
        with open(reply, "wb") as file:
            file.write(_HEAD.pack(len(head), len(answer.value)) + head)
            file.write(answer.value)
        code = 0
        _leave()
    finally:
        os._exit(code)


def _die_with(parent: int, lifeline: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # unknown to an emulated kernel: a child that may outlive us is the lesser evil
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if os.getppid() != parent:  # it died before it could be watched
        os._exit(1)


def _settle(output: int, time_limit_s: int | None) -> None:
    """Make this process what a function expects: plain signals, no input, output that can be read at once."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Below the descriptors, so that compiled code and subprocesses are heard as well.
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc] # Final to those who do not start a process
    # The runner is no module of the user's: what is looked up in __main__ must not find it.
    sys.modules["__main__"] = ModuleType("__main__")
    import faulthandler

    faulthandler.enable(2)
    if time_limit_s is not None:
        # Just before the parent ends it, so that the evidence shows where the function was.
        faulthandler.dump_traceback_later(max(0.05, time_limit_s - 0.05), file=2)
    gc.enable()  # __main__ turned it off


def _answer(call: Call) -> Answer:
    """Unpickle, call, pickle; every exception becomes an answer."""
    try:
        function, args, kwargs, serialize = _unpickle(call)
    except ReportError as error:
        return Answer("evidence", b"", error.report.fields)
    try:
        result = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - sys.exit and KeyboardInterrupt are answers too
        words = _traceback(error)
        fields = {"type": type(error).__qualname__, **Report.raised(error, words).fields}
        data, version = _pickled(error)
        return Answer("exception", data, fields, version)
    if serialize is None and type(result) in _PLAIN:
        return Answer("result", pickle.dumps(result, pickle.HIGHEST_PROTOCOL), {})
    try:
        if serialize is not None:
            return Answer("result", bytes(serialize(result)), {})
        import cloudpickle

        return Answer("result", cloudpickle.dumps(result), {}, cloudpickle.__version__)
    except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
        report = Report.cannot_pickle(result, error, _traceback(error))
        return Answer("exception", b"", {"type": type(error).__qualname__, **report.fields})


def _unpickle(call: Call) -> tuple[Callable[..., Any], list[Any], dict[str, Any], Callable[[Any], bytes] | None]:
    """Return function, args, kwargs, and what serializes the result if it is not cloudpickle.

    Raises ReportError where they cannot be had.
    """
    sys.path[:0] = call.path
    # What names importable things only is a plain pickle, and the import would take longer than all the rest.
    if any(b"cloudpickle" in data for data in (call.function, *call.args, *call.kwargs.values())):
        _check_cloudpickle(call.cloudpickle)
    what, given = "the serializer", list(call.args)
    args, kwargs = [], {}
    load: Callable[[bytes], Any] = pickle.loads
    serialize: Callable[[Any], bytes] | None = None
    try:
        if call.codec == "serializer":
            serializer, *given = pickle.loads(call.args[0]), *call.args[1:]
            load, serialize = serializer.deserialize, serializer.serialize
        what = "the function"
        function = load(call.function)
        for number, data in enumerate(given, 1):
            what = f"argument {number}"
            args.append(load(data))
        for name, data in call.kwargs.items():
            what = f"argument {name!r}"
            kwargs[name] = load(data)
    except ModuleNotFoundError as error:
        raise ReportError(Report.missing(what, error)) from error
    except BaseException as error:
        import cloudpickle

        if call.cloudpickle not in ("", cloudpickle.__version__):
            report = Report.other_cloudpickle(call.cloudpickle, cloudpickle.__version__, error)
        elif isinstance(error, (ImportError, AttributeError)):
            report = Report.missing(what, error)
        elif isinstance(error, (pickle.UnpicklingError, EOFError)):
            report = Report.not_a_pickle(what, error)
        else:
            report = Report.cannot_unpickle(what, error, _traceback(error))
        raise ReportError(report) from error
    return function, args, kwargs, serialize


def _check_cloudpickle(theirs: str) -> None:
    """Raise ReportError if there is no cloudpickle here, or one that cannot read what `theirs` has written."""
    try:
        import cloudpickle
    except ImportError as error:
        raise ReportError(Report.missing("the runner", error)) from error
    ours = cloudpickle.__version__
    if theirs and theirs.partition(".")[0] != ours.partition(".")[0]:
        raise ReportError(Report.other_cloudpickle(theirs, ours))


def _pickled(error: BaseException) -> tuple[bytes, str]:
    """Return the exception pickled if it survives the journey, else b"", and the version that did it."""
    # SystemExit and KeyboardInterrupt go in words only: as themselves they would end the host.
    if isinstance(error, Exception):
        with suppress(Exception):
            import cloudpickle

            data: bytes = cloudpickle.dumps(error)
            if type(pickle.loads(data)) is type(error):
                return data, cloudpickle.__version__
    return b"", ""


def _traceback(error: BaseException) -> str:
    """Return the traceback in words, without the runner's own frame, which is the first."""
    import traceback

    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - it calls the exception's own code
        return "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__


def _leave() -> None:
    """Do what Python does at exit, as far as users see it: wait for threads, run the exit functions."""
    import atexit
    import faulthandler

    faulthandler.cancel_dump_traceback_later()
    if threading := sys.modules.get("threading"):
        threading._shutdown()  # noqa: SLF001 - multiprocessing does it so, for want of a public way
    atexit._run_exitfuncs()  # noqa: SLF001 - likewise
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
