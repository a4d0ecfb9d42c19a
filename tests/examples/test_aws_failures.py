"""What a user of AWS Batch is told when a job ends badly or cannot start: reason, sentence and evidence.

On real containers, in the image that the scaffold's Dockerfile makes. AWS's own words are matched where a page of AWS's
has them; it is named there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from batchport_aws_batch.options import Options
from tests.examples.on_aws_batch import (
    SettlesIn,
    built,
    executor_on,
    failure_of,
    led_to,
    options_of,
    runner_image,
    told,
    until,
    words,
)
from tests.lab import labs
from tests.lab.aws_calls import Calls

from batchport import BatchExecutor, BatchWorker, Blob, Failure, Outcome, Reason, Task
from batchport.envelope import Envelope
from batchport.store import open_store
from batchport.testing.aws import AwsSimulator

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)
Make = Callable[..., BatchExecutor]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with runner_image(tmp_path_factory.mktemp("image")) as name:
        yield name


@pytest.fixture(scope="module")
def aws(image: str) -> Iterator[AwsSimulator]:
    """Give this module an AWS that it may break, whose jobs are containers with batchport in them."""
    with (
        labs.own_aws(executor="docker", image=image, min_timeout_s=1) as simulator,
        led_to(simulator.env),
    ):
        yield simulator


@pytest.fixture
def calls(aws: AwsSimulator) -> Calls:
    return Calls(aws.env)


@pytest.fixture
def make(aws: AwsSimulator) -> Make:
    """Make executors on that AWS."""
    return lambda **options: executor_on(aws, **options)


def failure(executor: BatchExecutor, function: Callable[..., object], *args: object, **asked: Any) -> Failure:
    """Have a call fail, and return how."""
    with executor:
        future = executor.options(**asked).submit(function, *args)
        try:
            return failure_of(future)
        finally:
            future.cancel()


def batchs_word(failure: Failure) -> str:
    """Return the line of the evidence that is AWS Batch's; of a job that was given up, the one before its end."""
    return next(line for line in failure.evidence.splitlines() if line.startswith("AWS Batch says"))


def running(calls: Calls, label: str) -> str:
    """Return the id of the call's job with this label, once its task runs."""
    jobs = until("the job to run", lambda: [each for each in calls.named(f"hold-{label}-*") if is_held(calls, each)])
    return str(jobs[0]["jobId"])


def is_held(calls: Calls, listed: dict[str, Any]) -> bool:
    return listed["status"] == "RUNNING" and "holding" in calls.log(calls.job(listed["jobId"]))


def hold(store: str = "") -> None:
    """Say so in the job's log, whatever becomes of what the task prints, and go on for long, or until told to end."""
    Path("/proc/1/fd/1").write_text("holding\n")
    end = time.monotonic() + 60
    while time.monotonic() < end and not (store and open_store(store).exists("go")):
        time.sleep(0.1)


def nothing() -> None:
    """Never run."""


def test_a_job_that_ends_before_its_runner_starts_shows_its_exit_code_and_what_it_printed(make: Make) -> None:
    failed = failure(make(setup="echo no module named fftw >&2\nexit 7"), nothing)
    assert failed.reason is Reason.RUNNER_CRASH
    assert words(failed) == "Job NAME ended with exit code 7 and left no result."
    assert batchs_word(failed).startswith("AWS Batch says FAILED")
    assert failed.evidence.splitlines()[-1] == "no module named fftw"


def test_an_exception_comes_back_as_itself_and_the_job_failed_with_exit_code_1(make: Make, calls: Calls) -> None:
    def divide() -> float:
        return 1 / 0

    with make() as executor, pytest.raises(ZeroDivisionError) as raised:
        executor.options(label="by-zero").submit(divide).result()
    assert "in divide" in str(raised.value.__cause__)
    (job,) = calls.named("divide-by-zero-*")
    assert (job["status"], job["container"]["exitCode"]) == ("FAILED", 1)


def test_a_container_that_is_killed_shows_the_signal(make: Make, calls: Calls) -> None:
    with make() as executor:
        future = executor.options(label="killed").submit(hold)
        job_id = running(calls, "killed")
        env = labs.engine()
        listed = ("/usr/bin/docker", "ps", "--quiet", "--filter", f"name={job_id}")
        container = subprocess.check_output(listed, env=env, text=True).strip()
        subprocess.run(("/usr/bin/docker", "kill", container), env=env, check=True, stdout=subprocess.DEVNULL)
        failed = failure_of(future)
    assert failed.reason is Reason.RUNNER_CRASH
    assert words(failed) == "Job NAME ended with exit code 137 (SIGKILL) and left no result."
    assert failed.evidence.splitlines()[-1] == "holding"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "The task's process was ended by SIGKILL (Killed)."),
        (signal.SIGSEGV, "The task's process was ended by SIGSEGV (Segmentation fault)."),
    ],
)
def test_a_task_whose_process_is_killed_is_the_runners_to_tell(make: Make, number: int, message: str) -> None:
    def end() -> None:
        print("last words", flush=True)
        os.kill(os.getpid(), number)

    failed = failure(make(), end)
    assert (failed.reason, failed.message) == (Reason.RUNNER_CRASH, message)
    assert "last words" in failed.evidence


def test_too_much_memory_is_told_with_the_limit(make: Make) -> None:
    """https://repost.aws/knowledge-center/ecs-resolve-outofmemory-errors."""

    def allocate() -> int:
        print("last words", flush=True)
        return len(bytearray(os.urandom(1 << 20) * 400))

    failed = failure(make(), allocate, memory_mib=100)
    assert failed.reason is Reason.OUT_OF_MEMORY
    assert words(failed) == "Job NAME was ended because it used more memory than its limit of 100 MiB a task."
    assert batchs_word(failed).endswith(", OutOfMemoryError: Container killed due to memory usage")
    assert "last words" in failed.evidence


def test_a_task_that_overruns_its_time_limit_is_ended_by_the_runner(make: Make) -> None:
    def oversleep() -> None:
        print("last words", flush=True)
        time.sleep(60)

    failed = failure(make(), oversleep, time_limit_s=1)
    assert failed.reason is Reason.TIMEOUT
    assert failed.message == "The task ran longer than its time limit of 1 s and was ended."
    assert "last words" in failed.evidence


def test_a_job_that_overruns_batchs_timeout_is_told_by_its_times(make: Make) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/job_timeouts.html."""
    failed = failure(make(), hold, extra={"timeout": {"attemptDurationSeconds": 2}})
    assert failed.reason is Reason.TIMEOUT
    assert words(failed) == "Job NAME was ended because it ran longer than its time limit."
    assert batchs_word(failed).endswith(", it ran for its whole timeout")
    assert "The job was told to end by SIGTERM while the task ran." in failed.evidence


def test_an_image_that_cannot_be_pulled_is_told_in_the_engines_words(make: Make, aws: AwsSimulator) -> None:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_cannot_pull_image.html."""
    Calls(aws.env).define("no-image", image="no.such/image:1")
    failed = failure(make(adapter=SettlesIn(3, Options("lab", "no-image"))), nothing)
    assert failed.reason is Reason.IMAGE
    assert words(failed) == "Job NAME could not start: its image can't be pulled or run."
    said = batchs_word(failed)
    assert said.startswith("AWS Batch says FAILED, Task failed to start, CannotPullContainerError: Error response from")
    assert "no.such/image:1" in said


def test_a_python_that_is_not_in_the_image_is_named(make: Make) -> None:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/stopped-task-error-codes.html."""
    failed = failure(make(python="python9"), nothing)
    assert failed.reason is Reason.IMAGE
    said = batchs_word(failed)
    assert said.startswith(
        "AWS Batch says FAILED, Task failed to start, CannotStartContainerError: Error response from"
    )
    assert "python9" in said


def test_an_image_with_another_python_than_the_clients_names_both(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payload is as a client with that Python makes it."""
    monkeypatch.setattr("batchport.worker.payload.Envelope", partial(Envelope, python="3.9"))
    failed = failure(make(), nothing)
    assert failed.reason is Reason.ENVIRONMENT
    said = "The task was pickled by Python 3.9, and the job runs Python 3.11, which cannot run its code."
    assert failed.message == said
    assert "build the jobs' image with it" in failed.advice


def test_an_image_with_another_cloudpickle_than_the_clients_names_both(
    make: Make, calls: Calls, image: str, tmp_path: Path
) -> None:
    other = f"FROM {image}\nUSER root\nRUN pip install --quiet --no-deps cloudpickle==2.2.1\nUSER job\n"
    (tmp_path / "Dockerfile").write_text(other, encoding="utf-8")
    with built(tmp_path) as tag:
        calls.define("other-cloudpickle", image=tag)
        failed = failure(make(adapter=SettlesIn(3, Options("lab", "other-cloudpickle"))), nothing)
    ours = cloudpickle.__version__
    assert failed.reason is Reason.ENVIRONMENT
    assert failed.message == (
        f"The task was pickled by cloudpickle {ours}, and the job has cloudpickle 2.2.1, which cannot read it."
    )
    assert failed.advice == f"Install cloudpickle=={ours} in the job's Python."


def test_an_image_without_batchport_is_told_in_its_pythons_words(make: Make, calls: Calls) -> None:
    calls.define("no-batchport", image="python:3.11-slim")
    failed = failure(make(adapter=SettlesIn(3, Options("lab", "no-batchport"))), nothing)
    assert failed.reason is Reason.RUNNER_CRASH
    assert "No module named 'batchport'" in failed.evidence


def test_a_job_that_somebody_terminates_is_cancelled_in_their_words(make: Make, calls: Calls) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJob.html."""
    with make() as executor:
        future = executor.options(label="unloved").submit(hold)
        calls.batch.terminate_job(jobId=running(calls, "unloved"), reason="make room for mine")
        failed = failure_of(future)
    assert failed.reason is Reason.CANCELLED
    assert words(failed) == "Job NAME was cancelled at the backend, and not by its worker."
    assert batchs_word(failed) == "AWS Batch says FAILED, make room for mine"
    assert "The job was told to end by SIGTERM while the task ran." in failed.evidence


def test_a_lost_host_is_told_and_nothing_is_run_again_unasked(make: Make, aws: AwsSimulator, calls: Calls) -> None:
    """https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html."""
    with make() as executor:
        future = executor.options(label="lost").submit(hold)
        running(calls, "lost")
        aws.lose_hosts()
        failed = failure_of(future)
    assert failed.reason is Reason.NODE_LOST
    assert words(failed) == "Job NAME ended because the machine that ran it went away."
    assert batchs_word(failed).startswith("AWS Batch says FAILED, Host EC2 (instance i-")
    assert failed.evidence.splitlines()[-1] == "holding"
    assert len(calls.named("hold-lost-*")) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_task_whose_host_is_lost_runs_again_as_often_as_is_asked_for_and_that_is_counted(
    aws: AwsSimulator, calls: Calls, times: int
) -> None:
    outcomes: list[Outcome] = []
    store = open_store(f"{aws.store}/lost-{times}")

    async def deliver(outcome: Outcome) -> None:
        outcomes.append(outcome)

    def lose_hosts() -> None:
        for count in range(1, times + 1):
            until(f"job {count}", lambda: len(calls.named(f"hold-times{times}-*")) == count)  # noqa: B023 - used at once
            running(calls, f"times{times}")
            aws.lose_hosts()
        if times == 1:
            until("job 2", lambda: len(calls.named("hold-times1-*")) == 2)  # the first may still look as if it ran
            running(calls, "times1")
            store.put("go", b"")

    async def run() -> None:
        adapter = SettlesIn(3, options_of(aws))
        quick: Any = {"poll_s": (0.3, 1), "results_s": 0.1, "python": "python"}
        async with BatchWorker(adapter, store, "worker", deliver, retries=1, **quick) as worker:
            function, url = Blob.of(cloudpickle.dumps(hold)), Blob.of(cloudpickle.dumps(store.url))
            await worker.submit(Task("t", function, (url,), label=f"hold-times{times}"))
            await asyncio.to_thread(lose_hosts)
            await worker.drain()

    asyncio.run(run())
    (outcome,) = outcomes
    assert outcome.attempts == 2
    if times == 1:
        assert outcome.failure is None
    else:
        assert outcome.failure is not None
        assert outcome.failure.reason is Reason.NODE_LOST
    assert len(calls.named(f"hold-times{times}-*")) == 2


def test_a_definition_that_is_gone_stops_submitting_in_words_until_there_is_one_again(
    make: Make, aws: AwsSimulator, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    (lab,) = calls.batch.describe_job_definitions(jobDefinitionName="lab")["jobDefinitions"]
    arn = calls.define("goes", image=lab["containerProperties"]["image"])
    with make(adapter=SettlesIn(3, Options("lab", "goes"))) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        calls.batch.deregister_job_definition(jobDefinition=arn)
        future = executor.submit(pow, 2, 4)
        until(
            "it to be told",
            lambda: told(caplog, "the backend can't be used: ", "job definition goes: none"),
        )
        assert not future.done()
        calls.define("goes", image=lab["containerProperties"]["image"])
        assert future.result(timeout=30) == 16


def test_a_disabled_queue_stops_submitting_in_words_until_it_is_enabled_and_what_it_has_goes_on(
    make: Make, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_UpdateJobQueue.html."""

    def nap() -> str:
        time.sleep(1)
        return "rested"

    with make() as executor:
        early = executor.options(label="early").submit(nap)
        until("it to be there", lambda: calls.named("nap-early-*"))
        calls.batch.update_job_queue(jobQueue="lab", state="DISABLED")
        try:
            late = executor.submit(pow, 2, 3)
            until("it to be told", lambda: told(caplog, "the backend can't be used: ", "job-queue/lab: it is DISABLED"))
            assert early.result(timeout=30) == "rested"
            assert not late.done()
        finally:
            calls.batch.update_job_queue(jobQueue="lab", state="ENABLED")
        assert late.result(timeout=30) == 8


# Jobs that stay RUNNABLE. https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable.html


def test_a_job_that_no_host_can_hold_is_told_at_once_and_given_up_after_the_deadline(
    make: Make, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    failed = failure(make(start_deadline_s=2), nothing, memory_mib=1 << 20, label="huge")
    assert failed.reason is Reason.CONFIGURATION
    assert words(failed) == "Job NAME could not start: the backend can never run it as it is."
    assert batchs_word(failed).startswith("AWS Batch says RUNNABLE, MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - ")
    assert told(caplog, "job nothing-huge-", " can't start: configuration; AWS Batch says RUNNABLE, MISCONFIGURATION:")
    (job,) = calls.named("nothing-huge-*")
    assert calls.wait(job["jobId"])["isTerminated"], "it is not left in the queue"


class WithoutCapacity(SettlesIn):
    """The same, but of jobs that wait AWS Batch says the other thing that keeps queues waiting.

    https://docs.aws.amazon.com/batch/latest/userguide/job_stuck_in_runnable_capacity.html
    """

    def describe(self, job_ids: Any) -> list[Any]:
        says = (
            "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested for instance type"
            " [p5.48xlarge]"
        )
        return [
            job | {"statusReason": says} if job["status"] == "RUNNABLE" else job for job in super().describe(job_ids)
        ]


def test_a_job_for_which_there_is_no_instance_is_told_at_once_and_given_up_only_if_the_user_says_so(
    make: Make, aws: AwsSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be a matter of waiting."""
    with make(adapter=WithoutCapacity(3, options_of(aws))) as executor:
        future = executor.options(memory_mib=1 << 20).submit(nothing)
        try:
            says = " can't start: unschedulable; AWS Batch says RUNNABLE, CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - "
            until("it to be told", lambda: told(caplog, says))
            polls = executor.counts.backend_calls["poll_jobs"]
            until("more polls", lambda: executor.counts.backend_calls["poll_jobs"] > polls + 2)
            assert not future.done()
        finally:
            future.cancel()
    failed = failure(make(adapter=WithoutCapacity(3, options_of(aws)), start_deadline_s=1), nothing, memory_mib=1 << 20)
    assert failed.reason is Reason.UNSCHEDULABLE
    assert words(failed) == "Job NAME could not start: nothing at the backend can hold it."
    assert batchs_word(failed).startswith("AWS Batch says RUNNABLE, CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY")
