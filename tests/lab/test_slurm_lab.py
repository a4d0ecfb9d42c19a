"""The Slurm lab is what other tests take it for: a real cluster that runs, refuses, kills, breaks and mends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.lab import labs

HERE = Path(__file__).parent
Env = Mapping[str, str]


@pytest.fixture(scope="module")
def own() -> Iterator[Env]:
    with labs.own_slurm() as env:
        yield env


def run(env: Env, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=env, cwd="/tmp", capture_output=True, text=True, check=False)


def sbatch(env: Env, script: str, *options: str) -> str:
    done = run(env, "sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refusal(env: Env, *options: str) -> str:
    done = run(env, "sbatch", "--output=/dev/null", *options, "--wrap=true")
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def squeue(env: Env, job: str) -> list[str]:
    return run(env, "squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T %r").stdout.splitlines()


def sacct(env: Env, job: str) -> list[str]:
    return run(env, "sacct", "-n", "-P", "-X", "-j", job, "-o", "state,exitcode").stdout.splitlines()


def wait(env: Env, look: Callable[[Env, str], list[str]], job: str, wanted: list[str]) -> None:
    deadline = time.monotonic() + 30
    while (seen := look(env, job)) != wanted:
        assert time.monotonic() < deadline, f"{job} is {seen} after 30 s, and never was {wanted}"
        time.sleep(0.1)


def test_a_job_runs_and_both_squeue_and_sacct_tell_its_end() -> None:
    env = labs.slurm()
    good, bad = sbatch(env, "true"), sbatch(env, "exit 3")
    wait(env, squeue, good, ["COMPLETED None"])
    wait(env, squeue, bad, ["FAILED NonZeroExitCode"])
    wait(env, sacct, good, ["COMPLETED|0:0"])
    wait(env, sacct, bad, ["FAILED|3:0"])


def test_without_accounting_jobs_run_and_sacct_says_so() -> None:
    env = labs.slurm(accounting=False)
    wait(env, squeue, sbatch(env, "true"), ["COMPLETED None"])
    assert "Slurm accounting storage is disabled" in run(env, "sacct").stderr


def test_each_element_of_an_array_runs_once(tmp_path: Path) -> None:
    env = labs.slurm()
    job = sbatch(env, f"echo $SLURM_ARRAY_TASK_ID >>{tmp_path}/$SLURM_ARRAY_TASK_ID", "--array=0-19")
    wait(env, squeue, job, ["COMPLETED None"] * 20)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {str(i): f"{i}\n" for i in range(20)}


def test_qos_few_refuses_the_51st_job(own: Env) -> None:
    env = own  # on the standing cluster another test may have jobs under it
    held = sbatch(env, "true", "--qos=few", "--hold", "--array=0-49")
    try:
        assert refusal(env, "--qos=few") == (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
            "(job submit limit, user's size and/or time limits)\n"
        )
    finally:
        run(env, "scancel", held)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--account=nosuch", "Invalid account or account/partition combination specified"),
        ("--qos=nosuch", "Invalid qos specification"),
        ("--partition=nosuch", "Invalid partition name specified"),
    ],
)
def test_what_does_not_exist_is_refused_in_slurms_words(option: str, words: str) -> None:
    assert words in refusal(labs.slurm(), option)


@pytest.mark.parametrize("accounting", [True, False])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--partition=short", "--time=5"), "PartitionTimeLimit"),
        (("--partition=gone",), "PartitionDown"),
        (("--partition=one", "--nodes=2"), "PartitionNodeLimit"),
        (("--ntasks=99",), "PartitionConfig"),
    ],
)
def test_some_jobs_are_accepted_and_wait_for_ever(options: tuple[str, ...], reason: str, *, accounting: bool) -> None:
    env = labs.slurm(accounting=accounting)
    job = sbatch(env, "true", *options)
    try:
        wait(env, squeue, job, [f"PENDING {reason}"])
    finally:
        run(env, "scancel", job)


def test_a_job_over_its_memory_is_out_of_memory_under_cgroups() -> None:
    env = labs.slurm()
    if env["SLURM_UP_CGROUP"] != "1":
        pytest.skip("only cgroups make a job OUT_OF_MEMORY, and slurm-up found no cgroup v1 that it can use here")
    job = sbatch(env, f"{sys.executable} -c 'import time; x = bytearray(200 << 20); time.sleep(30)'", "--mem=50")
    wait(env, squeue, job, ["OUT_OF_MEMORY OutOfMemory"])
    wait(env, sacct, job, ["OUT_OF_MEMORY|0:125"])


def test_a_job_ends_while_slurmctld_is_dead_and_is_not_forgotten(own: Env, tmp_path: Path) -> None:
    saved, go = Path(own["SLURM_UP_DIR"], "state", "job_state"), tmp_path / "go"
    job = sbatch(own, f"until [ -e {go} ]; do sleep 0.1; done; exit 4")
    wait(own, squeue, job, ["RUNNING None"])
    # Killed before it has saved that the job runs, slurmctld would start it again. It saves at the latest 5 s after
    # another job came.
    began = time.time()
    sbatch(own, "true", "--hold")
    while not saved.exists() or saved.stat().st_mtime < began:
        assert time.time() < began + 30, f"{saved} was not written"
        time.sleep(0.1)
    labs.fault(own, "kill", "ctld")
    go.touch()
    assert "is DOWN" in run(own, "scontrol", "ping").stdout
    labs.fault(own, "start", "ctld")
    wait(own, squeue, job, ["FAILED NonZeroExitCode"])
    wait(own, sacct, job, ["FAILED|4:0"])


def test_a_preempted_job_says_so(own: Env) -> None:
    low = sbatch(own, "sleep 60", "--partition=scavenge_cancel", "--nodelist=n1", "--nodes=1", "--ntasks=4")
    wait(own, squeue, low, ["RUNNING None"])
    sbatch(own, "true", "--partition=one", "--ntasks=4")
    wait(own, squeue, low, ["PREEMPTED None"])


def test_env_exits_3_and_says_why_when_a_daemon_is_dead_or_settings_differ(own: Env) -> None:
    up = str(HERE / "slurm-up")
    assert run(own, up, "--env").stdout.startswith(f"export SLURM_CONF={own['SLURM_CONF']}\n")
    labs.fault(own, "kill", "n4")
    dead = run(own, up, "--env")
    assert (dead.returncode, dead.stdout) == (3, "")
    assert "slurmd-n4 of the cluster in" in dead.stderr
    labs.fault(own, "start", "n4")
    assert run(own, up, "--env").returncode == 0
    assert run({**own, "SLURM_UP_NODES": "3"}, up, "--env").returncode == 3


NEEDS_IT = "from tests.lab import labs\ndef test_it() -> None:\n    labs.slurm()\n"


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 failed")])
def test_where_no_lab_is_up_its_test_names_the_command_and_fails_in_ci(ci: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "test_needs_it.py").write_text(NEEDS_IT, encoding="utf-8")
    argv = (sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={tmp_path}", "-ra", str(tmp_path))
    nowhere = {"SLURM_UP_DIR": str(tmp_path / "no"), "CI": ci, "COLUMNS": "600", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        argv, env={**os.environ, **nowhere}, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert outcome in done.stdout
    assert f"no cluster was ever started in {tmp_path}/no" in done.stdout
    assert "SLURM_UP_ACCT=1 tests/lab/slurm-up" in done.stdout
