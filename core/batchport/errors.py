"""Every exception of the project, and Reason: why a task failed.

Called by all other modules. The tree branches by what the worker does next, not by where an error
came from, so an adapter author chooses a class by answering "what should happen now?".
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchport.tasks import Failure

__all__ = [
    "BackendError",
    "BackendFullError",
    "BackendUnusableError",
    "BatchportError",
    "CommandError",
    "EnvelopeError",
    "Reason",
    "RejectedJobError",
    "StoreError",
    "SupersededError",
    "TaskFailedError",
    "TransientBackendError",
    "UsageError",
    "VersionError",
]


class Reason(Enum):
    """Why a task failed, or why a job that lives cannot start.

    The first nine may be reported by an adapter; the rest are found by the worker and the runner.
    """

    OUT_OF_MEMORY = "out of memory"
    """The job used more memory than it may."""
    TIMEOUT = "time limit"
    """The task or the job ran longer than its time limit."""
    NODE_LOST = "node lost"
    """The machine that ran the job went away."""
    PREEMPTED = "preempted"
    """The backend took the machine back for something else."""
    IMAGE = "image"
    """The container image cannot be pulled or started."""
    UNSCHEDULABLE = "unschedulable"
    """Nothing at the backend can hold the job as it is, for now."""
    CONFIGURATION = "configuration"
    """The backend refuses the job, or accepts it and can never run it."""
    HELD = "held"
    """Someone, or a rule of the backend, holds the job back."""
    CANCELLED = "cancelled"
    """Somebody asked for it to end."""
    LOST = "lost"
    """The job is gone, and nothing tells what became of it."""
    PAYLOAD = "payload"
    """What the job was given to run is damaged or missing."""
    ENVIRONMENT = "environment"
    """The job's Python lacks, or differs in, something that the task needs."""
    RUNNER_CRASH = "crash"
    """The task's process died without an answer."""
    USER_ERROR = "user error"
    """The function itself raised."""

    @property
    def retry_can_help(self) -> bool:
        """Whether the same task may well succeed elsewhere; the worker asks before it uses a retry."""
        return self in {Reason.NODE_LOST, Reason.PREEMPTED, Reason.LOST}


class BatchportError(Exception):
    """The root of all that this project raises on purpose."""


class UsageError(BatchportError, ValueError):
    """Something that the caller wrote cannot work; nothing was started. The message says what to write."""


class BackendError(BatchportError):
    """What an adapter raises. Raise one of the subclasses; each says what the worker does next."""


class TransientBackendError(BackendError):
    """Not now. Calling again with the same arguments is safe; the worker backs off and does so.

    Out of submit_job it says that the job was certainly not submitted. Where that is not certain,
    raise anything else, and the worker looks the job up by name first.
    """


class BackendFullError(TransientBackendError):
    """A limit on queued jobs is reached. The worker waits for one of its jobs to end, then offers again."""


class RejectedJobError(BackendError):
    """The job can never run. Its tasks fail with CONFIGURATION, in the backend's words: put them in."""


class BackendUnusableError(BackendError):
    """No job can be submitted now: credentials, no such queue. The worker pauses, says so, tries again."""


class CommandError(BatchportError):
    """A command of `batchport.commands.run` failed: `code` (None: no such command, or it timed out), `out`, `err`."""

    def __init__(self, argv: tuple[str, ...], code: int | None, out: str, err: str) -> None:
        said = err.strip() or out.strip() or "it printed nothing"
        ended = "failed" if code is None else f"exited with {code}"
        super().__init__(f"{' '.join(argv)[:200]} {ended}: {said[-2000:]}")
        self.argv, self.code, self.out, self.err = argv, code, out, err


class StoreError(BatchportError):
    """The object store cannot be reached, read or written. Calling again may work."""


class SupersededError(BatchportError):
    """A worker was started again elsewhere under its name, and this one stops: the other has its jobs now."""

    def __init__(self, worker: str, other: str) -> None:
        super().__init__(
            f"the worker {worker!r} was started again by {other}, and this one stops; its jobs live on, and the "
            "other has them. Give each of two workers that shall run at once a name of its own"
        )
        self.worker, self.other = worker, other

    def __reduce__(self) -> tuple[type[SupersededError], tuple[str, str]]:
        """Pickle by what the message is made from."""
        return SupersededError, (self.worker, self.other)


class EnvelopeError(BatchportError):
    """Bytes that should be one of the project's envelopes are damaged, cut off, or something else."""


class VersionError(EnvelopeError):
    """An envelope is whole but was made by a Python, cloudpickle or protocol that this process cannot read."""


class TaskFailedError(BatchportError):
    """A task failed, and not by an exception of its own. `failure` has the reason, evidence and advice."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    def __reduce__(self) -> tuple[type[TaskFailedError], tuple[Failure]]:
        """Pickle by the failure, since the message is made from it."""
        return TaskFailedError, (self.failure,)
