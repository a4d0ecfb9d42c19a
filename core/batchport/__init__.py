"""batchport: put Python functions on a batch backend by writing submit, poll and cancel.

The names below are what users and adapter authors import. They are loaded when first used, so that a
job, which needs none of them, starts as fast as Python does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchport.adapter import BatchWorkerAdapterBase
    from batchport.errors import (
        BackendFullError,
        BackendUnusableError,
        BatchportError,
        CommandError,
        Reason,
        RejectedJobError,
        StoreError,
        SupersededError,
        TaskFailedError,
        TransientBackendError,
        UsageError,
    )
    from batchport.hosts.executor import BatchExecutor, BrokenWorkerError, TaskFuture
    from batchport.jobs import Check, JobSpec, JobState, JobStatus, Limits, Resources
    from batchport.tasks import Blob, Failure, Outcome, Task
    from batchport.worker import BatchWorker

__all__ = [
    "BackendFullError",
    "BackendUnusableError",
    "BatchExecutor",
    "BatchWorker",
    "BatchWorkerAdapterBase",
    "BatchportError",
    "Blob",
    "BrokenWorkerError",
    "Check",
    "CommandError",
    "Failure",
    "JobSpec",
    "JobState",
    "JobStatus",
    "Limits",
    "Outcome",
    "Reason",
    "RejectedJobError",
    "Resources",
    "StoreError",
    "SupersededError",
    "Task",
    "TaskFailedError",
    "TaskFuture",
    "TransientBackendError",
    "UsageError",
]

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("BatchExecutor", "BrokenWorkerError", "TaskFuture"), "hosts.executor"),
    "BatchWorker": "worker",
    "BatchWorkerAdapterBase": "adapter",
    **dict.fromkeys(("Check", "JobSpec", "JobState", "JobStatus", "Limits", "Resources"), "jobs"),
    **dict.fromkeys(("Blob", "Failure", "Outcome", "Task"), "tasks"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        message = f"module 'batchport' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"batchport.{_HOMES.get(name, 'errors')}"), name)
