"""The adapter: how a job gets on to the backend, how it is seen there, and how it is ended.

Write the three methods in the order in which they stand here, and run `pytest` after each. What they
owe in full is in `batchport.adapter`; `python -m pydoc batchport.adapter` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from batchport import BatchWorkerAdapterBase, JobSpec, JobStatus, Limits

from .options import Options


class Adapter(BatchWorkerAdapterBase):
    """Puts jobs on one backend. Ids in, statuses out: it keeps no table of jobs and never retries."""

    contract = 1  # the version of the contract that this is written for; raise it once you have read what is new
    options_type = Options
    limits = Limits(
        name_length=63,  # the longest job name that the backend takes, in characters
        inline_bytes=0,  # the raw bytes that fit in one environment variable of a job; 0 sends all through the store
        poll_batch=None,  # the most ids that one call may ask for; None where one listing returns all
        settle_s=0.0,  # how many seconds a job that is there may be missing from the backend's answers
    )

    def __init__(self, options: Options) -> None:
        self.options = options

    def submit_job(self, job: JobSpec) -> str:
        """Hand `job` to the backend once, under `job.name`, and return the backend's id for it.

        It must run `job.command` with `job.env` set; `job.script` is both as one bash script. Ask for
        `job.resources` and add `resources.extra` last. Turn the backend's own retries off. Raise
        RejectedJobError, with the backend's words, if this job can never run; BackendFullError if no more
        may be queued; TransientBackendError if it was certainly not submitted; BackendUnusableError if
        none can be. Let anything else through as it is: the job may be there, and is looked for by name.
        """
        raise NotImplementedError("implement submit_job")

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        """Return a JobStatus, with the job's name, for each of these jobs that the backend knows.

        Ask once for all of them. Keep the backend's states in a table at the top of this file, from its
        documentation. Leave out a job that the backend does not know; never guess how it ended. Raise
        if the backend could not be asked: an empty answer means that none of these jobs is there.
        """
        raise NotImplementedError("implement poll_jobs")

    def cancel_job(self, job_id: str) -> None:
        """Ask the backend to end this job, queued or running, and return without waiting for it.

        Silently succeed if the job is over or unknown. Raise if the backend could not be asked.
        """
        raise NotImplementedError("implement cancel_job")

    # More to override where the backend can do it; without them things work, and tell less:
    # - open: make clients and read live limits; raise BackendUnusableError, in words, if nothing can run
    # - find_jobs: look jobs up by name, so that a submit whose answer was lost does not cost its tasks
    # - inspect_job: after a bad ending, the end of the job's log and the backend's events
    # - cancel_jobs: many in one call
    # - check: what `batchport doctor` looks at, each with advice
    # - close: let go of clients; jobs live on
