"""The AWS lab keeps AWS's rules: each test names the page that it has its rule from.

A text that no page has, and that only was seen, is tested where an adapter could read it; guessed texts never are.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError
from tests.lab import labs
from tests.lab.aws_calls import Calls, end_of

from batchport.testing.aws import AwsSimulator
from batchport.testing.aws.settings import HOST, Settings, environment
from batchport.testing.fault_proxy import FaultProxy

ENDED = "Essential container in task exited"  # (seen)
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("got SIGTERM", flush=True))
print("up", flush=True)
while True:
    time.sleep(0.1)
"""
KILLED = """
import os
from batchport.testing.aws import AwsSimulator
simulator = AwsSimulator()
print(simulator._server.pid, flush=True)
os.kill(os.getpid(), 9)
"""
ALONE = """
import sys, batchport.testing, batchport.testing.aws
sys.exit(any(name in sys.modules for name in ("moto", "boto3", "flask")))
"""
HUNGRY = "import time; x = bytearray(400 << 20); time.sleep(30)"


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsSimulator]:
    with labs.own_aws(min_timeout_s=1, stop_grace_s=1, max_memory_mib=4096) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def calls(aws: AwsSimulator) -> Calls:
    return Calls(aws.env)


def refusal(calls: Calls, **asked: Any) -> dict[str, Any]:
    """Return the error of a SubmitJob that is refused, with its HTTP status."""
    with pytest.raises(ClientError) as raised:
        calls.submit(**asked)
    return {**raised.value.response["Error"], "status": raised.value.response["ResponseMetadata"]["HTTPStatusCode"]}


# How a job runs and ends


def test_a_job_has_batchs_variables_and_those_of_definition_and_overrides(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html
    definition = calls.define("variables", "env")
    job = calls.run("env", env={"MINE": "2"}, jobDefinition=definition)
    said = set(calls.log(job))
    own = {
        f"AWS_BATCH_JOB_ID={job['jobId']}",
        "AWS_BATCH_JOB_ATTEMPT=1",
        "AWS_BATCH_JQ_NAME=lab",
        "AWS_BATCH_CE_NAME=lab",
    }
    assert said >= own | {"MINE=2", "FROM_DEFINITION=1"}
    assert not any("ARRAY" in line for line in said)


def test_a_job_reaches_its_store_with_what_a_job_role_gives(calls: Calls, aws: AwsSimulator) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job-roles.html is how; the simulator gives variables
    code = f"from batchport.store import open_store; open_store('{aws.store}/role').put('w/a', b'here')"
    assert calls.run(sys.executable, "-c", code)["status"] == "SUCCEEDED"
    stored = calls.client("s3").get_object(Bucket=aws.settings.bucket, Key="role/w/a")
    assert stored["Body"].read() == b"here"


@pytest.mark.parametrize(
    ("script", "status", "code"), [("true", "SUCCEEDED", 0), ("exit 3", "FAILED", 3), ("kill -9 $$", "FAILED", 137)]
)
def test_the_exit_code_decides_and_is_told(script: str, status: str, code: int, calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_states.html
    assert end_of(calls.run("sh", "-c", script)) == (status, ENDED, code, None)


def test_a_command_that_is_not_there_has_no_exit_code_and_a_reason(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html: "Task failed to start"
    status, why, code, reason = end_of(calls.run("/no/such/command"))
    assert (status, why, code) == ("FAILED", "Task failed to start", None)
    assert reason.startswith("CannotStartContainerError: ")


def test_a_job_over_its_memory_is_killed_and_says_so(calls: Calls) -> None:
    # https://repost.aws/knowledge-center/ecs-resolve-outofmemory-errors
    status, why, code, reason = end_of(calls.run(sys.executable, "-c", HUNGRY, jobDefinition=calls.define("small")))
    assert (status, why, code) == ("FAILED", ENDED, 137)
    assert reason.startswith("OutOfMemoryError: ")


def test_a_time_out_is_sigterm_then_sigkill_and_is_not_retried(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_timeouts.html
    more = {"timeout": {"attemptDurationSeconds": 1}, "retryStrategy": {"attempts": 3}}
    job = calls.run(sys.executable, "-c", DEAF, **more)
    assert end_of(job) == ("FAILED", "Job attempt duration exceeded timeout", 137, None)  # (seen)
    assert calls.log(job) == ["up", "got SIGTERM"]
    assert len(job["attempts"]) == 1


def test_nothing_that_a_job_started_outlives_it(calls: Calls, tmp_path: Path) -> None:
    # as in a container: https://docs.docker.com/reference/cli/docker/container/run/
    job = calls.run("sh", "-c", f"setsid sleep 300 & echo $! > {tmp_path}/pid")
    assert job["status"] == "SUCCEEDED"
    assert job["stoppedAt"] - job["startedAt"] < 4000, "its log was waited for, which the sleeper would have held open"
    pid = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 10
    while b"sleep" in _command(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _command(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_failed_job_is_retried_as_often_as_its_strategy_says(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html
    job = calls.run("sh", "-c", "test $AWS_BATCH_JOB_ATTEMPT = 3", retryStrategy={"attempts": 5})
    assert [attempt["container"]["exitCode"] for attempt in job["attempts"]] == [1, 1, 0]
    assert len({attempt["container"]["logStreamName"] for attempt in job["attempts"]}) == 3
    assert job["status"] == "SUCCEEDED"
    assert len(calls.run("false")["attempts"]) == 1


@pytest.mark.parametrize(("code", "attempts"), [(7, 1), (8, 2)])
def test_evaluate_on_exit_chooses_what_is_retried(code: int, attempts: int, calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_EvaluateOnExit.html
    rules = [{"onExitCode": "7", "action": "EXIT"}, {"onReason": "*", "action": "RETRY"}]
    job = calls.run("sh", "-c", f"exit {code}", retryStrategy={"attempts": 2, "evaluateOnExit": rules})
    assert len(job["attempts"]) == attempts


def test_a_lost_host_says_so_and_has_no_exit_code(calls: Calls, aws: AwsSimulator) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html: the pattern "Host EC2*"
    rules = [{"onStatusReason": "Host EC2*", "action": "RETRY"}, {"onReason": "*", "action": "EXIT"}]
    retry = {"attempts": 2, "evaluateOnExit": rules}
    job = calls.submit("sh", "-c", "test $AWS_BATCH_JOB_ATTEMPT = 2 || sleep 60", retryStrategy=retry)
    calls.wait(job, "RUNNING")
    aws.lose_hosts()
    first, second = calls.wait(job, "SUCCEEDED")["attempts"]
    assert first["statusReason"].startswith("Host EC2")
    assert "exitCode" not in first["container"]
    assert second["container"]["exitCode"] == 0


def test_a_job_that_asks_for_more_memory_than_any_host_has_stays_runnable(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_JobDetail.html, statusReason
    asked = {"resourceRequirements": [{"type": "MEMORY", "value": "9999"}]}
    job = calls.submit("true", containerOverrides=asked)
    seen = calls.wait(job, "RUNNABLE")
    assert "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT" in seen["statusReason"]
    assert calls.run("true")["status"] == "SUCCEEDED"
    assert calls.job(job)["status"] == "RUNNABLE"
    calls.batch.terminate_job(jobId=job, reason="too big")
    assert end_of(calls.job(job))[:2] == ("FAILED", "too big")


@pytest.mark.parametrize(("first", "second"), [("true", "SUCCEEDED"), ("false", "FAILED")])
def test_a_job_waits_for_the_one_that_it_depends_on_and_fails_with_it(first: str, second: str, calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_dependencies.html
    one = calls.submit("sh", "-c", f"sleep 0.5; {first}")
    two = calls.submit("true", dependsOn=[{"jobId": one}])
    calls.wait(two, "PENDING")
    assert calls.wait(two)["status"] == second


# Logs


def test_a_log_is_read_while_the_job_runs(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/using_cloudwatch_logs.html
    job = calls.submit("sh", "-c", "echo out; echo err >&2; sleep 60")
    running = calls.wait(job, "RUNNING")
    assert running["container"]["logStreamName"].startswith("lab/default/")
    deadline = time.monotonic() + 10
    while sorted(calls.log(running)) != ["err", "out"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    calls.batch.terminate_job(jobId=job, reason="seen enough")


def test_the_tail_of_a_long_log_is_had_with_limit(calls: Calls) -> None:
    # https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html
    job = calls.run("seq", "2000")
    stream = {"logGroupName": "/aws/batch/job", "logStreamName": job["container"]["logStreamName"]}
    events = calls.logs.get_log_events(**stream, limit=3)["events"]
    assert [event["message"] for event in events] == ["1998", "1999", "2000"]


# Arrays: https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html


def test_an_arrays_children_have_indexes_and_ids_and_the_parent_sums_them_up(calls: Calls) -> None:
    script = (
        "sleep 0.5; echo $AWS_BATCH_JOB_ARRAY_INDEX/$AWS_BATCH_JOB_ARRAY_SIZE; test $AWS_BATCH_JOB_ARRAY_INDEX != 1"
    )
    array = calls.submit("sh", "-c", script, arrayProperties={"size": 3})
    calls.wait(f"{array}:0", "RUNNING")
    assert calls.job(array)["status"] == "PENDING"
    parent, child = calls.wait(array), calls.job(f"{array}:2")
    assert (parent["status"], parent["arrayProperties"]["size"]) == ("FAILED", 3)
    counts = parent["arrayProperties"]["statusSummary"]
    assert {state: count for state, count in counts.items() if count} == {"SUCCEEDED": 2, "FAILED": 1}
    assert "exitCode" not in parent["container"]
    assert (child["arrayProperties"]["index"], calls.log(child)) == (2, ["2/3"])
    failed = calls.batch.list_jobs(arrayJobId=array, jobStatus="FAILED")["jobSummaryList"]
    assert [each["jobId"] for each in failed] == [f"{array}:1"]


@pytest.mark.parametrize("size", [1, 10_001])
def test_an_array_has_2_to_10000_children(size: int, calls: Calls) -> None:
    assert refusal(calls, arrayProperties={"size": size})["Code"] == "ClientException"


def test_an_array_of_10000_is_one_call_and_ends_with_one(calls: Calls) -> None:
    held = calls.submit("sleep", "60")
    array = calls.submit("true", arrayProperties={"size": 10_000}, dependsOn=[{"jobId": held}])
    assert calls.job(array)["arrayProperties"]["size"] == 10_000
    calls.batch.terminate_jobs(jobs=[array, held], reason="over")
    assert calls.wait(array)["arrayProperties"]["statusSummary"]["FAILED"] == 10_000


# What is refused


def test_a_submission_of_30_kib_is_refused(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html
    assert "30 KiB" in refusal(calls, parameters={"a": "x" * 31 * 1024})["Message"]  # (seen)
    assert calls.run("true", parameters={"a": "x" * 29 * 1024})["status"] == "SUCCEEDED"


def test_overrides_over_8192_characters_are_accepted_and_fail_later(calls: Calls) -> None:
    # https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html, overrides
    assert calls.run("true", env={"A": "x" * 7600})["status"] == "SUCCEEDED"
    job = calls.run("true", env={"A": "x" * 8192})
    assert end_of(job) == ("FAILED", "Container Overrides length must be at most 8192", None, None)  # (seen)
    assert job["attempts"] == []


def test_a_job_definition_of_24_kib_is_refused(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html
    with pytest.raises(ClientError):
        calls.define("huge", "x" * 24 * 1024)


@pytest.mark.parametrize("name", ["a.b", "-a", "a" * 129])
def test_a_job_name_is_letters_digits_hyphens_and_underscores_128_at_most(name: str, calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html, jobName
    assert refusal(calls, name=name)["Code"] == "ClientException"


@pytest.mark.parametrize(
    "asked",
    [
        {"env": {"AWS_BATCH_X": "1"}},  # API_ContainerOverrides.html
        {"dependsOn": [{"jobId": str(number)} for number in range(21)]},  # service_limits.html
        {"retryStrategy": {"attempts": 11}},  # API_RetryStrategy.html
        {"jobQueue": "nope"},  # API_SubmitJob.html
        {"jobDefinition": "nope"},  # API_SubmitJob.html
        {"shareIdentifier": "me"},  # API_SubmitJob.html: not for a queue without a fair-share policy
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_submission_may_not_ask_for(asked: dict[str, Any], calls: Calls) -> None:
    refused = refusal(calls, **asked)
    assert (refused["Code"], refused["status"]) == ("ClientException", 400)


def test_a_time_out_below_60_s_is_refused() -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_JobTimeout.html
    with labs.own_aws() as simulator:
        calls = Calls(simulator.env)
        assert refusal(calls, timeout={"attemptDurationSeconds": 59})["Code"] == "ClientException"
        assert calls.run("true", timeout={"attemptDurationSeconds": 60})["status"] == "SUCCEEDED"


def test_a_deregistered_job_definition_is_refused_in_words(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_DeregisterJobDefinition.html
    definition = calls.define("gone", "true")
    calls.batch.deregister_job_definition(jobDefinition=definition)
    assert "does not exist or is not in ACTIVE status" in refusal(calls, jobDefinition=definition)["Message"]  # (seen)


def test_a_disabled_queue_takes_no_jobs_and_ends_those_it_has(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_UpdateJobQueue.html, state
    job = calls.submit("sleep", "0.5")
    calls.batch.update_job_queue(jobQueue=calls.queue, state="DISABLED")
    try:
        assert refusal(calls)["Code"] == "ClientException"
        assert calls.wait(job)["status"] == "SUCCEEDED"
    finally:
        calls.batch.update_job_queue(jobQueue=calls.queue, state="ENABLED")


def test_a_queue_with_a_fair_share_policy_wants_a_share_identifier(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html, shareIdentifier
    policy = calls.batch.create_scheduling_policy(name="fair", fairsharePolicy={})["arn"]
    order = [{"order": 1, "computeEnvironment": calls.queue}]
    asked = {"jobQueueName": "fair", "priority": 1, "computeEnvironmentOrder": order, "schedulingPolicyArn": policy}
    calls.batch.create_job_queue(**asked, state="ENABLED")
    assert refusal(calls, jobQueue="fair")["Code"] == "ClientException"
    assert calls.run("true", jobQueue="fair", shareIdentifier="me")["status"] == "SUCCEEDED"


def test_more_than_50_submissions_a_second_are_throttled() -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html
    assert Settings().submits_per_second == 50
    with labs.own_aws(submits_per_second=5, max_running=1) as simulator, ThreadPoolExecutor(4) as pool:
        calls = Calls(simulator.env)

        def submit(number: int) -> str:
            try:
                return calls.submit("true")
            except ClientError as error:
                response = error.response
                return f"{response['ResponseMetadata']['HTTPStatusCode']} {response['Error']['Code']}"

        answers = list(pool.map(submit, range(12)))
        throttled = answers.count("429 TooManyRequestsException")  # (seen)
        assert 0 < throttled < 12
        assert {job["jobId"] for job in calls.named("job")} == {each for each in answers if not each.startswith("429 ")}


@pytest.mark.parametrize("fault", ["500-after", "reset-after"])
def test_submit_job_has_no_client_token_so_one_that_is_retried_makes_two_jobs(fault: str, aws: AwsSimulator) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html: nothing in it makes it idempotent
    name = f"twice-{fault}"
    with FaultProxy(aws.endpoint) as proxy:
        proxy.fail("submitjob", fault)
        Calls(aws.env, endpoint=proxy.url, attempts=3).submit("true", name=name)
        assert proxy.count("submitjob") == 2
    assert len(Calls(aws.env).named(name)) == 2


@pytest.mark.parametrize("fault", ["500-after", "reset-after"])
def test_an_ambiguous_answer_to_one_attempt_is_an_error_and_one_job(fault: str, aws: AwsSimulator) -> None:
    name = f"once-{fault}"
    with FaultProxy(aws.endpoint) as proxy:
        proxy.fail("submitjob", fault)
        with pytest.raises((ClientError, HTTPClientError)):
            Calls(aws.env, endpoint=proxy.url).submit("true", name=name)
    assert len(Calls(aws.env).named(name)) == 1


# Looking


def test_describe_takes_100_ids_and_leaves_out_what_it_does_not_know(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_DescribeJobs.html
    job = calls.submit("true")
    ids = [job, *(f"unknown-{number}" for number in range(99))]
    assert [each["jobId"] for each in calls.batch.describe_jobs(jobs=ids)["jobs"]] == [job]
    with pytest.raises(ClientError):
        calls.batch.describe_jobs(jobs=[*ids, "one-more"])


def test_a_job_that_is_over_for_long_is_not_known_any_more() -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_states.html
    with labs.own_aws(forget_after_s=1) as simulator:
        calls = Calls(simulator.env)
        job = calls.run("true")["jobId"]
        deadline = time.monotonic() + 10
        while calls.batch.describe_jobs(jobs=[job])["jobs"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert calls.named("job") == []


def test_listing_shows_running_jobs_or_those_of_a_name_in_any_state_and_no_children(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html
    running = calls.submit("sleep", "60", name="Listed-runs")
    array = calls.run("true", name="Listed-array", arrayProperties={"size": 2})["jobId"]
    ended = calls.run("false", name="listed-ended")["jobId"]
    calls.wait(running, "RUNNING")
    alone = calls.batch.list_jobs(jobQueue=calls.queue)["jobSummaryList"]
    assert running in {each["jobId"] for each in alone}
    assert {each["status"] for each in alone} == {"RUNNING"}
    assert [each["jobId"] for each in calls.named("listed-*")] == [ended, array, running]
    assert [each["jobId"] for each in calls.named("LISTED-ARRAY")] == [array]
    calls.batch.terminate_job(jobId=running, reason="over")


def test_a_listing_is_of_a_queue_or_of_an_array_and_not_of_both(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html
    array = calls.run("true", arrayProperties={"size": 2})["jobId"]
    for asked in ({}, {"jobQueue": calls.queue, "arrayJobId": array}):
        with pytest.raises(ClientError):
            calls.batch.list_jobs(**asked)


def test_a_listing_by_definition_heeds_the_case(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html, filters
    job = calls.run("true", jobDefinition=calls.define("Listed", "true"))["jobId"]

    def listed(value: str) -> list[str]:
        wanted = {"jobQueue": calls.queue, "filters": [{"name": "JOB_DEFINITION", "values": [value]}]}
        return [each["jobId"] for each in calls.batch.list_jobs(**wanted)["jobSummaryList"]]

    assert [listed(value) for value in ("Listed", "Lis*", "listed", "lis*")] == [[job], [job], [], []]


def test_a_listing_by_name_has_pages_of_100_at_most(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html, maxResults
    held = calls.submit("sleep", "60")
    ids = []
    for number in range(105):
        if number % 40 == 39:
            time.sleep(1)  # the rate that is allowed
        ids.append(calls.submit("true", name="paged", dependsOn=[{"jobId": held}]))
    wanted = {"jobQueue": calls.queue, "filters": [{"name": "JOB_NAME", "values": ["paged"]}]}
    first = calls.batch.list_jobs(**wanted)
    second = calls.batch.list_jobs(**wanted, nextToken=first["nextToken"])
    assert (len(first["jobSummaryList"]), len(second["jobSummaryList"])) == (100, 5)
    assert "nextToken" not in second
    assert [each["jobId"] for each in calls.named("paged")] == ids[::-1]
    calls.batch.terminate_job(jobId=held, reason="over")


# Stopping


def test_cancelling_stops_what_has_not_started(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_CancelJob.html
    held = calls.submit("sleep", "60")
    job = calls.submit("true", dependsOn=[{"jobId": held}])
    calls.batch.cancel_job(jobId=job, reason="not needed")
    seen = calls.wait(job)
    assert end_of(seen) == ("FAILED", "not needed", None, None)
    assert seen["isCancelled"]
    assert (seen["attempts"], "startedAt" in seen) == ([], False)
    calls.batch.terminate_job(jobId=held, reason="over")


def test_cancelling_does_nothing_to_a_running_job_and_terminating_ends_it(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJob.html
    job = calls.submit(sys.executable, "-c", DEAF)
    running = calls.wait(job, "RUNNING")
    calls.batch.cancel_job(jobId=job, reason="in vain")
    deadline = time.monotonic() + 10
    while "up" not in calls.log(running):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert calls.job(job)["status"] == "RUNNING"
    calls.batch.terminate_job(jobId=job, reason="stopped by me")
    seen = calls.wait(job)
    assert end_of(seen) == ("FAILED", "stopped by me", 137, None)
    assert seen["isTerminated"]
    assert calls.log(seen) == ["up", "got SIGTERM"]


def test_terminating_an_array_ends_all_its_children(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html
    array = calls.submit("sleep", "60", arrayProperties={"size": 6})
    calls.wait(f"{array}:0", "RUNNING")
    calls.batch.terminate_job(jobId=array, reason="all of them")
    assert calls.wait(array)["status"] == "FAILED"
    children = calls.batch.describe_jobs(jobs=[f"{array}:{index}" for index in range(6)])["jobs"]
    assert {child["statusReason"] for child in children} == {"all of them"}


def test_terminating_what_is_over_or_unknown_is_no_error_and_changes_nothing(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJobs.html
    job = calls.run("true")["jobId"]
    for stop in (calls.batch.terminate_job, calls.batch.cancel_job):
        stop(jobId=job, reason="late")
        stop(jobId="never-there", reason="late")
    assert calls.job(job)["status"] == "SUCCEEDED"


def test_terminating_many_takes_50_ids(calls: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJobs.html
    ids = [calls.submit("sleep", "60") for _ in range(5)]
    assert calls.batch.terminate_jobs(jobs=ids, reason="bulk")["successful"] == ids
    assert {calls.wait(job)["statusReason"] for job in ids} == {"bulk"}
    with pytest.raises(ClientError):
        calls.batch.terminate_jobs(jobs=["x"] * 51, reason="bulk")


# S3


RACE = """
import json, sys
from batchport.store import open_store
store = open_store(sys.argv[1])
sys.stdin.readline()
print(json.dumps([store.put(f"w/out/{n}", b"x", create=True) for n in range(30)]))
"""
SLOW = """
import time
from moto.s3.models import S3Backend
from batchport.testing.aws import server
look = S3Backend.get_object
def look_and_sleep(self, *args, **kwargs):
    seen = look(self, *args, **kwargs)
    time.sleep(0.005)
    return seen
S3Backend.get_object = look_and_sleep
server._main()
"""
"""A server that takes its time between the look whether an object is there and the writing."""


@pytest.fixture
def slow() -> Iterator[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    argv = (sys.executable, "-c", SLOW, "--port", str(port))
    with subprocess.Popen(argv, stdin=-1, stdout=-1, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield environment(port)
        assert server.stdin is not None
        server.stdin.close()


def test_of_processes_that_create_one_object_one_wins(slow: dict[str, str]) -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    argv = (sys.executable, "-c", RACE, "s3://lab/race")
    racers = [subprocess.Popen(argv, stdin=-1, stdout=-1, text=True, env=slow) for _ in range(6)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wins = [json.loads(racer.communicate()[0]) for racer in racers]
    assert [sum(each) for each in zip(*wins, strict=True)] == [1] * 30


# The simulator itself


def test_the_end_of_the_simulator_is_the_end_of_its_jobs(tmp_path: Path) -> None:
    with labs.own_aws() as simulator:
        calls = Calls(simulator.env)
        job = calls.submit("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 300")
        calls.wait(job, "RUNNING")
        deadline = time.monotonic() + 10
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert b"sleep" not in _command((tmp_path / "pid").read_text().strip())


def test_a_simulator_whose_tests_were_killed_ends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run((sys.executable, "-c", KILLED), capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 10
    while b"aws.server" in _command(done.stdout.strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_importing_what_authors_use_needs_nothing_of_the_simulators() -> None:
    assert subprocess.run((sys.executable, "-c", ALONE), check=False).returncode == 0


@pytest.mark.parametrize("executor", ["process", "docker"])
def test_the_standing_server_runs_jobs(executor: str) -> None:
    calls = Calls(labs.aws(executor=executor))
    job = calls.run("sh", "-c", "echo $AWS_BATCH_JQ_NAME")
    assert (job["status"], calls.log(job)) == ("SUCCEEDED", ["lab"])


# The same on containers


@pytest.fixture(scope="module")
def contained() -> Iterator[Calls]:
    with labs.own_aws(executor="docker", min_timeout_s=1, stop_grace_s=1) as simulator:
        yield Calls(simulator.env)


def test_a_containers_exit_code_is_told(contained: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_states.html
    assert end_of(contained.run("sh", "-c", "exit 3")) == ("FAILED", ENDED, 3, None)


def test_a_container_that_is_killed_ends_with_137_and_no_reason(contained: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_ContainerDetail.html, exitCode and reason
    job = contained.submit("sleep", "300")
    contained.wait(job, "RUNNING")
    (container,) = _containers(labs.engine(), job)
    subprocess.run(("/usr/bin/docker", "kill", container), env=labs.engine(), capture_output=True, check=True)
    assert end_of(contained.wait(job)) == ("FAILED", ENDED, 137, None)


def test_a_container_over_its_memory_is_killed_and_says_so(contained: Calls) -> None:
    # https://repost.aws/knowledge-center/ecs-resolve-outofmemory-errors
    status, why, code, reason = end_of(contained.run("python", "-c", HUNGRY, jobDefinition=contained.define("small")))
    assert (status, why, code) == ("FAILED", ENDED, 137)
    assert reason.startswith("OutOfMemoryError: ")


def test_an_image_that_cannot_be_pulled_is_named(contained: Calls) -> None:
    # https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_cannot_pull_image.html
    definition = contained.define("no-image", "true", image="no.such/image:1")
    status, why, code, reason = end_of(contained.run("true", jobDefinition=definition))
    assert (status, why, code) == ("FAILED", "Task failed to start", None)
    assert reason.startswith("CannotPullContainerError: ")
    assert "no.such/image:1" in reason


def test_a_container_that_times_out_gets_sigterm_and_then_sigkill(contained: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_timeouts.html
    job = contained.run("python", "-c", DEAF, timeout={"attemptDurationSeconds": 1})
    assert end_of(job) == ("FAILED", "Job attempt duration exceeded timeout", 137, None)
    assert contained.log(job) == ["up", "got SIGTERM"]


def test_a_command_that_is_not_in_the_image_is_named(contained: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html
    status, why, code, reason = end_of(contained.run("/no/such/command"))
    assert (status, why, code) == ("FAILED", "Task failed to start", None)
    assert "/no/such/command" in reason


def test_the_children_of_an_array_are_containers_of_their_own(contained: Calls) -> None:
    # https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html
    array = contained.run("sh", "-c", "echo $AWS_BATCH_JOB_ARRAY_INDEX", arrayProperties={"size": 3})["jobId"]
    children = contained.batch.describe_jobs(jobs=[f"{array}:{index}" for index in range(3)])["jobs"]
    assert [contained.log(child) for child in children] == [["0"], ["1"], ["2"]]


def test_a_terminated_container_is_gone_and_so_are_all_when_the_simulator_ends() -> None:
    env = labs.engine()
    with labs.own_aws(executor="docker") as simulator:
        calls = Calls(simulator.env)
        one, two = (calls.submit("sleep", "300") for _ in range(2))
        calls.wait(one, "RUNNING")
        calls.wait(two, "RUNNING")
        calls.batch.terminate_job(jobId=one, reason="over")
        calls.wait(one)
        assert (len(_containers(env, one)), len(_containers(env, two))) == (0, 1)
    assert _containers(env, two) == []


def _containers(env: dict[str, str], job: str) -> list[str]:
    argv = ("/usr/bin/docker", "ps", "--all", "--quiet", "--filter", f"name={job}")
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout.split()
