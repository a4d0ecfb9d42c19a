"""A bad day at AWS, through a proxy that breaks its answers: each task has its one right outcome, and one job."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from batchport_aws_batch.options import Options
from tests.examples.on_aws_batch import SettlesIn, executor_on, failure_of, led_to, options_of, told, until, words
from tests.lab import labs
from tests.lab.aws_calls import Calls

from batchport import BackendUnusableError, BatchExecutor, Reason
from batchport.testing.aws import AwsSimulator
from batchport.testing.fault_proxy import FaultProxy

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)
NO_CLEAR_ANSWER = "had no clear answer, looking the job up by name: "
POLL_FAILED = "a poll failed, no job is given up for it, next in "
BUCKET = r"[A-Z]+ /lab\b"
MANY = 10_000


@dataclass
class Day:
    """An AWS, a bad way to it that the test's executors take, and a good one. Jobs take the good one."""

    aws: AwsSimulator
    proxy: FaultProxy
    calls: Calls
    label: str
    """In the names of this test's jobs, and of no other's."""
    go: Path
    mark: Path

    @contextmanager
    def executor(self, **options: Any) -> Iterator[BatchExecutor]:
        """Give the test an executor; before it is left all is well again, or a failed test would wait for ever."""
        adapter = options.pop("adapter", None) or SettlesIn(3, options_of(self.aws))
        adapter.open("before")  # reading AWS's models takes longer than a short deadline, where much else goes on
        with executor_on(self.aws, adapter=adapter, **options) as executor:
            try:
                yield executor.options(label=self.label)
            finally:
                self.proxy.mend()
                self.go.touch()

    def jobs(self, function: str) -> list[str]:
        """Return the names of all jobs of a function that are there, in any state."""
        return sorted(job["jobName"] for job in self.calls.named(f"{function}-{self.label}-*"))

    def end_of(self, function: str) -> str:
        """Wait until the one job of a function is over, and return how."""
        (job,) = self.calls.named(f"{function}-{self.label}-*")
        return str(self.calls.wait(job["jobId"])["status"])

    @property
    def runs(self) -> int:
        """How often a task ran."""
        return len(self.mark.read_text(encoding="utf-8").splitlines()) if self.mark.exists() else 0


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsSimulator]:
    with labs.own_aws() as simulator, led_to(simulator.env):
        yield simulator


@pytest.fixture
def day(aws: AwsSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Day]:
    with FaultProxy(aws.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Day(aws, proxy, Calls(aws.env), secrets.token_hex(4), tmp_path / "go", tmp_path / "mark")


class OneByOne(SettlesIn):
    """The same, but it takes no arrays, so that there is a submit for each task."""

    def __init__(self, seconds: float, options: Options) -> None:
        super().__init__(seconds, options)
        self.limits = replace(self.limits, array_size=1)


def note(mark: str, number: int) -> int:
    """Leave a line for each run."""
    with Path(mark).open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    return number


def note_when(go: str, mark: str, number: int) -> int:
    """Leave a line for each run, and go on once that file is there."""
    note(mark, number)
    while not Path(go).exists():
        time.sleep(0.05)
    return number


def die() -> None:
    """End the runner, so that only the backend can tell."""
    os.kill(os.getppid(), signal.SIGKILL)


# SubmitJob. It has no client token: https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html


@pytest.mark.parametrize(("fault", "count"), [("500-after", 30), ("reset-after", 30), ("truncate", 20), ("delay", 20)])
def test_of_100_submits_that_were_carried_out_without_a_clear_answer_each_is_one_job(
    day: Day, caplog: pytest.LogCaptureFixture, fault: str, count: int
) -> None:
    day.proxy.fail("submitjob", fault, times=count, seconds=4)  # later than the call's deadline
    with day.executor(adapter=OneByOne(3, options_of(day.aws)), call_deadline_s=2) as executor:
        futures = [executor.submit(note_when, str(day.go), str(day.mark), number) for number in range(count)]
        until("all lookups", lambda: len(told(caplog, "submit_job of note-when-", NO_CLEAR_ANSWER)) == count)
        day.go.touch()
        assert [future.result(timeout=60) for future in futures] == list(range(count))
        assert executor.counts.second_runs == executor.counts.failed == 0
    assert day.proxy.count("submitjob") == count
    jobs = day.jobs("note-when")
    assert len(jobs) == len(set(jobs)) == count
    assert day.runs == count


def test_an_array_whose_submit_had_no_clear_answer_is_one_array(day: Day) -> None:
    day.proxy.fail("submitjob", "500-after")
    with day.executor() as executor:
        futures = [executor.submit(note, str(day.mark), number) for number in range(5)]
        assert [future.result(timeout=30) for future in futures] == list(range(5))
    assert day.proxy.count("submitjob") == len(day.jobs("note")) == 1
    assert day.runs == 5


@pytest.mark.parametrize("fault", ["500-before", "reset-before"])
def test_a_submit_that_was_not_carried_out_is_sent_again_once_that_is_certain(
    day: Day, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    day.proxy.fail("submitjob", fault)
    with day.executor() as executor:
        assert executor.submit(note, str(day.mark), 7).result(timeout=30) == 7
    assert told(caplog, " is not at the backend after all, and is sent again")
    assert day.proxy.count("submitjob") == 2
    assert len(day.jobs("note")) == day.runs == 1


def test_while_nobody_can_be_asked_what_became_of_a_submit_nothing_is_sent_again(
    day: Day, caplog: pytest.LogCaptureFixture
) -> None:
    day.proxy.fail("submitjob", "reset-after")
    day.proxy.fail("listjobs", "500-before", times=2)
    with day.executor() as executor:
        future = executor.submit(note_when, str(day.go), str(day.mark), 7)
        says = ("find_jobs failed, will ask again in ", "ServerException")
        until("two lookups to fail", lambda: len(told(caplog, *says)) == 2)
        day.go.touch()
        assert future.result(timeout=30) == 7
    assert day.proxy.count("submitjob") == len(day.jobs("note-when")) == day.runs == 1


# Throttling. https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html


def test_a_storm_of_429_only_takes_time(day: Day, caplog: pytest.LogCaptureFixture) -> None:
    day.proxy.fail("submitjob", "429-before", times=8)
    day.proxy.fail("describejobs", "429-before", times=3)
    with day.executor(adapter=OneByOne(3, options_of(day.aws))) as executor:
        futures = [executor.submit(note_when, str(day.go), str(day.mark), number) for number in range(20)]
        until("polls to fail", lambda: len(told(caplog, POLL_FAILED, "TooManyRequestsException")) == 3)
        day.go.touch()
        assert [future.result(timeout=60) for future in futures] == list(range(20))
        assert executor.counts.failed == 0
    assert told(caplog, "no job is submitted for ", "submit_job failed: ", "TooManyRequestsException")
    assert not told(caplog, NO_CLEAR_ANSWER)
    assert day.proxy.count("submitjob") == 28
    assert len(day.jobs("note-when")) == day.runs == 20


# DescribeJobs


@pytest.mark.parametrize("fault", ["truncate", "hang-after", "500-after", "reset-before"])
def test_a_job_that_ends_while_describe_jobs_fails_is_told_rightly_afterwards(
    day: Day, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    day.proxy.fail("describejobs", fault, times=MANY, seconds=3)
    with day.executor(call_deadline_s=2) as executor:
        future = executor.submit(die)
        until("polls to fail", lambda: len(told(caplog, POLL_FAILED)) >= 2)
        assert not future.done()
        day.proxy.mend()
        failed = failure_of(future, 30)
    assert failed.reason is Reason.RUNNER_CRASH
    assert words(failed) == "Job NAME ended with exit code 137 (SIGKILL) and left no result."


@pytest.mark.parametrize("fault", ["truncate", "hang-after"])
def test_results_come_while_describe_jobs_fails(day: Day, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    day.proxy.fail("describejobs", fault, times=MANY, seconds=3)
    with day.executor(call_deadline_s=2) as executor:
        futures = [executor.submit(note_when, str(day.go), str(day.mark), number) for number in range(4)]
        until("polls to fail", lambda: len(told(caplog, POLL_FAILED)) >= 2)
        day.go.touch()
        assert [future.result(timeout=30) for future in futures] == list(range(4))
        day.proxy.mend()


# S3. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html


def test_a_slow_store_only_takes_time(day: Day) -> None:
    day.proxy.fail(BUCKET, "delay", times=MANY, seconds=0.2)
    with day.executor() as executor:
        futures = [executor.submit(note, str(day.mark), number) for number in range(5)]
        assert [future.result(timeout=60) for future in futures] == list(range(5))
        day.proxy.mend()
        assert executor.counts.second_runs == executor.counts.failed == 0
    assert day.runs == 5


def test_while_the_store_answers_503_nothing_is_lost_and_what_is_submitted_goes_on_afterwards(
    day: Day, caplog: pytest.LogCaptureFixture
) -> None:
    with day.executor() as executor:
        early = executor.submit(note_when, str(day.go), str(day.mark), 1)
        until("it to run", lambda: day.runs == 1)
        day.proxy.fail(BUCKET, "503-before", times=MANY)
        late = executor.submit(note, str(day.mark), 2)
        day.go.touch()
        assert day.end_of("note-when") == "SUCCEEDED", "jobs have their own way to S3"
        until("it to be told", lambda: told(caplog, "can't look for results, will look again in ", "503"))
        until("it to be told", lambda: told(caplog, "can't write the manifests of 1 jobs at ", "503"))
        assert not early.done()
        assert not day.jobs("note"), "no job without a manifest"
        day.proxy.mend()
        assert [early.result(timeout=60), late.result(timeout=60)] == [1, 2]
        assert executor.counts.failed == 0
    assert day.runs == 2


@pytest.mark.parametrize("fault", ["503-after", "reset-after"])
def test_a_result_whose_write_had_no_clear_answer_is_the_result(day: Day, fault: str) -> None:
    day.proxy.fail(r"PUT /lab/.*\.result", fault)
    with day.executor(
        setup=f"export AWS_ENDPOINT_URL={day.proxy.url}"
    ) as executor:  # the job's way is the bad one, too
        assert executor.submit(note, str(day.mark), 7).result(timeout=30) == 7
        assert executor.counts.second_runs == 0
    assert day.proxy.count(r"PUT /lab/.*\.result") >= 2
    assert day.runs == 1


# Credentials. https://docs.aws.amazon.com/batch/latest/APIReference/CommonErrors.html


def test_credentials_that_expire_are_told_at_once_nothing_is_lost_and_all_goes_on_once_they_are_good(
    day: Day, caplog: pytest.LogCaptureFixture
) -> None:
    with day.executor() as executor:
        early = executor.submit(note_when, str(day.go), str(day.mark), 1)
        until("it to run", lambda: day.runs == 1)
        day.proxy.fail("/v1/", "403-before", times=MANY, code="ExpiredTokenException")
        day.proxy.fail(BUCKET, "400-before", times=MANY, code="ExpiredToken")
        day.go.touch()
        late = executor.submit(note, str(day.mark), 2)
        says = ("can't look for results, will look again in ", "ExpiredToken")
        until("it to be told", lambda: told(caplog, *says), 10)
        until("it to be told", lambda: told(caplog, "can't write the manifests of 1 jobs at ", "ExpiredToken"), 10)
        assert day.end_of("note-when") == "SUCCEEDED", "what runs goes on"
        assert [early.done(), late.done()] == [False, False]
        day.proxy.mend()
        assert [early.result(timeout=60), late.result(timeout=60)] == [1, 2]
        assert executor.counts.failed == executor.counts.second_runs == 0
    assert len(day.jobs("note-when")) == len(day.jobs("note")) == 1
    assert day.runs == 2


def test_credentials_that_expire_for_batch_alone_stop_submitting_in_words(
    day: Day, caplog: pytest.LogCaptureFixture
) -> None:
    with day.executor() as executor:
        day.proxy.fail("/v1/", "403-before", times=MANY, code="ExpiredTokenException")
        future = executor.submit(note, str(day.mark), 7)
        says = ("no job is submitted for ", "the backend can't be used: ", "ExpiredTokenException")
        until("it to be told", lambda: told(caplog, *says), 5)
        assert not future.done()
        day.proxy.mend()
        assert future.result(timeout=30) == 7
    assert len(day.jobs("note")) == day.runs == 1


def test_an_executor_is_not_opened_with_credentials_that_have_expired(day: Day) -> None:
    day.proxy.fail("/v1/", "403-before", times=MANY, code="ExpiredTokenException")
    with pytest.raises(BackendUnusableError, match="ExpiredTokenException"), day.executor():
        pass
