"""The embedded backend: jobs are processes on this machine. Also the model for adapters of other backends.

`LocalAdapter` starts one supervisor (`_supervisor.py`) for each job and has no part in its life after that,
so its jobs start, run and end whether or not a worker lives. All that is known of a job is in its folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from batchport.adapter import BatchWorkerAdapterBase
from batchport.backends import _supervisor
from batchport.errors import BackendFullError, BackendUnusableError, Reason, RejectedJobError, UsageError
from batchport.jobs import Check, JobSpec, JobState, JobStatus, Limits, Resources

__all__ = ["LocalAdapter", "Options"]

KEPT_S = 7 * 24 * 3600
"""How long the folder of a job that ended is kept, in seconds, where no worker removes it."""
LOG_TAIL = 4096
"""How much of the end of a job's log is evidence, in bytes."""
TOLD = "told"
"""The file in the folder of a job that says that a poll has reported its end."""


@dataclass(frozen=True, slots=True)
class Options:
    """What can be chosen about jobs on this machine.

    folder: where the jobs' folders are; None for `batchport-UID` in the system's temporary folder.
    slots: how many CPUs the jobs of this folder share; None for all that this process may use.
    queue_limit: how many elements of one worker may be queued or running; None for no limit.
    """

    folder: str | None = None
    slots: int | None = None
    queue_limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing would ever run."""
        for name, otherwise in (("slots", "all CPUs"), ("queue_limit", "no limit")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"Options({name}={value!r}): must be at least 1, or None for {otherwise}")


class LocalAdapter(BatchWorkerAdapterBase):
    """Runs each job as processes on this machine, in the folder in which the worker runs.

    A job's id is its name. A job's CPUs are slots that it waits for; they do not bind it to processors.
    It gets the worker's environment beside its own. The memory limit needs /proc, and so Linux.
    """

    contract = 1
    options_type = Options
    # One string of the environment holds at most 131,072 bytes, base64 and name included:
    # https://man7.org/linux/man-pages/man2/execve.2.html. A file's name holds at most 255.
    limits = Limits(name_length=200, inline_bytes=90 * 1024, array_size=1000, array_index=_supervisor.INDEX)

    def __init__(self, options: Options) -> None:
        self.queue_limit = options.queue_limit
        default = Path(tempfile.gettempdir(), f"batchport-{os.getuid()}")
        self.folder = Path(options.folder or default).absolute()
        self.slots = options.slots or _usable_cpus()

    def open(self, worker: str) -> None:
        self.jobs = self.folder / "jobs" / worker
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.lstat().st_uid != os.getuid():
                message = f"{self.folder} belongs to another user: choose another folder with Options(folder=...)"
                raise BackendUnusableError(message)
            self.jobs.mkdir(parents=True, exist_ok=True)
            (self.folder / "slots").mkdir(exist_ok=True)
            _remove_ended(self.folder.glob("jobs/*/*"), KEPT_S)
        except OSError as error:
            raise self._unusable(error) from error

    def submit_job(self, job: JobSpec) -> str:
        self._refuse(job.resources)
        folder, asked = self.jobs / job.name, job.resources
        numbers = (self.slots, asked.cpus, asked.memory_mib or 0, asked.time_limit_s or 0, job.size)
        if self.queue_limit is not None and (there := self._living()) + job.size > self.queue_limit:
            raise BackendFullError(
                f"{there} elements are there, {job.size} more are offered, {self.queue_limit} may be"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _supervisor.start(str(folder), job.script, str(self.folder / "slots"), *numbers)
        except OSError as error:
            raise self._unusable(error) from error
        return job.name

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        statuses = self._statuses(job_ids)
        for ended in {status.job_id for status in statuses if status.state.is_final}.intersection(job_ids):
            self._mark_told(ended)
        return statuses

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}:{index}"

    def cancel_job(self, job_id: str) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):  # unknown, or just over
            _supervisor.cancel(str(self._folder(job_id)))

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        return [(name, name) for name in names if self._status(name)]

    def inspect_job(self, job_id: str) -> JobStatus | None:
        status, log = self._status(job_id), self._folder(job_id) / "log"
        if status is None or not log.exists():
            return status
        if not log.stat().st_size:
            return replace(status, evidence=f"{status.evidence}\n{log} is empty")
        with log.open("rb") as file:
            file.seek(-min(log.stat().st_size, LOG_TAIL), os.SEEK_END)
            tail = file.read().decode(errors="replace")
        return replace(status, evidence=f"{status.evidence}\n{log} ends with:\n{tail}")

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        for each in job_ids:
            self.cancel_job(each)

    def check(self) -> Iterable[Check]:
        writable, proc = os.access(self.folder, os.W_OK | os.X_OK), Path("/proc/self/statm").exists()
        looked_at = (
            (f"jobs' folders in {self.folder}", writable, "choose another with Options(folder=...)"),
            (f"{self.slots} slots for {_usable_cpus()} CPUs", True, ""),
            ("bash, which runs the jobs", shutil.which("bash") is not None, "install bash, or put it on PATH"),
            ("memory limits", proc, "they need Linux's /proc and are not kept here: leave memory_mib out"),
        )
        return [Check(what, ok, "" if ok else advice) for what, ok, advice in looked_at]

    def close(self) -> None:
        # The end of any other is news to the worker that starts next under this name.
        _remove_ended([told.parent for told in self.jobs.glob(f"*/{TOLD}")], 0)

    def _folder(self, job_id: str) -> Path:
        return self.jobs.joinpath(*job_id.split(":"))

    def _size(self, job_id: str) -> int:
        """Return how many elements a job has; 0 for a plain job, which has none besides itself."""
        record = _supervisor.read_record(str(self._folder(job_id)))
        return int(record["size"]) if record and int(record["size"]) > 1 else 0

    def _living(self) -> int:
        records = {folder.name: _supervisor.read_record(str(folder)) for folder in self.jobs.iterdir()}
        # Most have ended, and need no second look.
        living = [name for name, record in records.items() if record and record["state"] not in _supervisor.FINAL]
        statuses = [status for status in self._statuses(living) if not status.state.is_final]
        return sum(not self._size(status.job_id) for status in statuses)

    def _statuses(self, job_ids: Sequence[str]) -> list[JobStatus]:
        """Return the statuses of these jobs and of their elements."""
        elements = [self.element_id(each, index) for each in job_ids for index in range(self._size(each))]
        return [status for status in map(self._status, [*job_ids, *elements]) if status]

    def _mark_told(self, job_id: str) -> None:
        with suppress(OSError):  # removed meanwhile; or it cannot be written, and the folder is kept for longer
            (self._folder(job_id) / TOLD).touch()

    def _status(self, job_id: str) -> JobStatus | None:
        name = job_id.partition(":")[0]
        record = _supervisor.read_record(str(self._folder(job_id)))
        if record is None and job_id != name and self._folder(job_id).is_dir():
            record = _supervisor.read_record(str(self.jobs / name))  # has not started: as its array, but waiting
            if record and record["state"] not in _supervisor.FINAL:
                return JobStatus(job_id, JobState.QUEUED, name, evidence="waiting for a slot")
        if record is None:
            return None
        state, evidence = JobState[record["state"]], record["evidence"]
        reason = Reason[record["reason"]] if record["reason"] else None
        exit_code = int(record["exit_code"]) if record["exit_code"] else None
        return JobStatus(job_id, state, name, reason, evidence, exit_code)

    def _refuse(self, asked: Resources) -> None:
        memory = asked.memory_mib or 0
        refusals = (
            (asked.cpus > self.slots, f"{asked.cpus} CPUs for one job, and this backend has {self.slots} slots"),
            (memory > _memory_mib(), f"{memory} MiB for one job, and this machine has {_memory_mib()} MiB"),
            (asked.gpus > 0, f"{asked.gpus} GPUs for one job, and this backend has no GPUs"),
            (bool(asked.extra), f"extra={dict(asked.extra)!r}, and this backend has no options of its own for a job"),
        )
        for refused, message in refusals:
            if refused:
                raise RejectedJobError(message)

    def _unusable(self, error: OSError) -> BackendUnusableError:
        message = f"no job can be kept in {self.folder}: {error.strerror}. Choose another with Options(folder=...)"
        return BackendUnusableError(message)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def _remove_ended(folders: Iterable[Path], kept_s: float) -> None:
    """Remove the folders of jobs that ended, or whose submit died half-way, at least `kept_s` seconds ago."""
    for folder in folders:
        with suppress(OSError):  # another worker removes it too, or just uses it
            record = _supervisor.read_record(str(folder))
            ended = record["state"] in _supervisor.FINAL if record else kept_s > 0
            if ended and time.time() - folder.stat().st_mtime >= kept_s:
                shutil.rmtree(folder)
                folder.parent.rmdir()
