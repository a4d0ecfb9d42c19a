"""The adapter keeps AWS Batch's rules and tells what Batch tells, by its own calls to a simulated AWS of the tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batchport_aws_batch.adapter import Adapter
from batchport_aws_batch.options import Options
from tests.examples.on_aws_batch import led_to
from tests.lab import labs
from tests.lab.aws_calls import Calls

from batchport import (
    BackendUnusableError,
    JobSpec,
    JobState,
    JobStatus,
    Reason,
    RejectedJobError,
    Resources,
    TransientBackendError,
)
from batchport.testing.aws import AwsSimulator
from batchport.testing.fault_proxy import FaultProxy

LAB = Options(queue="lab", definition="lab")
HUGE = Resources(memory_mib=1 << 20)


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsSimulator]:
    with labs.own_aws(max_running=4) as simulator, led_to(simulator.env):
        yield simulator


@pytest.fixture
def calls(aws: AwsSimulator) -> Calls:
    return Calls(aws.env)


@pytest.fixture
def adapter(aws: AwsSimulator) -> Adapter:
    return opened(LAB)


@pytest.fixture
def proxy(aws: AwsSimulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(aws.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def opened(options: Options) -> Adapter:
    adapter = Adapter(options)
    adapter.open("tests")
    return adapter


def a_job(script: str, *, size: int = 1, need: Resources | None = None) -> JobSpec:
    name = f"job-{time.monotonic_ns()}"
    return JobSpec(name, "job", (sys.executable, "-c", script), {}, need or Resources(), size)


def until(look: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s"
        time.sleep(0.05)
    return seen


def said(adapter: Adapter, *job_ids: str) -> dict[str, JobStatus]:
    return {each.job_id: each for each in adapter.poll_jobs(job_ids)}


def states(statuses: dict[str, JobStatus], *job_ids: str) -> Sequence[JobState | None]:
    return [statuses[each].state if each in statuses else None for each in job_ids]


def only(index: int, script: str) -> str:
    """Return what the element of this index does; the others end well."""
    return f"import os, sys, time\nif os.environ['AWS_BATCH_JOB_ARRAY_INDEX'] == '{index}': {script}"


# Arrays. https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html


def test_a_child_that_failed_is_told_while_its_array_lives(adapter: Adapter, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"import pathlib; [time.sleep(0.05) for _ in iter(pathlib.Path({str(gate)!r}).exists, True)]"
    array = adapter.submit_job(a_job(f"{only(1, 'sys.exit(3)')}\n{only(2, wait)}", size=3))
    try:
        failed = until(lambda: said(adapter, array).get(f"{array}:1"))
        assert (failed.state, failed.exit_code) == (JobState.FAILED, 3)
        assert states(said(adapter, array), array, f"{array}:0", f"{array}:2") == [JobState.QUEUED, None, None]
    finally:
        gate.touch()
    over = until(lambda: (now := said(adapter, array))[array].state.is_final and now)
    assert states(over, *(f"{array}:{index}" for index in range(3))) == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.SUCCEEDED,
    ]


def test_an_array_that_ended_well_speaks_for_all_its_children(adapter: Adapter) -> None:
    array = adapter.submit_job(a_job("", size=3))
    over = until(lambda: (now := said(adapter, array))[array].state.is_final and now)
    assert {each: status.state for each, status in over.items()} == {array: JobState.SUCCEEDED}


@pytest.mark.parametrize("size", [1, 3])
def test_what_can_never_run_says_so_an_array_for_all_its_children(adapter: Adapter, size: int) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable.html."""
    job_id = adapter.submit_job(a_job("", size=size, need=HUGE))
    try:
        blocked = until(lambda: (status := said(adapter, job_id)[job_id]).reason and status)
        assert (blocked.state, blocked.reason) == (JobState.QUEUED, Reason.CONFIGURATION)
        assert "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT" in blocked.evidence
    finally:
        adapter.cancel_job(job_id)
    assert until(lambda: said(adapter, job_id)[job_id].state is JobState.CANCELLED)


def test_a_first_child_that_ends_between_two_calls_does_not_end_its_array(adapter: Adapter) -> None:
    waiting = {"size": 2, "statusSummary": {"RUNNABLE": 2}}
    array = {"jobId": "7", "jobName": "fit-1", "status": "PENDING", "arrayProperties": waiting}
    child = {"jobId": "7:0", "jobName": "fit-1", "status": "FAILED", "statusReason": "Host EC2 (i-0) terminated."}

    class Batch:
        def can_paginate(self, operation: str) -> bool:
            return False

        def describe_jobs(self, jobs: list[str]) -> Any:
            return {"jobs": [each for each in (array, child) if each["jobId"] in jobs]}

    adapter.clients["batch"] = Batch()
    (status,) = adapter.poll_jobs(["7"])
    assert (status.job_id, status.state, status.reason) == ("7", JobState.QUEUED, None)


def test_of_more_children_than_a_listing_shows_at_once_each_is_told(adapter: Adapter) -> None:
    """A page has 1,000: https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html, maxResults."""
    array = adapter.submit_job(a_job("", size=1100, need=HUGE))
    adapter.cancel_job(array)
    assert set(said(adapter, array)) == {array, *(f"{array}:{index}" for index in range(1100))}


class Array:
    """Batch, with one array that is over: the first child met its time-out, the second ended well."""

    def __init__(self, status: str, counted: dict[str, int]) -> None:
        self.array = {"jobId": "7", "jobName": "fit-1", "status": status, "timeout": {"attemptDurationSeconds": 60}}
        self.array["arrayProperties"] = {"size": 2, "statusSummary": counted}

    def can_paginate(self, operation: str) -> bool:
        return False

    def describe_jobs(self, jobs: list[str]) -> Any:
        return {"jobs": [self.array]}

    def list_jobs(self, arrayJobId: str, jobStatus: str) -> Any:  # noqa: N803 - boto3's words
        index, ran_ms = {"FAILED": (0, 60_000), "SUCCEEDED": (1, 10)}[jobStatus]
        child = {"jobId": f"{arrayJobId}:{index}", "jobName": "fit-1", "status": jobStatus}
        return {"jobSummaryList": [child | {"startedAt": 1000, "stoppedAt": 1000 + ran_ms}]}


def test_a_child_that_met_the_timeout_says_so_though_a_listing_leaves_timeouts_out(adapter: Adapter) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_JobSummary.html and API_SubmitJob.html, timeout."""
    adapter.clients["batch"] = Array("PENDING", {"FAILED": 1, "RUNNING": 1})
    assert said(adapter, "7")["7:0"].reason is Reason.TIMEOUT


@pytest.mark.parametrize("counted", [{"FAILED": 1, "SUCCEEDED": 1}, {"FAILED": 1, "RUNNING": 1}, {"RUNNING": 2}])
def test_a_failed_array_does_not_speak_for_its_children_though_their_sum_is_old(
    adapter: Adapter, counted: dict[str, int]
) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_ArrayPropertiesDetail.html, the time of its sum."""
    adapter.clients["batch"] = Array("FAILED", counted)
    assert states(said(adapter, "7"), "7:0", "7:1") == [JobState.FAILED, JobState.SUCCEEDED]


# Whose fault a refusal is. https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html


def test_a_job_that_asks_for_what_is_not_there_is_rejected_alone(adapter: Adapter) -> None:
    own = Resources(extra={"jobDefinition": "there-is-none"})
    with pytest.raises(RejectedJobError, match="there-is-none"):
        adapter.submit_job(a_job("", need=own))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options("there-is-none", "lab"), "job queue there-is-none: it is not in this account and region"),
        (Options("lab", "there-is-none"), "job definition there-is-none: none is ACTIVE"),
    ],
)
def test_a_queue_or_definition_that_is_not_there_stops_all_jobs(
    aws: AwsSimulator, options: Options, words: str
) -> None:
    adapter = opened(options)
    with pytest.raises(BackendUnusableError) as raised:
        adapter.submit_job(a_job(""))
    assert words in str(raised.value)
    where, *others = adapter.check()
    assert where.what.endswith(", in the region us-east-1"), "a queue may well be there, but in another region"
    assert words.partition(": ")[0] in "; ".join(each.what for each in others if not each.ok)


def test_a_disabled_queue_stops_all_jobs_until_it_is_enabled(adapter: Adapter, calls: Calls) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_UpdateJobQueue.html."""
    calls.batch.update_job_queue(jobQueue="lab", state="DISABLED")
    try:
        with pytest.raises(BackendUnusableError, match="job-queue/lab: it is DISABLED, VALID"):
            adapter.submit_job(a_job(""))
    finally:
        calls.batch.update_job_queue(jobQueue="lab", state="ENABLED")
    assert adapter.submit_job(a_job(""))


def test_a_queue_with_a_fair_share_policy_stops_all_jobs_without_the_option(aws: AwsSimulator, calls: Calls) -> None:
    policy = calls.batch.create_scheduling_policy(name="fair")["arn"]
    order = [{"order": 1, "computeEnvironment": "lab"}]
    calls.batch.create_job_queue(
        jobQueueName="fair", priority=1, computeEnvironmentOrder=order, state="ENABLED", schedulingPolicyArn=policy
    )
    with pytest.raises(BackendUnusableError, match="the option `share`: it is for queues with a fair-share policy"):
        opened(Options("fair", "lab")).submit_job(a_job(""))
    assert opened(Options("fair", "lab", share="mine")).submit_job(a_job(""))
    with pytest.raises(BackendUnusableError, match="the option `share`"):
        opened(Options("lab", "lab", share="mine")).submit_job(a_job(""))


@pytest.mark.parametrize(
    ("options", "own"),
    [
        (Options("lab", "there-is-none"), {"jobDefinition": "lab"}),
        (Options("lab", "lab", share="mine"), {"shareIdentifier": None}),
    ],
)
def test_a_job_with_a_definition_or_share_of_its_own_that_asks_for_too_much_is_rejected_alone(
    aws: AwsSimulator, options: Options, own: dict[str, Any]
) -> None:
    adapter = opened(options)
    with pytest.raises(RejectedJobError):
        adapter.submit_job(a_job("", need=Resources(extra=own | {"retryStrategy": {"attempts": 11}})))
    assert adapter.submit_job(a_job("", need=Resources(extra=own)))


def test_a_definition_that_is_gone_stops_all_jobs(aws: AwsSimulator, calls: Calls) -> None:
    arn = calls.define("goes", "true")
    adapter = opened(Options("lab", "goes"))
    adapter.submit_job(a_job(""))
    calls.batch.deregister_job_definition(jobDefinition=arn)
    with pytest.raises(BackendUnusableError, match="job definition goes: none is ACTIVE"):
        adapter.submit_job(a_job(""))


def test_a_definition_is_looked_at_by_its_name_its_revision_or_its_arn(aws: AwsSimulator, calls: Calls) -> None:
    (found,) = calls.batch.describe_job_definitions(jobDefinitionName="lab")["jobDefinitions"]
    arn = found["jobDefinitionArn"]
    for definition in ("lab", "lab:1", arn, arn.rpartition(":")[0]):
        assert [each for each in opened(Options("lab", definition)).check() if not each.ok] == []
    (wrong,) = [each for each in opened(Options("lab", "lab:2")).check() if not each.ok]
    assert wrong.what == "job definition lab:2"


WELL: dict[str, list[dict[str, Any]]] = {
    "jobQueues": [{"state": "ENABLED", "status": "VALID", "computeEnvironmentOrder": [{"computeEnvironment": "lab"}]}],
    "computeEnvironments": [{"computeEnvironmentName": "lab", "state": "ENABLED", "status": "VALID"}],
    "jobDefinitions": [
        {"revision": number, "containerProperties": {"image": f"img:{number}"}} for number in (9, 10, 8)
    ],
}
"""What Batch says of an account where jobs can run; no server makes a queue that is not valid."""


@pytest.mark.parametrize(
    ("kind", "what"), [("jobQueues", "job queue lab"), ("computeEnvironments", "compute environment lab")]
)
@pytest.mark.parametrize("broken", [{"state": "DISABLED"}, {"status": "INVALID", "statusReason": "CLIENT_ERROR - ..."}])
def test_a_queue_and_its_compute_environments_must_be_enabled_and_valid(
    kind: str, what: str, broken: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/invalid_compute_environment.html."""
    adapter = Adapter(replace(LAB, region="us-east-1"))
    answer = WELL | {kind: [WELL[kind][0] | broken]}
    monkeypatch.setattr(adapter, "ask", lambda *_, **__: {"Arn": "me", **answer})
    (wrong,) = [each for each in adapter.check() if not each.ok]
    assert wrong.what == what
    assert all(word in wrong.advice for word in broken.values())


def test_the_image_that_is_looked_at_is_that_of_the_newest_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html, jobDefinition."""
    adapter = Adapter(replace(LAB, region="us-east-1"))
    monkeypatch.setattr(adapter, "ask", lambda *_, **__: {"Arn": "me", **WELL})
    assert "job definition lab, image img:10" in [each.what for each in adapter.check() if each.ok]


# Calls. https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html


def test_the_limits_are_the_most_that_batch_takes(aws: AwsSimulator, adapter: Adapter) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html, jobName and arrayProperties."""
    limits = adapter.limits
    assert limits.submits_per_second == aws.settings.submits_per_second
    most = replace(a_job("", size=limits.array_size, need=HUGE), name="n" * limits.name_length)
    adapter.cancel_job(adapter.submit_job(most))
    for too_much in (replace(most, size=most.size + 1), replace(most, name=f"{most.name}n")):
        with pytest.raises(RejectedJobError):
            adapter.submit_job(too_much)


def test_of_120_jobs_each_is_cancelled_though_a_call_takes_50(adapter: Adapter, proxy: FaultProxy) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJobs.html."""
    adapter.close()  # its next clients go through the proxy
    adapter.cancel_jobs([f"unknown-{number}" for number in range(120)])
    assert proxy.count("terminatejobs") == 3


def test_a_job_that_cannot_be_ended_is_told_once_the_others_are_ended(adapter: Adapter) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJobsErrorDetail.html."""
    ended: list[str] = []

    class Batch:
        def can_paginate(self, operation: str) -> bool:
            return False

        def terminate_jobs(self, jobs: list[str], reason: str) -> Any:
            ended.extend(jobs)
            denied = [{"job": "0", "code": "AccessDenied", "message": "its words"}]
            return {"successful": jobs, "errors": denied if "0" in jobs else []}

    adapter.clients["batch"] = Batch()
    jobs = [str(number) for number in range(120)]
    with pytest.raises(TransientBackendError, match="its words"):
        adapter.cancel_jobs(jobs)
    assert ended == jobs


@pytest.mark.parametrize("fault", ["500-after", "reset-after"])
def test_a_submit_without_a_clear_answer_is_one_job_and_is_found_by_its_name(
    aws: AwsSimulator, proxy: FaultProxy, fault: str
) -> None:
    adapter = opened(LAB)
    spec = a_job("")
    proxy.fail("submitjob", fault)
    with pytest.raises(Exception, match=r"SubmitJob|onnection") as raised:
        adapter.submit_job(spec)
    assert not isinstance(raised.value, BackendUnusableError | RejectedJobError)
    assert proxy.count("submitjob") == 1
    assert [name for name, _ in adapter.find_jobs([spec.name])] == [spec.name]


def test_credentials_that_expire_stop_all_jobs_and_new_ones_are_taken(
    aws: AwsSimulator, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = opened(LAB)
    proxy.fail("submitjob", "403-before", code="ExpiredTokenException")
    with pytest.raises(BackendUnusableError, match="ExpiredTokenException"):
        adapter.submit_job(a_job(""))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    adapter.submit_job(a_job(""))
    (key,) = {each._request_signer._credentials.access_key for each in adapter.clients.values()}
    assert key == "renewed"


def test_a_place_without_credentials_or_region_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with led_to({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_EC2_METADATA_DISABLED": "true"}):
        monkeypatch.setenv("HOME", "/no/such/folder")
        with pytest.raises(BackendUnusableError, match="region"):
            Adapter(LAB).open("tests")
        with pytest.raises(BackendUnusableError, match="credentials"):
            Adapter(Options(region="us-east-1")).open("tests")
        with pytest.raises(BackendUnusableError, match="profile"):
            Adapter(Options(profile="there-is-none")).open("tests")


def test_a_log_in_a_group_of_the_definitions_own_is_read_there(adapter: Adapter) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/using_cloudwatch_logs.html."""
    asked: list[Any] = []
    box = {"logStreamName": "s", "logConfiguration": {"options": {"awslogs-group": "/ours"}}}

    class Logs:
        def can_paginate(self, operation: str) -> bool:
            return False

        def describe_jobs(self, **which: Any) -> Any:
            return {"jobs": [{"jobId": "7", "jobName": "fit-1", "status": "FAILED", "container": box}]}

        def get_log_events(self, **which: Any) -> Any:
            asked.append(which)
            return {"events": [{"message": "last words"}]}

    adapter.clients |= {"batch": Logs(), "logs": Logs()}
    status = adapter.inspect_job("7")
    assert status is not None
    assert status.evidence.splitlines() == ["AWS Batch says FAILED", "last words"]
    assert asked == [{"logGroupName": "/ours", "logStreamName": "s", "limit": 50}]
