"""What AWS says is read right, and what it is asked for is what the job needs; no server is needed here."""

from __future__ import annotations

from typing import Any

import pytest
from batchport import (
    BackendUnusableError,
    JobSpec,
    JobState,
    Reason,
    RejectedJobError,
    Resources,
    TransientBackendError,
)
from botocore import exceptions

from batchport_aws_batch.adapter import Adapter
from batchport_aws_batch.options import Options
from batchport_aws_batch.states import STATES, children, meaning, status


def job(state: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Batch's answers
    return {"jobId": "7", "jobName": "fit-1", "status": state, **more}


@pytest.mark.parametrize("word", STATES)
def test_a_state_of_batch_is_the_contracts(word: str) -> None:
    read = status(job(word))
    assert (read.job_id, read.name, read.state, read.reason) == ("7", "fit-1", STATES[word], None)
    assert read.evidence == f"AWS Batch says {word}"


def test_a_state_that_is_not_known_is_running_with_batchs_word_for_it() -> None:
    read = status(job("NEW_AT_AWS"))
    assert (read.state, read.evidence) == (JobState.RUNNING, "AWS Batch says NEW_AT_AWS")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - All compute environments have no ...", Reason.CONFIGURATION),
        ("MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - All compute ...", Reason.CONFIGURATION),
        ("MISCONFIGURATION:SERVICE_ROLE_PERMISSIONS - All compute ...", Reason.CONFIGURATION),
        ("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - All compute ...", Reason.UNSCHEDULABLE),
        ("UNDETERMINED - Batch job is blocked, root cause is undetermined.", None),
    ],
)
def test_a_job_that_cannot_start_says_why(words: str, reason: Reason | None) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable.html."""
    read = status(job("RUNNABLE", statusReason=words))
    assert (read.state, read.reason) == (JobState.QUEUED, reason)
    assert words in read.evidence


@pytest.mark.parametrize(
    ("container", "because", "reason"),
    [
        ("OutOfMemoryError: Container killed due to memory usage", "said so", Reason.OUT_OF_MEMORY),
        ("CannotPullContainerError: pull image manifest has been retried 1 time(s)", "said so", Reason.IMAGE),
        ("CannotStartContainerError: Error response from daemon", "said so", Reason.IMAGE),
        ("", "Host EC2 (instance i-0123456789abcdef0) terminated.", Reason.NODE_LOST),
        ("", "said so", None),
    ],
)
def test_a_job_that_failed_says_why(container: str, because: str, reason: Reason | None) -> None:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/stopped-task-error-codes.html."""
    read = status(job("FAILED", statusReason=because, container={"reason": container, "exitCode": 137}))
    assert (read.state, read.reason, read.exit_code) == (JobState.FAILED, reason, 137)
    assert read.evidence == ", ".join(filter(None, ("AWS Batch says FAILED", because, container)))


@pytest.mark.parametrize(("ran_ms", "reason"), [(60_000, Reason.TIMEOUT), (59_999, None)])
def test_a_job_that_ran_for_its_whole_timeout_met_it(ran_ms: int, reason: Reason | None) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/job_timeouts.html."""
    read = status(job("FAILED", timeout={"attemptDurationSeconds": 60}, startedAt=1000, stoppedAt=1000 + ran_ms))
    assert (read.state, read.reason) == (JobState.FAILED, reason)


def test_a_job_that_never_started_met_no_timeout() -> None:
    assert status(job("FAILED", timeout={"attemptDurationSeconds": 60}, stoppedAt=10**13)).reason is None


@pytest.mark.parametrize("flag", ["isTerminated", "isCancelled"])
def test_a_job_that_someone_ended_is_cancelled_once_it_is_over(flag: str) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_JobDetail.html."""
    said = {flag: True, "statusReason": "a colleague's words"}
    assert status(job("RUNNING", **said)).state is JobState.RUNNING
    assert status(job("SUCCEEDED", **said)).state is JobState.SUCCEEDED
    read = status(job("FAILED", **said))
    assert (read.state, read.evidence) == (JobState.CANCELLED, "AWS Batch says FAILED, a colleague's words")


def test_the_log_is_evidence() -> None:
    assert status(job("FAILED"), [{"message": "a"}, {"message": "b"}]).evidence == "AWS Batch says FAILED\na\nb"


def test_an_array_has_children_in_the_states_that_are_counted() -> None:
    counted = {"arrayProperties": {"size": 3, "statusSummary": {"FAILED": 1, "RUNNING": 2, "PENDING": 0}}}
    assert children(job("PENDING", **counted)) == {"FAILED", "RUNNING"}
    assert children(job("RUNNING", arrayProperties={"index": 1})) == set()
    assert children(job("RUNNING")) == set()


def answer(code: str, http: int) -> exceptions.ClientError:
    said: Any = {"Error": {"Code": code, "Message": "its words"}, "ResponseMetadata": {"HTTPStatusCode": http}}
    return exceptions.ClientError(said, "SubmitJob")


URL = {"endpoint_url": "https://batch.us-east-1.amazonaws.com", "error": "its words"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer("TooManyRequestsException", 429), TransientBackendError),
        (answer("ThrottlingException", 400), TransientBackendError),
        (answer("429", 429), TransientBackendError),
        (exceptions.EndpointConnectionError(**URL), TransientBackendError),
        (exceptions.ConnectTimeoutError(**URL), TransientBackendError),
        (answer("ExpiredTokenException", 403), BackendUnusableError),
        (answer("UnrecognizedClientException", 403), BackendUnusableError),
        (answer("AccessDeniedException", 403), BackendUnusableError),
        (answer("InvalidSignatureException", 403), BackendUnusableError),
        (answer("403", 403), BackendUnusableError),
        (exceptions.NoCredentialsError(), BackendUnusableError),
        (exceptions.NoRegionError(), BackendUnusableError),
        (exceptions.ProfileNotFound(profile="its words"), BackendUnusableError),
        (exceptions.TokenRetrievalError(provider="sso", error_msg="its words"), BackendUnusableError),
        (exceptions.CredentialRetrievalError(provider="x", error_msg="its words"), BackendUnusableError),
        (exceptions.RefreshWithMFAUnsupportedError(), BackendUnusableError),
        (answer("ClientException", 400), RejectedJobError),
        (answer("ValidationException", 400), RejectedJobError),
        (exceptions.ParamValidationError(report="its words"), RejectedJobError),
        (answer("ServerException", 500), exceptions.ClientError),
        (answer("500", 500), exceptions.ClientError),
        (answer("503", 503), exceptions.ClientError),
        (answer("RequestAbortedException", 400), exceptions.ClientError),
        (answer("RequestTimeoutException", 408), exceptions.ClientError),
        (exceptions.ReadTimeoutError(**URL), exceptions.ReadTimeoutError),
        (exceptions.ConnectionClosedError(**URL), exceptions.ConnectionClosedError),
        (exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), exceptions.IncompleteReadError),
    ],
)
def test_what_an_error_means(error: Exception, kind: type[Exception]) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/CommonErrors.html."""
    means = meaning(error, "submit_job")
    assert type(means) is kind, "one of boto3's is looked up by the job's name, since the job may be there"
    assert str(means).partition(" -> ")[0] == str(error)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (exceptions.NoRegionError(), "Set AWS_DEFAULT_REGION"),
        (exceptions.NoCredentialsError(), "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (exceptions.ProfileNotFound(profile="x"), "Give the option `profile`"),
        (exceptions.EndpointConnectionError(**URL), "Look whether this machine reaches that address"),
        (exceptions.ConnectTimeoutError(**URL), "Look whether this machine reaches that address"),
    ],
)
def test_an_error_whose_words_leave_open_what_to_do_says_it(error: Exception, advice: str) -> None:
    assert str(meaning(error, "describe_jobs")).startswith(f"{error} -> {advice}")


def test_what_is_no_submit_can_be_asked_again() -> None:
    means = meaning(answer("ServerException", 500), "describe_jobs")
    assert (type(means), "its words" in str(means)) == (TransientBackendError, True)


COMMAND = ("python", "-m", "batchport.runner")


def test_a_job_asks_for_what_it_needs() -> None:
    options = Options("fast", "img:3", share="lab", priority=7, tags={"team": "a"})
    extra = {"retryStrategy": None, "propagateTags": True, "containerOverrides": {"instanceType": "c5.large"}}
    need = Resources(cpus=2, memory_mib=500, gpus=1, time_limit_s=61, extra=extra)
    assert Adapter(options).request(JobSpec("fit-1", "fit", COMMAND, {"A": "1"}, need, size=10)) == {
        "jobName": "fit-1",
        "jobQueue": "fast",
        "jobDefinition": "img:3",
        "arrayProperties": {"size": 10},
        "timeout": {"attemptDurationSeconds": 61},
        "shareIdentifier": "lab",
        "schedulingPriorityOverride": 7,
        "tags": {"team": "a"},
        "propagateTags": True,
        "containerOverrides": {
            "command": ["python", "-m", "batchport.runner"],
            "environment": [{"name": "A", "value": "1"}],
            "resourceRequirements": [
                {"type": "VCPU", "value": "2"},
                {"type": "MEMORY", "value": "500"},
                {"type": "GPU", "value": "1"},
            ],
            "instanceType": "c5.large",
        },
    }


def test_a_job_that_asks_for_nothing_leaves_the_choice_to_the_definition() -> None:
    assert Adapter(Options()).request(JobSpec("fit-1", "fit", COMMAND, {}, Resources())) == {
        "jobName": "fit-1",
        "jobQueue": "batchport",
        "jobDefinition": "batchport",
        "retryStrategy": {"attempts": 1},
        "containerOverrides": {
            "command": ["python", "-m", "batchport.runner"],
            "environment": [],
            "resourceRequirements": [{"type": "VCPU", "value": "1"}],
        },
    }


def test_what_extra_removes_is_not_asked_for_also_among_the_overrides() -> None:
    extra = {"retryStrategy": None, "containerOverrides": {"resourceRequirements": None}}
    asked = Adapter(Options()).request(JobSpec("fit-1", "fit", COMMAND, {}, Resources(extra=extra)))
    assert "retryStrategy" not in asked
    assert asked["containerOverrides"] == {"command": ["python", "-m", "batchport.runner"], "environment": []}


@pytest.mark.parametrize("word", ["jobQueue", "jobName"])
def test_a_job_that_would_not_be_found_again_is_refused(word: str) -> None:
    """After an answer that never came it would be submitted a second time."""
    need = Resources(extra={word: "another"})
    with pytest.raises(RejectedJobError, match=f"{word} can.t be in `extra`"):
        Adapter(Options()).submit_job(JobSpec("fit-1", "fit", COMMAND, {}, need))


def test_a_time_limit_below_a_minute_is_a_minute() -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_JobTimeout.html."""
    asked = Adapter(Options()).request(JobSpec("fit-1", "fit", COMMAND, {}, Resources(time_limit_s=1)))
    assert asked["timeout"] == {"attemptDurationSeconds": 60}


def test_setup_lines_run_before_the_command_and_the_environment_travels_once() -> None:
    spec = JobSpec("fit-1", "fit", COMMAND, {"A": "1"}, Resources(), setup="ulimit -n 4096")
    overrides = Adapter(Options()).request(spec)["containerOverrides"]
    assert overrides["command"] == ["bash", "-c", spec.script]
    assert overrides["environment"] == []
