"""A bad day at the cluster: Slurm's daemons die, its commands fail, and each task still has its one right outcome."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import pytest
from tests.examples.on_slurm import (
    Env,
    calls,
    executor_on,
    failure_of,
    in_front_of,
    jobs_called,
    said,
    until,
    words,
)
from tests.lab import labs

from batchport import BatchExecutor, Reason

cloudpickle.register_pickle_by_value(sys.modules[__name__])

TIMED_OUT = """
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""
FIRST_TIME = '[ "$(wc -l <$here/sbatch.calls)" = 1 ] || exec "$real" "$@"\n'
SLOW = 'until [ -e "$here/go" ]; do sleep 0.1; done\nexec "$real" "$@"\n'
"""A squeue that answers only once a job has come and gone: as slow as under much load."""


NOTHING = ":"
HALF = '"$real" "$@" | sed -E "s/[|]7:0[|]/|0:0|/; s/[|]20[0-9T:-]+/|Unknown/g"'
"""As sacct had it for some seconds after slurmdbd had been down: FAILED, with exit code 0:0 and the end Unknown."""
REQUEUED = {"no-requeue": None, "requeue": True}


@pytest.fixture(scope="module")
def own() -> Iterator[Env]:
    """Give this module a cluster that it may break, and that soon forgets jobs that ended."""
    with labs.own_slurm(SLURM_UP_MIN_JOB_AGE="2") as env:
        yield env


@pytest.fixture(scope="module")
def own_bare() -> Iterator[Env]:
    """Give this module one that keeps no accounts, and that soon forgets jobs that ended."""
    with labs.own_slurm(accounting=False, SLURM_UP_MIN_JOB_AGE="2") as env:
        yield env


@pytest.fixture
def cluster(own: Env, monkeypatch: pytest.MonkeyPatch) -> Env:
    """Have the test's executors use the cluster that may be broken."""
    monkeypatch.setenv("SLURM_CONF", own["SLURM_CONF"])
    return own


@pytest.fixture
def standing(slurm: Env, monkeypatch: pytest.MonkeyPatch) -> Env:
    """Have the test's executors use the cluster that is left alone."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    return slurm


def told(caplog: pytest.LogCaptureFixture, *parts: str) -> list[str]:
    """Return the warnings in which all these words are."""
    warnings = (each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
    return [message for message in warnings if all(part in message for part in parts)]


def wait_until_saved(env: Env) -> None:
    """Wait until what slurmctld knows now is in its files: some seconds after another job has come."""
    saved, began = Path(env["SLURM_CONF"]).parents[1] / "state" / "job_state", time.time()
    subprocess.run(("sbatch", "--hold", "--output=/dev/null", "--wrap=true"), env=env, stdout=-3, check=True)
    until(f"{saved} to be written", lambda: saved.exists() and saved.stat().st_mtime >= began, 30)


@contextmanager
def forgetting(env: Env) -> Iterator[None]:
    """Kill slurmctld at the end, and start it with what was in its files at the beginning: all since is forgotten."""
    wait_until_saved(env)
    folder = Path(env["SLURM_CONF"]).parents[1]
    as_root("cp", "-a", f"{folder}/state", f"{folder}/saved")
    yield
    labs.fault(env, "kill", "ctld")
    as_root("rm", "-r", f"{folder}/state")
    as_root("mv", f"{folder}/saved", f"{folder}/state")
    labs.fault(env, "start", "ctld")


@contextmanager
def accounts_down(env: Env) -> Iterator[None]:
    """Have slurmdbd be dead for as long as this lasts."""
    labs.fault(env, "kill", "dbd")
    try:
        yield
    finally:
        labs.fault(env, "start", "dbd")


def as_root(*command: str) -> None:
    subprocess.run((*labs._as_root(), *command), check=True)


def wait_until_gone(label: str, env: Env) -> None:
    """Wait until squeue has listed a call's job and does not any more, some seconds after its end."""
    until("the job to be there", lambda: jobs_called(label, env))
    until("squeue to forget it", lambda: not jobs_called(label, env))


def wait_for_polls(count: int, executor: BatchExecutor) -> None:
    before = executor.counts.backend_calls["poll_jobs"]
    until("more polls", lambda: executor.counts.backend_calls["poll_jobs"] >= before + count)


def run_when(go: str, mark: str, number: int) -> int:
    with Path(mark).open("a", encoding="utf-8") as file:
        file.write(f"{os.environ['SLURM_JOB_ID']}\n")
    while not Path(go).exists():
        time.sleep(0.1)
    return number


def where_it_ran() -> str:
    return os.environ["SLURM_JOB_ID"]


def nothing() -> None:
    """Never run."""


@pytest.mark.timeout(200)
def test_slurmctld_is_down_for_100_s_and_nothing_is_lost_or_fails_and_the_user_is_told(
    cluster: Env, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go, marks = tmp_path / "go", [tmp_path / f"mark-{number}" for number in range(20)]
    # Node n1 alone has room for four, so the others wait.
    with executor_on(tmp_path, options={"partition": "one"}) as executor:
        futures = [executor.submit(run_when, str(go), str(mark), number) for number, mark in enumerate(marks)]
        until("four tasks to run", lambda: sum(mark.exists() for mark in marks) == 4)
        wait_until_saved(cluster)
        labs.fault(cluster, "kill", "ctld")
        killed = time.monotonic()
        late = executor.submit(where_it_ran)
        go.touch()
        results = [future.result(timeout=10) for future, mark in zip(futures, marks, strict=True) if mark.exists()]
        assert len(results) == 4, "what ran goes on, and its results come without Slurm"
        time.sleep(max(0, killed + 100 - time.monotonic()))
        assert sum(future.done() for future in futures) == 4
        assert not late.done()
        labs.fault(cluster, "start", "ctld")
        assert [future.result() for future in futures] == list(range(20))
        assert late.result()
        assert executor.counts.failed == 0
        assert executor.counts.second_runs == 0
    assert [len(mark.read_text(encoding="utf-8").splitlines()) for mark in marks] == [1] * 20
    assert told(
        caplog, "a poll failed, no job is given up for it, next in ", "squeue ", "Unable to contact slurm controller"
    )
    assert told(caplog, "no job is submitted for ", "submit_job failed: sbatch ", "Unable to contact slurm controller")


def test_a_job_that_slurm_forgets_and_whose_id_it_gives_to_another_is_lost_in_words_and_the_other_is_right(
    cluster: Env, tmp_path: Path
) -> None:
    with executor_on(tmp_path, name="fit", settle_s=3) as executor:
        with forgetting(cluster):
            first = executor.options(label="first", extra={"begin": "now+1hour"}).submit(where_it_ran)
            (job,) = until("the job to be there", lambda: jobs_called("first", cluster))
        second = executor.options(label="second").submit(where_it_ran)
        assert second.result(timeout=20) == job, "Slurm gave the id to the next job, which is ours too"
        lost = failure_of(first)
    assert lost.reason is Reason.LOST
    assert words(lost) == "Job NAME (ID) vanished: the backend no longer knows it, and it left no result."


def test_to_cancel_a_job_that_slurm_has_forgotten_does_not_end_the_job_that_has_its_id_now(
    cluster: Env, tmp_path: Path
) -> None:
    go, mark = tmp_path / "go", tmp_path / "mark"
    with executor_on(tmp_path, name="fit", settle_s=8) as executor:
        with forgetting(cluster):
            first = executor.options(label="first", extra={"begin": "now+1hour"}).submit(where_it_ran)
            (job,) = until("the job to be there", lambda: jobs_called("first", cluster))
        second = executor.options(label="second").submit(run_when, str(go), str(mark), 7)
        until("the second job to run", mark.exists)
        assert mark.read_text(encoding="utf-8") == f"{job}\n"
        wait_for_polls(2, executor)
        first.cancel()
        wait_for_polls(2, executor)
        go.touch()
        assert second.result(timeout=20) == 7


def test_a_job_that_slurm_forgets_is_lost_in_words_though_its_accounts_have_it_running_for_ever(
    cluster: Env, tmp_path: Path
) -> None:
    def accounts() -> str:
        return said(cluster, "sacct", "-nXP", "-j", job, "-o", "state,jobname")

    go, mark = tmp_path / "go", tmp_path / "mark"
    with executor_on(tmp_path, name="fit", settle_s=3) as executor:
        with forgetting(cluster):
            future = executor.options(label="forgotten").submit(run_when, str(go), str(mark), 7)
            (job,) = until("the job to be there", lambda: jobs_called("forgotten", cluster))
            until("the accounts to have it", lambda: accounts().startswith("RUNNING|run-when-forgotten-"))
        lost = failure_of(future)
        assert accounts().startswith("RUNNING|run-when-forgotten-")
    assert lost.reason is Reason.LOST
    assert words(lost) == "Job NAME (ID) vanished: the backend no longer knows it, and it left no result."


@pytest.mark.parametrize("tasks", [1, 5])
def test_an_sbatch_that_times_out_after_it_made_the_job_makes_one_job(
    standing: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tasks: int
) -> None:
    here = in_front_of("sbatch", f'{FIRST_TIME}"$real" "$@" >/dev/null\n{TIMED_OUT}', tmp_path, monkeypatch)
    with executor_on(tmp_path) as executor:
        label = f"late-{secrets.token_hex(3)}"
        futures = [executor.options(label=label).submit(run_when, "/", str(tmp_path / "mark"), n) for n in range(tasks)]
        assert [future.result() for future in futures] == list(range(tasks))
        assert len(jobs_called(label, standing)) == 1
    assert told(caplog, "had no clear answer, looking the job up by name: sbatch ", "Socket timed out")
    assert calls("sbatch", here) == 1
    assert len((tmp_path / "mark").read_text(encoding="utf-8").splitlines()) == tasks


@pytest.mark.parametrize("tasks", [1, 5])
def test_an_sbatch_that_fails_with_the_same_words_before_it_made_a_job_is_sent_again_once(
    standing: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tasks: int
) -> None:
    here = in_front_of("sbatch", f"{FIRST_TIME}{TIMED_OUT}", tmp_path, monkeypatch)
    with executor_on(tmp_path, settle_s=3) as executor:
        label = f"never-{secrets.token_hex(3)}"
        futures = [executor.options(label=label).submit(run_when, "/", str(tmp_path / "mark"), n) for n in range(tasks)]
        assert [future.result() for future in futures] == list(range(tasks))
        assert len(jobs_called(label, standing)) == 1
    assert told(caplog, "had no clear answer, looking the job up by name: sbatch ", "Socket timed out")
    assert told(caplog, " is not at the backend after all, and is sent again")
    assert calls("sbatch", here) == 2
    assert len((tmp_path / "mark").read_text(encoding="utf-8").splitlines()) == tasks


def test_without_accounts_a_failure_has_its_reason_while_squeue_knows_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", labs.slurm(accounting=False)["SLURM_CONF"])
    with executor_on(tmp_path, setup="echo no module named fftw >&2\nexit 7") as executor:
        failed = failure_of(executor.submit(nothing))
    assert failed.reason is Reason.RUNNER_CRASH
    assert words(failed) == "Job NAME (ID) ended with exit code 7 and left no result."
    assert "Slurm says FAILED, NonZeroExitCode, on n" in failed.evidence
    assert "no module named fftw" in failed.evidence


def test_without_accounts_a_job_that_squeue_has_forgotten_is_lost_in_words(
    own_bare: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", own_bare["SLURM_CONF"])
    here = in_front_of("squeue", SLOW, tmp_path, monkeypatch)
    with executor_on(tmp_path, name="fit", settle_s=3, setup="exit 7") as executor:
        future = executor.options(label="forgotten").submit(nothing)
        wait_until_gone("forgotten", own_bare)
        (here / "go").touch()
        lost = failure_of(future)
    assert lost.reason is Reason.LOST
    assert words(lost) == "Job NAME (ID) vanished: the backend no longer knows it, and it left no result."
    assert "polls in a row did not mention it; never reported since it was submitted." in lost.evidence
    print(lost)


@pytest.mark.parametrize("yet", [NOTHING, HALF], ids=["nothing yet", "half yet"])
def test_accounts_that_come_late_are_waited_for(
    cluster: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yet: str
) -> None:
    here = in_front_of("squeue", SLOW, tmp_path, monkeypatch)
    in_front_of("sacct", f'if [ -e "$here/late" ]; then {yet}; else exec "$real" "$@"; fi\n', tmp_path, monkeypatch)
    (here / "late").touch()
    with executor_on(tmp_path, name="fit", settle_s=12, setup="echo no module named fftw >&2\nexit 7") as executor:
        future = executor.options(label="late").submit(nothing)
        wait_until_gone("late", cluster)
        (here / "go").touch()
        until("sacct to be asked", lambda: calls("sacct", here) >= 4 or future.done())
        (here / "late").unlink()
        failed = failure_of(future)
    assert failed.reason is Reason.RUNNER_CRASH
    assert words(failed) == "Job NAME (ID) ended with exit code 7 and left no result."
    assert "no module named fftw" in failed.evidence


def test_accounts_that_never_come_make_a_job_lost_but_not_before_it_is_settled(
    cluster: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = in_front_of("squeue", SLOW, tmp_path, monkeypatch)
    in_front_of("sacct", "", tmp_path, monkeypatch)
    with executor_on(tmp_path, name="fit", settle_s=4, setup="exit 7") as executor:
        future = executor.options(label="never").submit(nothing)
        wait_until_gone("never", cluster)
        asked = time.monotonic()
        (here / "go").touch()
        lost = failure_of(future)
        assert time.monotonic() - asked >= 4
    assert lost.reason is Reason.LOST
    assert words(lost) == "Job NAME (ID) vanished: the backend no longer knows it, and it left no result."


def test_while_the_accounts_are_down_polls_fail_and_nothing_is_lost_and_then_the_failure_is_told_rightly(
    cluster: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = in_front_of("squeue", SLOW, tmp_path, monkeypatch)
    with executor_on(tmp_path, name="fit", settle_s=3, setup="echo no module named fftw >&2\nexit 7") as executor:
        future = executor.options(label="down").submit(nothing)
        wait_until_gone("down", cluster)
        with accounts_down(cluster):
            (here / "go").touch()
            until("polls to fail", lambda: len(told(caplog, "a poll failed, no job is given up for it, next in ")) >= 3)
            assert told(caplog, "sacct ", " exited with 1: ", "Problem talking to the database: Connection refused")
            assert not future.done()
        failed = failure_of(future)
    assert failed.reason is Reason.RUNNER_CRASH
    assert words(failed) == "Job NAME (ID) ended with exit code 7 and left no result."
    assert "no module named fftw" in failed.evidence


def test_a_running_job_that_an_administrator_requeues_runs_again_and_has_one_outcome(
    standing: Env, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go, mark = tmp_path / "go", tmp_path / "mark"
    with executor_on(tmp_path) as executor:
        future = executor.options(extra=REQUEUED).submit(run_when, str(go), str(mark), 7)
        until("the job to run", lambda: mark.exists() and mark.read_text(encoding="utf-8"))
        job = mark.read_text(encoding="utf-8").strip()
        subprocess.run(("scontrol", "requeue", job), env=standing, check=True)
        until("it to run again", lambda: mark.read_text(encoding="utf-8") == f"{job}\n{job}\n")
        assert not future.done(), "the end of the first run is not the job's"
        go.touch()
        assert future.result() == 7
        assert executor.counts.failed == 0
        assert executor.counts.second_runs == 0, "the first run left no result"


def test_a_job_that_is_requeued_after_its_result_was_delivered_runs_nothing(standing: Env, tmp_path: Path) -> None:
    go, mark, launcher = tmp_path / "go", tmp_path / "mark", tmp_path / "launcher"
    launcher.write_text(f'#!/bin/bash\n"$@"\nuntil [ -e {go} ]; do sleep 0.1; done\n', encoding="utf-8")
    launcher.chmod(0o755)
    with executor_on(tmp_path, launcher=[str(launcher)]) as executor:
        assert executor.options(extra=REQUEUED).submit(run_when, "/", str(mark), 7).result() == 7
        job = mark.read_text(encoding="utf-8").strip()
        subprocess.run(("scontrol", "requeue", job), env=standing, check=True)
        log = tmp_path / "logs" / f"{job}.log"
        until("it to start again", lambda: "its worker is done with it, and nothing is run" in log.read_text("utf-8"))
        go.touch()
        assert executor.counts.done == 1
        assert executor.counts.second_runs == 0
    assert mark.read_text(encoding="utf-8") == f"{job}\n"


@pytest.mark.timeout(150)
def test_500_tasks_under_a_qos_of_50_jobs_all_run_with_few_calls(standing: Env, tmp_path: Path) -> None:
    most = 0
    with executor_on(tmp_path, options={"qos": "few"}, poll_s=(1, 10)) as executor:
        futures = [executor.submit(pow, number, 2) for number in range(500)]
        while not all(future.done() for future in futures):
            listed = said(standing, "squeue", "-h", "-r", "-q", "few", "-t", "PD,R", "-o", "%i").splitlines()
            most = max(most, len(listed))
            time.sleep(0.5)
        assert [future.result() for future in futures] == [number**2 for number in range(500)]
        sent = executor.counts.backend_calls["submit_job"]
    print(f"{sent} calls of sbatch, at most {most} elements in the queue")
    assert 20 < most <= 50
    assert sent <= 250
