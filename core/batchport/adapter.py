"""The contract of a backend adapter, and nothing else.

Implemented by adapter authors, called by the worker alone. A whole adapter is a class like this:

    class HouseAdapter(BatchWorkerAdapterBase):
        contract = 1
        options_type = Options
        limits = Limits(name_length=64, inline_bytes=65536)

        def __init__(self, options: Options) -> None:
            self.queue = Queue(options.url)

        def submit_job(self, job: JobSpec) -> str:
            return self.queue.put(name=job.name, script=job.script)

        def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
            return [JobStatus(row.id, STATES[row.state], row.name) for row in self.queue.get(job_ids)]

        def cancel_job(self, job_id: str) -> None:
            self.queue.delete(job_id, missing_ok=True)

Every method may be `def` or `async def`. The worker runs plain ones off its event loop, one at a time
unless `limits.parallel_calls` says more, each with a deadline; one that outlives its deadline is left
behind in its thread, and the next call no longer waits for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, ClassVar

from batchport.jobs import Check, JobSpec, JobStatus, Limits

__all__ = ["CONTRACT", "BatchWorkerAdapterBase"]

CONTRACT = 1
"""The version of the contract in this module. It grows when an adapter that was right could become wrong."""


class BatchWorkerAdapterBase(ABC):
    """Puts jobs on one backend. Ids in, statuses out: an adapter keeps no table of jobs."""

    contract: ClassVar[int] = CONTRACT
    """The version of this contract that the adapter was written for. State it as a number, so that it stays."""

    options_type: ClassVar[type[Any]]
    """The frozen dataclass that `__init__` takes: this backend's options, each with its default."""

    limits: Limits
    """What the backend accepts. Read only after `open`, which may set it from the live system."""

    @abstractmethod
    def submit_job(self, job: JobSpec) -> str | Awaitable[str]:
        """Submit `job` once and return the backend's id for it.

        Must make one job, or none and raise; never retry inside. If the backend knows a job of that
        name already, and names are unique there, return that job's id.

        Raises TransientBackendError if it was certainly not submitted and may be sent again;
        BackendFullError if a limit on queued jobs is reached; RejectedJobError, with the backend's
        words, if this job can never run; BackendUnusableError if no job can be submitted at all.
        Anything else is ambiguous: the worker looks the job up by name before it sends it again.
        """

    @abstractmethod
    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus] | Awaitable[Iterable[JobStatus]]:
        """Return what the backend says of these jobs, in any order, in as few calls as it takes.

        Gets at most `limits.poll_batch` ids. A job that the backend does not know is left out, never
        guessed; statuses of jobs that were not asked for are ignored. Of an array, whose id is among them,
        each element is reported under its `element_id`, or the array itself for all elements that are not;
        an element that was left out is asked for by its own id the next time. Must raise if the backend could
        not be asked: an empty answer says "none of them is there". A state that this adapter does not
        know is reported as RUNNING, with the backend's word as evidence.
        """

    @abstractmethod
    def cancel_job(self, job_id: str) -> None | Awaitable[None]:
        """Ask the backend to end this job, whatever its state, and return without waiting for it.

        Idempotent: if the job is unknown or already over, silently succeed. Raises if the backend could
        not be asked; the worker asks again.
        """

    def open(self, worker: str) -> None | Awaitable[None]:  # noqa: B027 - optional: nothing to open by default
        """Get ready; called once, before any other method, by the worker named `worker`.

        Read live limits, make clients, keep `worker` as the label for the jobs. Raises
        BackendUnusableError, in words, if the backend can't be used; the worker then does not start.
        """

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]] | Awaitable[Iterable[tuple[str, str]]]:
        """Return (name, id) for each job with one of these names, whatever its state.

        Called after a submit whose answer is not known, and when a worker starts again. A name may come
        back twice if there are two such jobs; a name that the backend does not know is left out. By
        default raises NotImplementedError, which means "this backend can't be asked by name".
        """
        raise NotImplementedError

    def inspect_job(self, job_id: str) -> JobStatus | None | Awaitable[JobStatus | None]:  # noqa: ARG002 - the default has no answer
        """Return one job's status with the evidence that is too costly for every poll: log tail, events.

        Called once after a bad ending. None, the default, means that there is nothing more to tell.
        """
        return None

    def cancel_jobs(self, job_ids: Sequence[str]) -> None | Awaitable[None]:
        """Cancel many jobs, by the rules of `cancel_job`.

        Override it if the backend takes many ids in one call. The default raises NotImplementedError,
        and the worker calls `cancel_job` for each.
        """
        raise NotImplementedError

    def element_id(self, job_id: str, index: int) -> str:
        """Return how the backend names element `index`, counted from 0, of the array `job_id`.

        Called only where `limits.array_size` is above 1. Must not do any I/O.
        """
        raise NotImplementedError

    def check(self) -> Iterable[Check] | Awaitable[Iterable[Check]]:
        """Look at all that must be in place for jobs to run; called by `batchport doctor` after `open`.

        Each Check that is not ok says what to do about it. By default there is nothing to look at.
        """
        return ()

    def close(self) -> None | Awaitable[None]:  # noqa: B027 - optional: nothing to close by default
        """Let go of clients and connections; called once, last. Jobs must live on."""
