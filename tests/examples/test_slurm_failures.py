"""What a user of the real Slurm is told when a job ends badly or cannot start: reason, sentence and evidence."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.examples.on_slurm import executor_on, words

from batchport import BatchExecutor, Failure, Reason, TaskFailedError

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(150)
Env = Mapping[str, str]
Make = Callable[..., BatchExecutor]


@pytest.fixture
def make(slurm: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make executors on the standing cluster."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    return lambda **options: executor_on(tmp_path, **options)


def failure(executor: BatchExecutor, function: Callable[..., object], *args: object, **asked: Any) -> Failure:
    """Have a call fail, and return how."""
    with executor, pytest.raises(TaskFailedError) as raised:
        executor.options(**asked).submit(function, *args).result()
    return raised.value.failure


def slurms_word(failure: Failure) -> str:
    """Return the line of the evidence that is Slurm's, with its node called n*."""
    (line,) = [line for line in failure.evidence.splitlines() if line.startswith("Slurm says")]
    return re.sub(r"\bn\d\b", "n*", line)


def job_id(mark: Path) -> str:
    """Return the id of the job that leaves this mark, once it runs."""
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline, "no job has left its mark after 60 s"
        time.sleep(0.05)
    return mark.read_text()


def hold(mark: str) -> None:
    Path(mark).write_text(os.environ["SLURM_JOB_ID"])
    time.sleep(120)


def nothing() -> None:
    """Never run."""


def test_a_job_that_ends_before_its_runner_starts_shows_its_exit_code_and_what_it_printed(make: Make) -> None:
    told = failure(make(setup="echo no module named fftw >&2\nexit 7"), nothing)
    assert told.reason is Reason.RUNNER_CRASH
    assert words(told) == "Job NAME (ID) ended with exit code 7 and left no result."
    assert slurms_word(told) == "Slurm says FAILED, NonZeroExitCode, on n*"
    assert "no module named fftw" in told.evidence


def test_a_killed_runner_shows_the_signal(make: Make) -> None:
    told = failure(make(), lambda: os.kill(os.getppid(), signal.SIGKILL))
    assert told.reason is Reason.RUNNER_CRASH
    assert words(told) == "Job NAME (ID) ended with exit code 137 (SIGKILL) and left no result."
    assert slurms_word(told).startswith("Slurm says FAILED, ")


def test_a_crash_of_the_tasks_process_is_the_runners_to_tell(make: Make) -> None:
    told = failure(make(), lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert told.reason is Reason.RUNNER_CRASH
    assert told.message == "The task's process was ended by SIGSEGV (Segmentation fault)."


def test_a_job_that_somebody_cancels_is_cancelled(make: Make, slurm: Env, tmp_path: Path) -> None:
    executor, mark = make(), tmp_path / "mark"
    with executor:
        future = executor.submit(hold, str(mark))
        subprocess.run(("scancel", job_id(mark)), env=slurm, check=True)
        with pytest.raises(TaskFailedError) as raised:
            future.result()
    assert raised.value.failure.reason is Reason.CANCELLED
    assert slurms_word(raised.value.failure) == "Slurm says CANCELLED, on n*"


def test_a_time_limit_of_slurms_is_told_soon_after_the_kill(make: Make, slurm: Env, tmp_path: Path) -> None:
    executor, mark = make(poll_s=(1, 10)), tmp_path / "mark"
    with executor:
        future = executor.submit(hold, str(mark))
        job = job_id(mark)
        soon = time.strftime("%FT%T", time.localtime(time.time() + 1))
        subprocess.run(("scontrol", "update", f"jobid={job}", f"EndTime={soon}"), env=slurm, check=True)
        state = ""
        while state != "TIMEOUT":
            time.sleep(0.2)
            state = subprocess.check_output(
                ("squeue", "-h", "-t", "all", "-j", job, "-o", "%T"), env=slurm, text=True
            ).strip()
        killed = time.monotonic()
        with pytest.raises(TaskFailedError) as raised:
            future.result()
        assert time.monotonic() - killed < 10
    assert raised.value.failure.reason is Reason.TIMEOUT
    assert slurms_word(raised.value.failure) == "Slurm says TIMEOUT, TimeLimit, on n*"


def test_too_much_memory_is_told_with_the_limit(make: Make) -> None:
    def allocate() -> int:
        return len(bytearray(os.urandom(1 << 20) * 400))

    told = failure(make(), allocate, memory_mib=100)
    assert told.reason is Reason.OUT_OF_MEMORY
    assert "100 MiB" in told.message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": "nope"}, "Invalid partition name specified"),
        ({"account": "nope"}, "Invalid account or account/partition combination specified"),
        ({"qos": "nope"}, "Invalid qos specification"),
        ({"constraint": "nope"}, "Invalid feature specification"),
    ],
)
def test_what_slurm_refuses_fails_at_once_in_its_words(make: Make, options: Mapping[str, str], said: str) -> None:
    told = failure(make(options=options), nothing)
    assert told.reason is Reason.CONFIGURATION
    assert said in told.evidence


@pytest.mark.parametrize(
    ("options", "asked", "why"),
    [
        ({"partition": "short"}, {"extra": {"time": 5}}, "PartitionTimeLimit"),
        ({}, {"extra": {"ntasks": 99}}, "PartitionConfig"),
    ],
)
def test_a_job_that_is_accepted_and_can_never_run_is_given_up_in_words(
    make: Make, options: Mapping[str, str], asked: Mapping[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "batchport.worker"):
        told = failure(make(options=options, start_deadline_s=2), nothing, **asked)
    assert told.reason is Reason.CONFIGURATION
    assert slurms_word(told) == f"Slurm says PENDING, {why}"
    # Slurm may name another reason of this kind first, until its scheduler has looked at the job.
    assert any("can't start: configuration; Slurm says PENDING, Partition" in message for message in caplog.messages)


def test_a_job_that_waits_for_another_that_failed_is_given_up(make: Make, slurm: Env) -> None:
    bad = subprocess.check_output(
        ("sbatch", "--parsable", "--output=/dev/null", "--wrap=false"), env=slurm, text=True
    ).strip()
    told = failure(make(start_deadline_s=2), nothing, extra={"dependency": f"afterok:{bad}"})
    assert told.reason is Reason.CONFIGURATION
    assert slurms_word(told) == "Slurm says PENDING, DependencyNeverSatisfied"


def test_a_held_job_is_told_at_once_and_given_up_only_if_the_user_says_so(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "batchport.worker"):
        told = failure(make(start_deadline_s=2), nothing, extra={"hold": True})
    assert told.reason is Reason.HELD
    assert slurms_word(told) == "Slurm says PENDING, JobHeldUser"
    assert any("can't start" in message and "JobHeldUser" in message for message in caplog.messages)


def test_a_job_that_cannot_be_launched_says_so(make: Make) -> None:
    told = failure(make(), nothing, extra={"output": "/no/such/folder/log"})
    assert told.reason is Reason.RUNNER_CRASH
    assert slurms_word(told).startswith("Slurm says FAILED, ")


class TestOnAClusterOfItsOwn:
    """Failures for which nodes go down or are taken away."""

    @pytest.fixture
    def own(self, own_slurm: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Env:
        monkeypatch.setenv("SLURM_CONF", own_slurm["SLURM_CONF"])
        return own_slurm

    def test_a_lost_node_is_told(self, own: Env, tmp_path: Path) -> None:
        mark = tmp_path / "mark"
        with executor_on(tmp_path, options={"partition": "one"}) as executor:
            future = executor.submit(hold, str(mark))
            job_id(mark)
            subprocess.run(("scontrol", "update", "nodename=n1", "state=down", "reason=test"), env=own, check=True)
            with pytest.raises(TaskFailedError) as raised:
                future.result()
        # Its slurmd may have brought it back by itself meanwhile, and then this is refused.
        subprocess.run(("scontrol", "update", "nodename=n1", "state=resume"), env=own, check=False, capture_output=True)
        assert raised.value.failure.reason is Reason.NODE_LOST
        assert slurms_word(raised.value.failure) == "Slurm says NODE_FAIL, NodeDown, on n*"

    def test_a_preempted_job_is_told(self, own: Env, tmp_path: Path) -> None:
        mark = tmp_path / "mark"
        with executor_on(tmp_path, options={"partition": "scavenge_cancel"}) as executor:
            future = executor.submit(hold, str(mark))
            job_id(mark)
            urgent = ("sbatch", "--parsable", "--exclusive", "--nodes=4", "--output=/dev/null", "--wrap=sleep 5")
            subprocess.run(urgent, env=own, check=True)
            with pytest.raises(TaskFailedError) as raised:
                future.result()
        assert raised.value.failure.reason is Reason.PREEMPTED
        assert slurms_word(raised.value.failure).startswith("Slurm says PREEMPTED")
