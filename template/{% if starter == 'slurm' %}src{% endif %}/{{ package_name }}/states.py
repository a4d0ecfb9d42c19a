"""What Slurm says, in the contract's words: its states, its reasons, its refusals. Pure functions and tables.

Used by adapter.py. States and reasons: https://slurm.schedmd.com/job_state_codes.html and
https://slurm.schedmd.com/job_reason_codes.html.
"""

from __future__ import annotations

import re

from batchport import (
    BackendFullError,
    BackendUnusableError,
    BatchportError,
    CommandError,
    JobState,
    JobStatus,
    Reason,
    RejectedJobError,
    TransientBackendError,
)

STATES = {
    "BOOT_FAIL": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "COMPLETED": JobState.SUCCEEDED,
    "COMPLETING": JobState.RUNNING,
    "CONFIGURING": JobState.STARTING,
    "DEADLINE": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PENDING": JobState.QUEUED,
    "PREEMPTED": JobState.FAILED,
    "REQUEUED": JobState.QUEUED,
    "REQUEUE_FED": JobState.QUEUED,
    "REQUEUE_HOLD": JobState.QUEUED,
    "RESIZING": JobState.RUNNING,
    "REVOKED": JobState.CANCELLED,
    "RUNNING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "SPECIAL_EXIT": JobState.QUEUED,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.QUEUED,
    "SUSPENDED": JobState.QUEUED,
    "TIMEOUT": JobState.FAILED,
}
"""Slurm's states. CANCELLED may come as "CANCELLED by 0"; one that is not here counts as running."""

ENDED_BY = {
    "BOOT_FAIL": Reason.NODE_LOST,
    "DEADLINE": Reason.TIMEOUT,
    "NODE_FAIL": Reason.NODE_LOST,
    "OUT_OF_MEMORY": Reason.OUT_OF_MEMORY,
    "PREEMPTED": Reason.PREEMPTED,
    "TIMEOUT": Reason.TIMEOUT,
}
"""Why a job ended, where its state says so."""

BLOCKED_BY = {
    "AccountNotAllowed": Reason.CONFIGURATION,
    "BadConstraints": Reason.CONFIGURATION,
    "DependencyNeverSatisfied": Reason.CONFIGURATION,
    "InvalidAccount": Reason.CONFIGURATION,
    "InvalidQOS": Reason.CONFIGURATION,
    "JobHeldAdmin": Reason.HELD,
    "JobHeldUser": Reason.HELD,
    "JobHoldMaxRequeue": Reason.HELD,
    "NodeDown": Reason.UNSCHEDULABLE,
    "PartitionConfig": Reason.CONFIGURATION,
    "PartitionDown": Reason.UNSCHEDULABLE,
    "PartitionInactive": Reason.UNSCHEDULABLE,
    "PartitionNodeLimit": Reason.CONFIGURATION,
    "PartitionTimeLimit": Reason.CONFIGURATION,
    "QOSNotAllowed": Reason.CONFIGURATION,
    "ReqNodeNotAvail": Reason.UNSCHEDULABLE,
    "launch": Reason.HELD,
}
"""Why a job that waits does not start, by the first word; "launch" is "launch failed requeued held"."""

REFUSALS: tuple[tuple[str, type[BatchportError]], ...] = (
    ("MaxSubmit|temporarily unable to accept|Resource temporarily unavailable", BackendFullError),
    ("connect failure|standby mode", TransientBackendError),
    ("No such file or directory: sbatch|uthentication|redential", BackendUnusableError),
    ("submission failed: (?!Socket timed out|Zero Bytes|Unexpected)|nvalid|unrecognized option", RejectedJobError),
)
"""What sbatch prints when it made no job, and what that means; the first that is found counts."""


def refusal(error: CommandError) -> BatchportError:
    """Return what to raise for an sbatch that failed: the error itself where the job may be there all the same."""
    return next((kind(str(error)) for words, kind in REFUSALS if re.search(words, str(error))), error)


def status(line: str) -> JobStatus:
    """Read a line of squeue, whose exit code is a wait status, or of sacct, where it is "code:signal"."""
    job_id, state, name, ended, why, node, *_ = line.split("|")
    code, signal = map(int, ended.split(":")) if ":" in ended else divmod(int(ended) & ~0x80, 256)
    word, cause = state.split(maxsplit=1)[0], re.split("[ ,]", why)[0]
    means = STATES.get(word, JobState.RUNNING)
    return JobStatus(
        job_id.partition("_[")[0],  # elements that never started share a line of sacct, "7_[1-3]"
        means,
        None if name == "allocation" else name,  # sacct's word where it never heard of the job's start
        ENDED_BY.get(word) if means.is_final else BLOCKED_BY.get(cause),
        ", ".join(filter(None, (f"Slurm says {state}", why.replace("None", ""), node and f"on {node}"))),
        (128 + signal if signal else code) if means.is_final else None,
    )
