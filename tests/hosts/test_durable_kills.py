"""Promise 8 as a user sees it: a durable script that is killed and run again loses and repeats nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

TASKS = 200
KILLS = ("before submit", "after submit", "at random") * 7

SCRIPT = f"""
import json, os, signal, sys, time
from pathlib import Path

from batchport import BatchExecutor
from batchport.backends.local import LocalAdapter, Options

fault, countdown = sys.argv[1], int(sys.argv[2])

class Deadly(LocalAdapter):
    def submit_job(self, job):
        self.die_at("before submit")
        job_id = super().submit_job(job)
        self.die_at("after submit")
        return job_id

    def die_at(self, here):
        global countdown
        if here == fault:
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)

def mark(number):
    with open(f"marks/{{number}}", "a") as file:
        file.write(os.environ["BATCHPORT_JOB"] + "\\n")
    return number

adapter = Deadly(Options(folder="jobs", slots=3))
with BatchExecutor(adapter, "store", name="fit", max_jobs=3, poll_s=(0.1, 1), results_s=0.05) as executor:
    futures = [executor.submit(mark, number) for number in range({TASKS})]
    results = [future.result() for future in futures]
    Path("results").write_text(json.dumps([results, executor.counts.second_runs]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "marks").mkdir()
    return tmp_path


def run(folder: Path, fault: str, countdown: int, kill_after_s: float | None) -> int:
    """Run the script until it ends or is killed, and return its exit code."""
    command = (sys.executable, "-W", "error", "script.py", fault, str(countdown))
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            return process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@pytest.mark.timeout(170)
def test_twenty_kills_lose_no_outcome_and_run_nothing_twice(folder: Path) -> None:
    seed = int(os.environ.get("BATCHPORT_SEED", random.randrange(1 << 32)))
    print(f"BATCHPORT_SEED={seed}")
    chance, killed = random.Random(seed), Counter[str]()
    began = time.monotonic()
    for fault in chance.sample(KILLS, len(KILLS)):
        at_random = fault == "at random"
        code = run(folder, fault, chance.randint(1, 3), chance.uniform(0.1, 0.8) if at_random else None)
        assert code == -signal.SIGKILL, (
            f"the script ended with {code} by itself (0: it needs more tasks to be killed over)"
        )
        killed[fault] += 1
        done = len(list((folder / "marks").iterdir()))
        print(f"{time.monotonic() - began:6.1f} s  {fault:13}  exit code {code}  {done} tasks have run")
    assert run(folder, "none", 0, None) == 0
    print(f"{time.monotonic() - began:6.1f} s  done; killed: {dict(killed)}")

    results, second_runs = json.loads((folder / "results").read_text(encoding="utf-8"))
    assert results == list(range(TASKS))
    marks = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (folder / "marks").iterdir()}
    assert {name: jobs for name, jobs in marks.items() if len(jobs) != 1} == {}
    assert (len(marks), second_runs) == (TASKS, 0)
    assert killed.total() >= 20
    assert min(killed["before submit"], killed["after submit"]) >= 5
    left = [path for path in (folder / "store").rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert sorted(path.parent.name for path in left) == ["epochs", "fit"], "only the last epoch and the birth stay"
