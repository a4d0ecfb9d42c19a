"""What passes between the worker and an adapter: jobs, their states, what a backend accepts.

Called by adapters, which read JobSpec and write JobStatus, Limits and Check, and by the worker.
Everything here is frozen; nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from batchport.errors import Reason, UsageError

__all__ = ["NAME_LENGTH", "Check", "JobSpec", "JobState", "JobStatus", "Limits", "Resources"]

NAME_LENGTH = 32
"""The shortest `Limits.name_length`: a job's name needs this many characters to be unique for ever."""


class JobState(Enum):
    """Where a job is. The last three are final: the backend will not run this job again."""

    QUEUED = "queued"
    """Waiting at the backend; also a job that was requeued, suspended or held."""
    STARTING = "starting"
    """Has its place, and its process is not there yet: a node boots, an image is pulled."""
    RUNNING = "running"
    """Its process is there. Going back to QUEUED from here is legal."""
    SUCCEEDED = "succeeded"
    """Ended, and the backend says well. The worker still wants to see the result."""
    FAILED = "failed"
    """Ended badly: a bad exit code, a signal, a limit, a lost node."""
    CANCELLED = "cancelled"
    """Ended because somebody asked for it."""

    @property
    def is_final(self) -> bool:
        """Whether the backend will never run this job again."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task asks for. The worker multiplies it to what a job asks for.

    `memory_mib` is in MiB and `time_limit_s` in seconds; None leaves either to the backend.
    `extra` holds the backend's own options by their own names; it has the last word, and None as a
    value removes an option that the adapter would have set.
    """

    cpus: int = 1
    memory_mib: int | None = None
    gpus: int = 0
    time_limit_s: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse amounts that no backend could give."""
        for name, least in (("cpus", 1), ("memory_mib", 1), ("gpus", 0), ("time_limit_s", 1)):
            value = getattr(self, name)
            if value is None and name in {"memory_mib", "time_limit_s"}:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                message = f"Resources({name}={value!r}): must be a whole number of at least {least}"
                raise UsageError(message)


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job for the backend to run, as the worker hands it to `submit_job`.

    `name` is unique for ever, in [a-z0-9-], begins with a letter, and is never longer than
    `limits.name_length`; it begins with `label`, which is for people only. `command` and `env` hold
    nothing but [A-Za-z0-9_./:=+,@%-], so no adapter ever quotes. The job must run `command` once, with
    `env` set, and with what `resources` asks for. `size` is the number of elements: more than 1 asks
    for a native array, and comes only where `limits.array_size` allows it.
    """

    name: str
    label: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    resources: Resources
    size: int = 1
    setup: str = ""

    @property
    def script(self) -> str:
        """The whole job as a bash script, for backends that take one.

        The user's `setup` lines (module load, conda activate) stand in it as they are, before the command.
        """
        exports = [f"export {name}={value}" for name, value in self.env.items()]
        setup = self.setup.splitlines()
        return "\n".join(["#!/bin/bash", *exports, *setup, "exec " + " ".join(self.command), ""])


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What the backend says of one job, or of one element of an array.

    `name` is the job's name as the backend has it; a status whose name is not the job's is taken for
    another job under a reused id and dropped (None: not checked). `reason` on a final state says why it
    ended; on a living state it says that the job is blocked, and the user is told at once. `evidence`
    is for people: node, the backend's own words, the log's last lines. `exit_code` is 128 plus the
    signal's number for a process that a signal ended.
    """

    job_id: str
    state: JobState
    name: str | None = None
    reason: Reason | None = None
    evidence: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend accepts. It drives the worker, so state what the backend's documentation states.

    name_length: the longest job name, in characters.
    inline_bytes: how many raw bytes of payload may travel in one environment variable (base64 makes
        them a third longer); 0 sends everything through the store.
    poll_batch: how many ids one `poll_jobs` call may get; None where one listing returns all.
    array_size: the most elements of a native array; 1 for a backend without arrays.
    array_index: the environment variable that holds an element's index in the job.
    array_base: the first element's index, as that variable counts.
    element_cancel: whether one element of an array can be cancelled alone.
    parallel_calls: how many plain `def` calls may run at once.
    settle_s: how long, in seconds, a job may be missing from listings and still be there.
    submits_per_second: the most `submit_job` calls a second; None for no limit.
    """

    name_length: int
    inline_bytes: int
    poll_batch: int | None = None
    array_size: int = 1
    array_index: str = ""
    array_base: int = 0
    element_cancel: bool = True
    parallel_calls: int = 1
    settle_s: float = 0.0
    submits_per_second: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits under which the worker could not work."""
        rules = (
            ("name_length", self.name_length >= NAME_LENGTH, f"unique names need at least {NAME_LENGTH} characters"),
            ("inline_bytes", self.inline_bytes >= 0, "must be 0 (nothing travels inline) or more"),
            ("poll_batch", self.poll_batch is None or self.poll_batch >= 1, "must be at least 1, or None for no limit"),
            ("array_size", self.array_size >= 1, "must be at least 1, which means no arrays"),
            ("array_index", self.array_size == 1 or bool(self.array_index), "arrays need the variable's name"),
            ("parallel_calls", self.parallel_calls >= 1, "must be at least 1"),
            ("settle_s", self.settle_s >= 0, "must be 0 seconds or more"),
            ("submits_per_second", self.submits_per_second is None or self.submits_per_second > 0, "must be above 0"),
        )
        for name, holds, why in rules:
            if not holds:
                message = f"Limits({name}={getattr(self, name)!r}): {why}"
                raise UsageError(message)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `batchport doctor` looked at: what, whether it is well, and what to do if not."""

    what: str
    ok: bool
    advice: str = ""
