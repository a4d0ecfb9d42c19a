"""Every sentence that a failing task says: what happened, the reason, the evidence, and what to do.

Called by child.py for what the function did, by payload.py for what cannot be run, and by pack.py for how
a process ended.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from batchport.envelope import PYTHON
from batchport.errors import Reason

__all__ = ["Report", "readable"]

_EVIDENCE_LINES = 40
_OWN_FRAMES = (f'  File "{Path(__file__).parent}/', '  File "<frozen runpy>"')
_ALARM = "Timeout (0:"
"""How faulthandler heads the stack of a task at its time limit, with a time that is no help to anybody."""
_HERE_IT_WAS = "It was here:\n"
_LONGEST = 64 << 10

_RESEND = (
    "The store lost or changed what the worker wrote: submit the task again, and check the store if it happens again"
)
_SAME_PYTHON = (
    "Set the worker's `python` to an interpreter of that version, build the jobs' image with it, or submit from a "
    "Python of the job's"
)


class Report(NamedTuple):
    """What is said of a task that failed.

    `reason` is None where the runner cannot tell, and the backend's own reason decides. `message` is one
    sentence, without capital and full stop, since the runner's own log puts it after its name; `evidence` is
    what was seen.
    """

    reason: Reason | None
    message: str
    evidence: str = ""
    advice: str = ""

    @property
    def fields(self) -> dict[str, str | None]:
        """The report as an envelope's fields, in whole sentences."""
        return {
            "reason": self.reason and self.reason.name,
            "message": _sentence(self.message),
            "evidence": self.evidence[-_LONGEST:],
            "advice": _sentence(self.advice),
        }

    @classmethod
    def unreadable(cls, why: object) -> Report:
        """Say that the payload or manifest is damaged."""
        return cls(Reason.PAYLOAD, f"the job's payload is damaged or missing: {why}", "", _RESEND)

    @classmethod
    def foreign(cls, job: str, other: str) -> Report:
        """Say that the payload belongs to another job."""
        message = f"the job's payload is another job's: it belongs to {other}, and this is {job}"
        return cls(Reason.PAYLOAD, message, "", _RESEND)

    @classmethod
    def no_blob(cls, key: str) -> Report:
        """Say that a function or argument is not in the store."""
        return cls(Reason.PAYLOAD, f"the task's function or an argument is not in the store: {key}", "", _RESEND)

    @classmethod
    def bad_code(cls, key: str, why: str) -> Report:
        """Say that a zip of code that came along cannot be used; `why` goes on from its key."""
        return cls(Reason.PAYLOAD, f"the code that came along, {key}, {why}", "", _RESEND)

    @classmethod
    def cannot_unzip(cls, error: OSError) -> Report:
        """Say that the job's machine has no place for the code that came along."""
        message = f"the code that came along cannot be unzipped in the job: {error}"
        advice = "Point TMPDIR to a folder of the job's machine that has room, in the worker's `setup`"
        return cls(Reason.ENVIRONMENT, message, _here(), advice)

    @classmethod
    def no_element(cls, variable: str, said: str, base: int, elements: int) -> Report:
        """Say that this job is no element of its array, by what `variable` says; `said` is "" if it is not set."""
        found = f"is {said!r}" if said else "is not set"
        message = f"{variable} {found}, and so names none of the array's {elements} elements, counted from {base}"
        advice = (
            "The adapter's limits must say what the backend does: `array_index` is the variable, `array_base` the first"
        )
        return cls(Reason.ENVIRONMENT, message, _here(), advice)

    @classmethod
    def not_a_pickle(cls, what: str, error: BaseException) -> Report:
        """Say that bytes that came whole are no pickle."""
        return cls(Reason.PAYLOAD, f"{what} is damaged: {error}", "", _RESEND)

    @classmethod
    def other_python(cls, made_by: str) -> Report:
        """Say that the payload is of another minor version of Python, whose pickled code cannot run here."""
        message = (
            f"the task was pickled by Python {made_by}, and the job runs Python {PYTHON}, which cannot run its code"
        )
        return cls(Reason.ENVIRONMENT, message, _here(), _SAME_PYTHON)

    @classmethod
    def other_codec(cls, codec: str) -> Report:
        """Say that function and arguments were not made by cloudpickle."""
        message = f"the task was made by {codec!r}, which this batchport cannot read"
        return cls(Reason.ENVIRONMENT, message, _here(), "Install the worker's batchport release in the job's Python")

    @classmethod
    def other_cloudpickle(cls, made_by: str, here: str, error: BaseException | None = None) -> Report:
        """Say that the payload is of another cloudpickle; `error` if it was tried."""
        tried = f", where it cannot be unpickled: {describe(error)}" if error else ", which cannot read it"
        message = f"the task was pickled by cloudpickle {made_by}, and the job has cloudpickle {here}{tried}"
        return cls(Reason.ENVIRONMENT, message, _here(), f"Install cloudpickle=={made_by} in the job's Python")

    @classmethod
    def missing(cls, what: str, error: ImportError | AttributeError) -> Report:
        """Say that what the pickle refers to by name is not in the job's Python."""
        if isinstance(error, ModuleNotFoundError) and error.name:
            message = f"the job's Python has no module {error.name!r}, which {what} needs"
            advice = (
                f"Send it along, code=[{error.name.partition('.')[0]}] or batchport worker --code FOLDER; "
                "or install it in the job's Python; or name the folder that holds it in the worker's `path`"
            )
        else:
            message = f"the job's Python cannot import what {what} needs: {error}"
            advice = "Install that module in the job's Python, in the same release as where the task was submitted"
        return cls(Reason.ENVIRONMENT, message, _here(), advice)

    @classmethod
    def raised(cls, error: BaseException, traceback: str) -> Report:
        """Say that the function raised; also that it called sys.exit or ran out of memory."""
        if isinstance(error, SystemExit):
            message = f"the function called sys.exit({'' if error.code is None else repr(error.code)})"
            return cls(Reason.USER_ERROR, message, traceback, "Return or raise instead: sys.exit gives no result")
        if isinstance(error, MemoryError):
            message = f"the function ran out of memory: {describe(error)}"
            return cls(Reason.OUT_OF_MEMORY, message, traceback, "Ask for more with memory_mib, or split the work")
        advice = "The traceback is the job's: look there first"
        return cls(Reason.USER_ERROR, f"the function raised {describe(error)}", traceback, advice)

    @classmethod
    def cannot_unpickle(cls, what: str, error: BaseException, traceback: str) -> Report:
        """Say that unpickling ran code of the user's, which raised."""
        message = f"{what} cannot be unpickled in the job: {describe(error)}"
        reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.USER_ERROR
        return cls(reason, message, traceback, "Pass something simpler, and make this inside the function")

    @classmethod
    def cannot_pickle(cls, result: object, error: BaseException, traceback: str) -> Report:
        """Say that the function returned something that cannot travel."""
        kind = type(result).__qualname__
        message = f"the function returned a value of type {kind} that cannot be pickled: {describe(error)}"
        advice = "Return something that can be pickled, such as a list for a generator or a path for an open file"
        reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.USER_ERROR
        return cls(reason, message, traceback, advice)

    @classmethod
    def timeout(cls, limit_s: float | None, output: str) -> Report:
        """Say that the task was ended at its time limit."""
        message = f"the task ran longer than its time limit of {limit_s} s and was ended"
        return cls(Reason.TIMEOUT, message, _last(output), "Ask for more with time_limit_s, or split the work")

    @classmethod
    def told(cls, number: int | None, output: str) -> Report:
        """Say that the runner was told to end."""
        message = f"the job was told to end by {_signal_name(number)} while the task ran"
        return cls(None, message, _last(output), "The backend knows why: a cancel, its time limit, or a lost machine")

    @classmethod
    def died(cls, exit_code: int, output: str, *, out_of_memory: bool) -> Report:
        """Say how a process ended that left no answer; `exit_code` is negative for a signal's number."""
        evidence = _last(output)
        if exit_code >= 0:
            message = f"the task's process ended with exit code {exit_code} before the function returned"
            advice = "Look for os._exit, or a library that ends the process; its last lines may say why"
            return cls(Reason.RUNNER_CRASH, message, evidence, advice)
        name = _signal_name(-exit_code)
        message = f"the task's process was ended by {name} ({signal.strsignal(-exit_code)})"
        if -exit_code == signal.SIGKILL and out_of_memory:
            message += " because its memory was used up"
            return cls(Reason.OUT_OF_MEMORY, message, evidence, "Ask for more with memory_mib, or split the work")
        if -exit_code == signal.SIGKILL:
            advice = "Somebody sent it, or the machine ran out of memory: look at the backend's and the kernel's log"
            return cls(None, message, evidence, advice)
        if -exit_code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return cls(None, message, evidence, "Somebody sent it: the backend, or the function to its own process")
        advice = "Compiled code crashed: the Python stack in the evidence shows which call"
        return cls(Reason.RUNNER_CRASH, message, evidence, advice)


def describe(error: BaseException) -> str:
    """Return an exception's type and first line, even of one whose `__str__` raises."""
    try:
        text = str(error).strip()
    except Exception:  # noqa: BLE001 - it is the user's code
        text = "(its str() raises)"
    return f"{type(error).__qualname__}: {text.splitlines()[0][:500]}" if text else type(error).__qualname__


def _here() -> str:
    return f"{sys.executable}, Python {sys.version.split()[0]}, on {os.uname().nodename}"


def readable(output: str) -> str:
    """Return what a task printed, with faulthandler's stack announced in words and without the runner's frames."""
    lines = [line for line in output.splitlines(keepends=True) if not line.startswith(_OWN_FRAMES)]
    return "".join(_HERE_IT_WAS if line.startswith(_ALARM) else line for line in lines)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith(('.', '?', '!')) else '.'}" if words else ""


def _last(output: str) -> str:
    return "\n".join(readable(output).splitlines()[-_EVIDENCE_LINES:])


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
