"""Rules: what AWS Batch refuses, and its words for what it did. Called by the api, with a call's own parameters."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from moto.batch.exceptions import ClientException
from moto.core.exceptions import AWSError

from batchport.testing.aws.settings import Settings

__all__ = [
    "DEPENDENCY",
    "ESSENTIAL",
    "MISFIT",
    "NO_START",
    "OUT_OF_MEMORY",
    "OVERRIDES",
    "TIMEOUT",
    "TOO_LONG",
    "TooManyRequestsError",
    "check_definition",
    "check_ids",
    "check_listing",
    "check_reason",
    "check_submission",
    "no_queue",
]

ESSENTIAL = "Essential container in task exited"
"""(seen) The statusReason of every job whose container ended by itself."""
TIMEOUT = "Job attempt duration exceeded timeout"
"""(seen) The statusReason after a time-out."""
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
"""container.reason. https://repost.aws/knowledge-center/ecs-resolve-outofmemory-errors"""
NO_START = "Task failed to start"
"""The statusReason of a job without a container. https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html"""
DEPENDENCY = "Dependent Job failed"
"""(seen) The statusReason of a job that waited for one that failed."""
MISFIT = (
    "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - All compute environments have no connected instances that meet the"
    " job requirements."
)
"""The statusReason while RUNNABLE. https://docs.aws.amazon.com/batch/latest/APIReference/API_JobDetail.html"""
OVERRIDES = 8192
"""Characters of a job's overrides, the JSON around them included: Batch's SubmitJob takes more, Amazon ECS's RunTask
does not. https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html"""
TOO_LONG = "Container Overrides length must be at most 8192"
"""(seen) The statusReason of such a job, which is accepted and then FAILED."""

# https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html
JOB_BYTES, DEFINITION_BYTES, DEPENDENCIES = 30 * 1024, 24 * 1024, 20
# https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html
ARRAY = range(2, 10_001)
# https://docs.aws.amazon.com/batch/latest/APIReference/API_RetryStrategy.html
ATTEMPTS, CONDITIONS = range(1, 11), 5
# https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJob.html
REASON_CHARACTERS = 1024

Parameters = Mapping[str, Any]


class TooManyRequestsError(AWSError):
    """The answer to one who calls too often."""

    TYPE, STATUS = "TooManyRequestsException", 429  # (seen)


def _refused(text: str) -> ClientException:
    return ClientException(f"Error executing request, Exception : {text}, RequestId: {uuid.uuid4()}")  # (seen)


def no_queue(queue: str) -> ClientException:
    """Return the answer to a call that names a queue which is not there."""
    return ClientException(f"JobQueue {queue} not found.")  # (seen)


def check_definition(asked: Parameters, size: int, settings: Settings) -> None:
    """Check a RegisterJobDefinition of so many bytes."""
    if size >= DEFINITION_BYTES:
        raise _refused(f"Job definition size must be less than 24 KiB, got {-(-size // 1024)} KiB")  # (guess)
    _check_environment(asked.get("containerProperties"))
    _check_timeout_and_retries(asked, settings)


def check_submission(asked: Parameters, size: int, queue: Any, definition: Any, settings: Settings) -> None:
    """Check a SubmitJob of so many bytes, for a queue and definition that moto found, or None."""
    if size >= JOB_BYTES:
        raise _refused(f"Job size must be less than 30 KiB, got {-(-size // 1024)} KiB")  # (seen)
    if not NAME.fullmatch(asked.get("jobName") or ""):
        raise _refused("Job name should match valid pattern")  # (seen)
    if queue is None:
        raise no_queue(asked.get("jobQueue") or "")
    # A disabled one ends the jobs that it has: https://docs.aws.amazon.com/batch/latest/APIReference/API_UpdateJobQueue.html
    if queue.state != "ENABLED":
        raise _refused(f"JobQueue {queue.name} is DISABLED and accepts no jobs")  # (guess)
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html: with a fair-share policy, and only then
    if bool(queue.schedule_policy) != bool(asked.get("shareIdentifier")):
        raise _refused("A shareIdentifier is for queues with a fair-share scheduling policy, which need one")  # (guess)
    if definition is None or definition.status != "ACTIVE":
        named = asked.get("jobDefinition")
        raise ClientException(f"JobDefinition name {named} does not exist or is not in ACTIVE status")  # (seen)
    array = asked.get("arrayProperties") or {}
    if array and array.get("size") not in ARRAY:
        raise _refused(f"Array size must be between {ARRAY[0]} and {ARRAY[-1]}")  # (guess)
    if len(asked.get("dependsOn") or ()) > DEPENDENCIES:
        raise _refused(f"A job can have at most {DEPENDENCIES} dependencies")  # (guess)
    _check_environment(asked.get("containerOverrides"))
    _check_timeout_and_retries(asked, settings)


def _check_environment(container: Parameters | None) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_ContainerOverrides.html
    if any(item["name"].startswith("AWS_BATCH") for item in (container or {}).get("environment", ())):
        raise _refused("Environment variable names must not start with AWS_BATCH")  # (guess)


def _check_timeout_and_retries(asked: Parameters, settings: Settings) -> None:
    timeout, retry = asked.get("timeout") or {}, asked.get("retryStrategy") or {}
    if timeout and timeout.get("attemptDurationSeconds", 0) < settings.min_timeout_s:
        raise _refused(f"attemptDurationSeconds must be at least {settings.min_timeout_s}")  # (guess)
    if retry.get("attempts", 1) not in ATTEMPTS or len(retry.get("evaluateOnExit", ())) > CONDITIONS:
        raise _refused(f"There are 1 to 10 attempts and at most {CONDITIONS} conditions")  # (guess)


def check_ids(ids: list[str], most: int) -> None:
    """Check how many jobs one call names."""
    if len(ids) > most:
        raise _refused(f"Maximum number of jobs supported is  {most} .")  # (seen) for DescribeJobs, blanks and all


def check_listing(asked: Parameters, filters: list[Any]) -> None:
    """Check a ListJobs and its filters. https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html."""
    if bool(asked.get("jobQueue")) == bool(asked.get("arrayJobId")):
        raise _refused("Specify either a job queue or an array job")  # (guess)
    if len(filters) > 1:
        raise _refused("Only one filter can be used at a time")  # (guess)


def check_reason(reason: str) -> None:
    """Check why a job is to be stopped."""
    if not reason:
        raise ClientException("'reason' is a required field (cannot be an empty string)")  # (guess)
    if len(reason) > REASON_CHARACTERS:
        raise _refused(f"reason must be at most {REASON_CHARACTERS} characters")  # (guess)
