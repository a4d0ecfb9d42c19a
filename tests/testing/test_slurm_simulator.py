"""The simulator of Slurm alone: what it does wrong on request, many commands at once, and that it leaves nothing.

What it does as the real one does is in tests/lab/test_slurm_differential.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from batchport.processes import start_of
from batchport.testing.slurm import SlurmSimulator

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
LOST = "Unable to contact slurm controller (connect failure)\n"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class House:
    """A simulated cluster, and commands that are run on it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.slurm = SlurmSimulator(folder / "slurm", **settings)
        self.env = os.environ | self.slurm.env

    def run(self, *argv: str, timeout: float = 30) -> Answer:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=self.env, cwd=self.folder, timeout=timeout
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def sbatch(self, script: str, *options: str) -> Answer:
        return self.run("sbatch", "--parsable", *options, f"--wrap={script}")

    def submit(self, script: str, *options: str) -> str:
        answer = self.sbatch(script, *options)
        assert (answer.code, answer.err) == (0, "")
        return answer.out.strip()

    def queue(self, columns: str = "%i %T %r", *options: str) -> list[str]:
        answer = self.run("squeue", "--me", "-h", "-r", "-t", "all", "-o", columns, *options)
        assert (answer.code, answer.err) == (0, "")
        return sorted(answer.out.splitlines())

    def accounts(self, *options: str) -> list[str]:
        answer = self.run("sacct", "-X", "-n", "-P", "-o", "JobID,State,JobName", *options)
        assert (answer.code, answer.err) == (0, "")
        return answer.out.splitlines()

    def until_queue(self, *lines: str) -> None:
        until(lambda: self.queue() == list(lines), f"{lines}, it is {self.queue()}")

    def until_file(self, name: str) -> str:
        path = self.folder / name
        until(lambda: path.exists() and path.read_text(), f"the file {name}")
        return path.read_text().strip()


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"waited 30 s for {what}"
        time.sleep(0.02)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def house(**settings: Any) -> House:
        made.append(House(tmp_path, **settings))
        return made[-1]

    yield house
    for each in made:
        each.slurm.close()


@pytest.fixture
def house(make: Callable[..., House]) -> House:
    return make()


def test_a_controller_that_is_down_answers_nothing_and_its_jobs_go_on(house: House) -> None:
    job = house.submit("echo $$ > runs; until [ -e gate ]; do sleep 0.05; done; exit 3")
    house.until_file("runs")
    house.slurm.stop_controller()
    assert house.sbatch("true") == (1, "", f"sbatch: error: Batch job submission failed: {LOST}")
    assert house.run("squeue") == (1, "", f"slurm_load_jobs error: {LOST}")
    assert house.run("scancel", job) == (8, "", f"scancel: error: Kill job error on job id {job}: {LOST}")
    assert house.run("scontrol", "show", "config") == (1, "", f"slurm_load_ctl_conf error: {LOST}")
    assert "is DOWN" in house.run("scontrol", "ping").out
    assert house.accounts() == ["1|RUNNING|wrap"]
    (house.folder / "gate").touch()
    until(lambda: house.accounts() == ["1|FAILED|wrap"], "the end of the job")
    house.slurm.start_controller()
    assert house.queue() == ["1 FAILED NonZeroExitCode"]


@pytest.mark.parametrize("submitted", [True, False])
def test_sbatch_times_out_with_its_job_submitted_or_not(house: House, *, submitted: bool) -> None:
    house.slurm.fail_sbatch(submitted=submitted)
    assert house.sbatch("sleep 100", "--job-name=first") == (1, "", TIMED_OUT)
    assert house.queue("%j") == ["first"] * submitted
    house.submit("sleep 100", "--job-name=second")
    assert house.queue("%j") == ["first"] * submitted + ["second"]


@pytest.mark.parametrize("submitted", [True, False])
def test_sbatch_hangs_with_its_job_submitted_or_not(house: House, *, submitted: bool) -> None:
    house.slurm.delay_sbatch(60, submitted=submitted)
    with pytest.raises(subprocess.TimeoutExpired):
        house.run("sbatch", "--wrap=sleep 100", timeout=2)
    assert house.queue("%j") == ["wrap"] * submitted


def test_a_forgotten_job_gives_its_id_to_the_next_and_dies(house: House) -> None:
    house.submit("sleep 100", "--job-name=kept")
    lost = house.submit("echo $$ > lost; sleep 100", "--job-name=lost")
    pid = int(house.until_file("lost"))
    house.slurm.forget_last_job()
    assert house.queue("%i %j") == ["1 kept"]
    assert house.accounts("-j", lost) == ["2|RUNNING|lost"]
    assert house.submit("sleep 100", "--job-name=next") == lost
    assert house.queue("%i %j") == ["1 kept", "2 next"]
    until(lambda: house.accounts("-j", lost) == ["2|RUNNING|next"], "the next one's start")
    assert house.accounts("-D", "-j", lost) == ["2|RUNNING|lost", "2|RUNNING|next"]
    until(lambda: start_of(pid) is None, "the end of the forgotten job's process")


def test_sacct_fails_when_told_to(house: House) -> None:
    house.slurm.fail_sacct()
    answer = house.run("sacct")
    assert (answer.code, answer.out) == (1, "")
    assert "Problem talking to the database" in answer.err
    house.slurm.fail_sacct(failing=False)
    assert house.accounts() == []


def test_sacct_is_late_when_told_to(house: House) -> None:
    job = house.submit("exit 3")
    house.until_queue("1 FAILED NonZeroExitCode")
    house.slurm.delay_sacct(3600)
    assert house.accounts("-j", job) == []
    house.slurm.delay_sacct(0)
    assert house.accounts("-j", job) == ["1|FAILED|wrap"]


def test_accounting_may_be_off(make: Callable[..., House]) -> None:
    house = make(accounting=False)
    assert house.run("sacct") == (1, "", "Slurm accounting storage is disabled\n")
    assert "accounting_storage/none" in house.run("scontrol", "show", "config").out


def test_sbatch_may_name_the_cluster(house: House) -> None:
    house.slurm.name_cluster("big")
    assert house.submit("true") == "1;big"


def test_a_qos_may_limit_what_is_submitted(make: Callable[..., House]) -> None:
    house = make(qos={"tight": 3})
    job = house.submit("sleep 100", "--qos=tight", "--array=0-1")
    refused = house.sbatch("true", "--qos=tight", "--array=0-1")
    assert refused.code == 1
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    words = f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: {policy}\n"
    assert refused.err == words
    house.run("scancel", job)
    house.until_queue("1_0 CANCELLED None", "1_1 CANCELLED None")
    house.submit("true", "--qos=tight", "--array=0-1")


def test_unknown_accounts_and_qos_are_refused_in_slurms_words(make: Callable[..., House]) -> None:
    house = make(accounts=["physics"], qos={})
    account = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n"
    assert house.sbatch("true", "--account=nope") == (1, "", account)
    assert house.sbatch("true", "--qos=nope") == (
        1,
        "",
        "sbatch: error: Batch job submission failed: Invalid qos specification\n",
    )
    assert house.submit("true", "--account=physics")


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("fault", ["preempt", "fail_node"])
def test_a_job_that_loses_its_place_is_requeued_unless_it_must_not_be(house: House, fault: str, *, stays: bool) -> None:
    job = house.submit("echo x >> runs; [ $(wc -l < runs) = 2 ] || sleep 100", *["--no-requeue"] * stays)
    house.until_file("runs")
    if fault == "preempt":
        house.slurm.preempt(job)
    else:
        house.slurm.fail_node("n1")
        house.slurm.mend_node("n1")
    ended = "1 PREEMPTED None" if fault == "preempt" else "1 NODE_FAIL NodeDown"
    house.until_queue(ended if stays else "1 COMPLETED None")
    assert len((house.folder / "runs").read_text().split()) == (1 if stays else 2)


def test_a_requeued_job_runs_again(house: House) -> None:
    job = house.submit("echo x >> runs; [ $(wc -l < runs) = 2 ] || sleep 100")
    house.until_file("runs")
    house.slurm.requeue(job)
    house.until_queue("1 COMPLETED None")
    assert "Restarts=1" in house.run("scontrol", "show", "job", job).out


def test_a_held_job_waits_until_it_is_released(house: House) -> None:
    blocker = house.submit("sleep 100", "--cpus-per-task=4")
    job = house.submit("true")
    house.slurm.hold(job)
    house.until_queue("1 RUNNING None", "2 PENDING JobHeldUser")
    house.run("scancel", blocker)
    house.until_queue("1 CANCELLED None", "2 PENDING JobHeldUser")
    house.run("scontrol", "release", job)
    house.until_queue("1 CANCELLED None", "2 COMPLETED None")


def test_jobs_wait_while_all_cpus_are_taken(make: Callable[..., House]) -> None:
    house = make(cpus=2)
    house.submit("sleep 100", "--array=0-2")
    house.until_queue("1_0 RUNNING None", "1_1 RUNNING None", "1_2 PENDING Resources")
    last = house.submit("true")
    house.until_queue("1_0 RUNNING None", "1_1 RUNNING None", "1_2 PENDING Resources", f"{last} PENDING Priority")
    house.run("scancel", "1")
    until(lambda: f"{last} COMPLETED None" in house.queue(), "the last job's turn")


def test_a_job_over_its_time_limit_is_ended(make: Callable[..., House]) -> None:
    house = make(minute_s=0.2)
    house.submit("sleep 100", "--time=1", "--output=log")
    house.until_queue("1 TIMEOUT TimeLimit")
    assert "DUE TO TIME LIMIT" in (house.folder / "log").read_text()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="exact memory needs Linux's /proc")
def test_what_uses_too_much_memory_is_killed(house: House) -> None:
    hungry = "python3 -c 'x = b\"x\" * 200_000_000; import time; time.sleep(100)'"
    house.submit(f"{hungry}; exit 0", "--mem=60M", "--output=log")
    house.until_queue("1 OUT_OF_MEMORY OutOfMemory")
    assert "oom-kill event" in (house.folder / "log").read_text()


def test_a_finished_job_leaves_squeue_and_stays_in_sacct(make: Callable[..., House]) -> None:
    house = make(min_job_age_s=0)
    job = house.submit("true")
    house.until_queue()
    assert house.accounts("-j", job) == ["1|COMPLETED|wrap"]
    assert house.run("squeue", "-j", job) == (1, "", "slurm_load_jobs error: Invalid job id specified\n")


def test_commands_at_the_same_time_lose_nothing(house: House) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: house.submit("true", f"--job-name=j{number}"), range(24)))
    assert sorted(map(int, jobs)) == list(range(1, 25))
    until(lambda: house.queue("%T") == ["COMPLETED"] * 24, "the end of all")
    assert sorted(house.queue("%j")) == sorted(f"j{number}" for number in range(24))


def test_cancels_at_the_same_time_all_take_effect(make: Callable[..., House]) -> None:
    house = make(cpus=16)
    job = house.submit("sleep 100", "--array=0-15")
    until(lambda: house.queue("%T") == ["RUNNING"] * 16, "the start of all")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: house.run("scancel", f"{job}_{index}"), range(16)))
    assert answers == [(0, "", "")] * 16
    until(lambda: house.queue("%T") == ["CANCELLED"] * 16, "the end of all")


def test_a_killed_controller_takes_its_jobs_along_and_is_replaced(house: House) -> None:
    house.submit("echo $$ > runs; sleep 100", "--no-requeue")
    pid = int(house.until_file("runs"))
    controller = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(controller, signal.SIGKILL)
    house.until_queue("1 NODE_FAIL NodeDown")
    assert start_of(pid) is None
    house.submit("true")
    house.until_queue("1 NODE_FAIL NodeDown", "2 COMPLETED None")


def test_leaving_ends_all_jobs_and_all_that_they_started(tmp_path: Path) -> None:
    house = House(tmp_path)
    with house.slurm:
        house.submit(
            "trap '' TERM; setsid sleep 100 & echo $! > stray; sleep 100 & echo $! > child; echo $$ > runs; wait"
        )
        house.submit("sleep 100", "--array=0-9")
        pids = [int(house.until_file(name)) for name in ("stray", "child", "runs")]
    assert [start_of(pid) for pid in pids] == [None] * 3
    assert house.run("squeue") == (1, "", f"slurm_load_jobs error: {LOST}")


def test_nothing_of_the_simulator_runs_when_there_is_nothing_to_run(house: House) -> None:
    house.submit("echo $PPID > controller")
    controller = int(house.until_file("controller"))
    until(lambda: start_of(controller) is None, "the controller's end")


def test_a_job_does_not_end_a_process_that_got_its_number(house: House) -> None:
    innocent = subprocess.Popen(["sleep", "100"], start_new_session=True)
    house.submit("sleep 100")
    until(lambda: house.queue("%T") == ["RUNNING"], "its start")
    state = house.folder / "slurm" / "state"
    text = state.read_text()
    pid = text.partition('"pid": ')[2].partition(",")[0]
    state.write_text(text.replace(f'"pid": {pid}', f'"pid": {innocent.pid}'))
    house.slurm.close()
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()


def test_a_command_without_the_simulators_variable_says_what_it_needs(house: House) -> None:
    house.env.pop("BATCHPORT_SLURM_SIMULATOR")
    answer = house.run("squeue")
    assert answer.code == 1
    assert "needs BATCHPORT_SLURM_SIMULATOR" in answer.err


def test_what_is_planned_but_impossible_is_a_lookup_error(house: House) -> None:
    with pytest.raises(LookupError, match="no job 7 is known here"):
        house.slurm.preempt("7")
    with pytest.raises(LookupError, match="no job is known"):
        house.slurm.forget_last_job()
