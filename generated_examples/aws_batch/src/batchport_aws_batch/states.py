"""What AWS says, in the contract's words: its states, its reasons, its errors. Pure functions and tables.

Used by adapter.py. Words are matched that AWS documents, and no others; all that it says is evidence. Jobs are as
https://docs.aws.amazon.com/batch/latest/APIReference/API_JobDetail.html and API_JobSummary.html have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import inf
from typing import Any

from batchport import (
    BackendUnusableError,
    BatchportError,
    JobState,
    JobStatus,
    Reason,
    RejectedJobError,
    TransientBackendError,
)

STATES = {
    "SUBMITTED": JobState.QUEUED,
    "PENDING": JobState.QUEUED,
    "RUNNABLE": JobState.QUEUED,
    "STARTING": JobState.STARTING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}
"""Batch's states; one that is not here counts as running. An array is PENDING while its children run.
https://docs.aws.amazon.com/batch/latest/userguide/job_states.html and array_jobs.html"""

BLOCKED_BY = {
    "CAPACITY:": Reason.UNSCHEDULABLE,
    "MISCONFIGURATION:": Reason.CONFIGURATION,
}
"""How the statusReason of a job begins that is RUNNABLE and keeps its queue waiting.
https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable.html"""

ENDED_BY = {
    "CannotPullContainer": Reason.IMAGE,
    "CannotStartContainer": Reason.IMAGE,
    "Host EC2": Reason.NODE_LOST,
    "OutOfMemoryError": Reason.OUT_OF_MEMORY,
    "it ran for its whole timeout": Reason.TIMEOUT,
}
"""How the statusReason of a job that FAILED begins, or its container's reason. The last is ours, seen by the clock:
no page has Batch's words for it, but https://docs.aws.amazon.com/batch/latest/userguide/job_timeouts.html its times.
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/stopped-task-error-codes.html (containers)
https://repost.aws/knowledge-center/ecs-resolve-outofmemory-errors
https://docs.aws.amazon.com/cdk/api/v2/docs/aws-cdk-lib.aws_batch.CustomReason.html (Host EC2)"""

ERRORS: tuple[tuple[str, type[BatchportError], str], ...] = (
    ("429|Throttl|TooManyRequests|RequestLimitExceeded", TransientBackendError, ""),
    (
        "ConnectTimeout|EndpointConnection",
        TransientBackendError,
        " -> Look whether this machine reaches that address, and whether the region in it is right",
    ),
    (
        "NoRegion",
        BackendUnusableError,
        " -> Set AWS_DEFAULT_REGION (boto3 does not read AWS_REGION), or give the option `region`",
    ),
    (
        "NoCred",
        BackendUnusableError,
        " -> Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    ),
    (
        "Profile",
        BackendUnusableError,
        " -> Give the option `profile`, or AWS_PROFILE, a name that `aws configure list-profiles` prints",
    ),
    (
        "401|403|Access|Expired|RequestExp|IncompleteSig|Invalid(Client|Sign)|Missing|NotAuth|OptIn|Sign",
        BackendUnusableError,
        "",
    ),
    (
        "Unrecog|Unauthor|(Partial)?Cred|InvalidRegion|RefreshWithMFA|Token|NoAuthToken|SSO|Login",
        BackendUnusableError,
        "",
    ),
    ("413|ClientExc|Malformed|ParamValid|Validation|RequestEntityTooLarge|ResourceNotFound", RejectedJobError, ""),
)
"""How AWS's code for an error begins, or botocore's class, what that means, and what to do where its own words leave
that open; the first counts. What is not here is ambiguous for a submit: 5xx, RequestAborted, RequestTimeout,
ReadTimeoutError, ConnectionClosedError.
https://docs.aws.amazon.com/batch/latest/APIReference/CommonErrors.html and API_SubmitJob.html
https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html"""


def meaning(error: Exception, operation: str) -> Exception:
    """Return what to raise for an error: itself where it may be that a job was submitted all the same.

    Those that AWS sent read "An error occurred (CODE) when calling ...", and the others are known by their class.
    """
    return next(
        (
            kind(f"{error}{advice}")
            for words, kind, advice in ERRORS
            if re.match(rf"(\w+: An error occurred \()?({words})", f"{type(error).__name__}: {error}")
        ),
        error if operation == "submit_job" else TransientBackendError(str(error)),
    )


def status(job: dict[str, Any], log: Iterable[dict[str, Any]] = ()) -> JobStatus:
    """Read a job as Batch shows it; the events of its log are evidence, too."""
    state, container, overran = (
        STATES.get(job["status"], JobState.RUNNING),
        job.get("container", {}),
        job.get("stoppedAt", 0) - job.get("startedAt", inf)
        >= 1000 * job.get("timeout", {}).get("attemptDurationSeconds", inf),
    )
    told = [
        each
        for each in (job.get("statusReason"), container.get("reason"), overran and "it ran for its whole timeout")
        if each
    ]
    return JobStatus(
        job["jobId"],
        JobState.CANCELLED
        if state is JobState.FAILED and (job.get("isTerminated") or job.get("isCancelled"))
        else state,
        job["jobName"],
        next(
            (
                why
                for each in told
                for begin, why in (ENDED_BY if state.is_final else BLOCKED_BY).items()
                if each.startswith(begin)
            ),
            None,
        ),
        "\n".join([", ".join([f"AWS Batch says {job['status']}", *told]), *(event["message"] for event in log)]),
        container.get("exitCode"),
    )


def children(job: dict[str, Any]) -> set[str]:
    """Return the states in which an array has children; of any other job none."""
    return {each for each, many in job.get("arrayProperties", {}).get("statusSummary", {}).items() if many}
