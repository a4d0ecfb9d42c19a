"""The exceptions: their branches, their words, and that they travel."""

from __future__ import annotations

import pickle

import pytest

from batchport.errors import (
    BackendError,
    BackendFullError,
    BackendUnusableError,
    BatchportError,
    CommandError,
    EnvelopeError,
    Reason,
    RejectedJobError,
    StoreError,
    TaskFailedError,
    TransientBackendError,
    UsageError,
    VersionError,
)
from batchport.tasks import Failure

LOST = Failure(Reason.LOST, "Job a-1 (7) vanished.", "2 polls in a row did not mention it.", "Look for it.")


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        (UsageError, ValueError),
        (TransientBackendError, BackendError),
        (BackendFullError, TransientBackendError),
        (RejectedJobError, BackendError),
        (BackendUnusableError, BackendError),
        (VersionError, EnvelopeError),
        *((each, BatchportError) for each in (BackendError, CommandError, EnvelopeError, StoreError, TaskFailedError)),
    ],
)
def test_each_error_stands_on_the_branch_that_says_what_happens_next(error: type, parent: type) -> None:
    assert issubclass(error, parent)
    assert issubclass(error, BatchportError)


def test_a_rejected_job_and_an_unusable_backend_are_never_tried_again_as_they_are() -> None:
    assert not issubclass(RejectedJobError, TransientBackendError)
    assert not issubclass(BackendUnusableError, TransientBackendError)


def test_a_retry_can_help_only_where_the_task_is_not_to_blame() -> None:
    assert {reason for reason in Reason if reason.retry_can_help} == {
        Reason.NODE_LOST,
        Reason.PREEMPTED,
        Reason.LOST,
    }


def test_a_task_failed_error_reads_as_its_failure() -> None:
    assert str(TaskFailedError(LOST)) == (
        "Job a-1 (7) vanished. [lost]\n  | 2 polls in a row did not mention it.\n  -> Look for it."
    )


def test_a_task_failed_error_survives_pickling_with_its_failure() -> None:
    again = pickle.loads(pickle.dumps(TaskFailedError(LOST)))
    assert (again.failure, str(again)) == (LOST, str(TaskFailedError(LOST)))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CommandError(("bsub", "-q", "x"), 255, "", "x: No such queue\n"),
            "bsub -q x exited with 255: x: No such queue",
        ),
        (CommandError(("bsub",), 1, "Request aborted\n", " "), "bsub exited with 1: Request aborted"),
        (CommandError(("bsub",), 1, "", ""), "bsub exited with 1: it printed nothing"),
        (CommandError(("bsub",), None, "", "No such file"), "bsub failed: No such file"),
    ],
)
def test_a_command_error_says_what_was_run_how_it_ended_and_what_it_printed(error: CommandError, message: str) -> None:
    assert str(error) == message


def test_a_command_error_stays_readable_however_much_was_printed() -> None:
    error = CommandError(("sbatch", "x" * 9999), 1, "", "y" * 9999 + " the end")
    assert len(str(error)) < 2300
    assert str(error).endswith("y the end")
