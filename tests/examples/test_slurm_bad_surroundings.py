"""Slurm is well, and what is around it is not, or is as at many sites: the store, the worker's machine, its user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import batchport_slurm
import cloudpickle
import pytest
from batchport_slurm.adapter import Adapter
from batchport_slurm.options import Options
from tests.examples.on_slurm import Env, executor_on, failure_of, said, until, words
from tests.lab import labs

import batchport
from batchport import BatchWorker, Reason, StoreError
from batchport.store import FolderStore
from batchport.tasks import Blob, Outcome, Task

cloudpickle.register_pickle_by_value(sys.modules[__name__])

EXAMPLE = Path(str(batchport_slurm.__file__)).parents[1]


@pytest.fixture(autouse=True)
def standing(slurm: Env, monkeypatch: pytest.MonkeyPatch) -> Env:
    """Have the test's executors use the cluster that is left alone."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    return slurm


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Give the test a folder on a disk of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size=1m,mode=0700,uid={os.getuid()}"
    mount = (*labs._as_root(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        labs._missing(f"this mounts a small disk, which takes root and is refused here: {done.stderr.strip()}")
    yield folder
    subprocess.run((*labs._as_root(), "umount", str(folder)), check=True)


def fill(folder: Path) -> Path:
    """Write a file that takes all the room there is."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def random_bytes(count: int) -> bytes:
    return os.urandom(count)


def test_a_result_for_which_the_stores_disk_has_no_room_fails_and_says_so(small: Path, tmp_path: Path) -> None:
    with executor_on(tmp_path, store=small / "store", name="fit") as executor:
        failed = failure_of(executor.submit(random_bytes, 2 << 20), 50)  # the runner tries for half a minute
        assert len(executor.submit(random_bytes, 1 << 10).result(timeout=20)) == 1 << 10, "the next one has room"
    assert failed.reason is Reason.ENVIRONMENT
    assert words(failed) == "Job NAME (ID) could not use the store."
    assert f"batchport runner: the store {small}/store cannot write fit/out/" in failed.evidence
    assert ": No space left on device; tried 6 times, so what this job still had to say is lost" in failed.evidence
    assert failed.advice == f"Check that jobs can read and write file://{small}/store from where they run."


def test_a_worker_whose_stores_disk_is_full_says_so_and_goes_on_once_there_is_room(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with executor_on(tmp_path, store=small / "store", name="fit") as executor:
        filler = fill(small)
        future = executor.submit(random_bytes, 1 << 10)
        until("the user to be told", lambda: "can't write the manifests of 1 jobs at fit/jobs" in caplog.text)
        assert "No space left on device" in caplog.text
        assert not future.done()
        filler.unlink()
        assert len(future.result(timeout=20)) == 1 << 10


def test_an_executor_can_be_left_while_its_stores_disk_is_full(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = executor_on(tmp_path, store=small / "store", name="fit")
    filler = fill(small)
    future = executor.submit(random_bytes, 1 << 10)
    until("the user to be told", lambda: "can't write the manifests of 1 jobs at fit/jobs" in caplog.text)
    future.cancel()
    leaving = threading.Thread(target=executor.shutdown)
    leaving.start()
    leaving.join(10)
    has_left = not leaving.is_alive()
    filler.unlink()
    leaving.join()
    assert has_left, "nobody wants the call any more, and there is nothing to wait for"


def test_an_executor_on_a_store_whose_disk_is_full_does_not_start_and_says_why(small: Path, tmp_path: Path) -> None:
    fill(small)
    with pytest.raises(StoreError, match=r"cannot write fit/birth: No space left on device"):
        executor_on(tmp_path, store=small / "store", name="fit")


class Lagging(FolderStore):
    """A folder on a shared file system, where what others wrote is listed 3 s late."""

    def names(self, folder: str) -> list[str]:
        return [name for name in super().names(folder) if self.age(folder, name) >= 3]

    def age(self, folder: str, name: str) -> float:
        try:
            return time.time() - (self.root / folder / name).stat().st_mtime
        except FileNotFoundError:
            return 0


def fail() -> None:
    raise ValueError("the third of four")


def crash() -> None:
    os._exit(3)


async def test_results_that_are_listed_late_are_waited_for(tmp_path: Path) -> None:
    outcomes: dict[str, Outcome] = {}

    async def deliver(outcome: Outcome) -> None:
        outcomes[outcome.task_id] = outcome

    adapter, store = Adapter(Options(logs=str(tmp_path / "logs"))), Lagging(tmp_path / "store")
    async with BatchWorker(adapter, store, "fit", deliver, poll_s=(0.3, 0.6), results_s=0.1) as worker:
        calls: dict[str, tuple[Callable[..., object], Any]] = {
            **{f"square-{number}": (pow, (number, 2)) for number in range(5)},
            "fail": (fail, ()),
            "crash": (crash, ()),
        }
        for name, (function, arguments) in calls.items():
            function_blob, *blobs = (Blob.of(cloudpickle.dumps(each)) for each in (function, *arguments))
            await worker.submit(Task(name, function_blob, tuple(blobs), label=name))
        await worker.drain()
        polls = worker.counts.backend_calls["poll_jobs"]
    assert polls > 1, "the jobs were over by Slurm's word before the results were seen"
    squares = [outcomes[f"square-{number}"].result for number in range(5)]
    assert [cloudpickle.loads(result or b"") for result in squares] == [0, 1, 4, 9, 16]
    failed, crashed = outcomes["fail"].failure, outcomes["crash"].failure
    assert failed is not None
    assert (failed.reason, failed.message) == (
        Reason.USER_ERROR,
        "The function raised ValueError: the third of four.",
    )
    assert crashed is not None
    assert (crashed.reason, crashed.message) == (
        Reason.RUNNER_CRASH,
        "The task's process ended with exit code 3 before the function returned.",
    )


INNER = """
import json, os, sys
from pathlib import Path

from batchport import BatchExecutor
from batchport_slurm.adapter import Adapter
from batchport_slurm.options import Options

def look():
    return {key: value for key, value in os.environ.items() if key.startswith("SLURM")}

folder = Path(sys.argv[1])
with BatchExecutor(Adapter(Options(logs=str(folder / "logs"))), folder / "store") as executor:
    plain = executor.submit(look)
    large = executor.options(cpus=2, memory_mib=200, label="large").submit(look)
    array = [executor.options(cpus=2).submit(look) for _ in range(2)]
    seen = [look(), plain.result(), large.result(), array[0].result()]
(folder / "seen").write_text(json.dumps(seen))
"""


DIFFERS = {
    *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_TASK_PID"),
    *("SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURMD_NODENAME", "SLURM_TOPOLOGY_ADDR"),
}
"""What is different in each job."""


def test_what_a_worker_inside_a_job_submits_is_what_it_submits_from_outside(standing: Env, tmp_path: Path) -> None:
    script = tmp_path / "inner.py"
    script.write_text(INNER, encoding="utf-8")
    env = {**standing, "PYTHONPATH": str(EXAMPLE)}
    command = f"{sys.executable} {script} {tmp_path}"
    asked = ("--ntasks=1", "--cpus-per-task=1", "--mem=300", "--time=3", f"--output={tmp_path}/outer.log")
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    # By srun, which sets still more of them than sbatch does.
    outer = said(env, "sbatch", "--parsable", "--job-name=outer", *asked, f"--wrap=srun {command}/inside")
    subprocess.run((*command.split()[:-1], f"{tmp_path}/outside"), env=env, check=True)
    until("the outer job to be done", (tmp_path / "inside" / "seen").exists)
    around, *inside = json.loads((tmp_path / "inside" / "seen").read_text(encoding="utf-8"))
    _, *outside = json.loads((tmp_path / "outside" / "seen").read_text(encoding="utf-8"))
    assert {"SLURM_STEP_ID", "SLURM_MEM_PER_NODE", "SLURM_CPUS_PER_TASK"} <= around.keys()
    assert [{key: each[key] for key in each.keys() - DIFFERS} for each in inside] == [
        {key: each[key] for key in each.keys() - DIFFERS} for each in outside
    ]
    plain, large, array = inside
    assert [each["SLURM_JOB_ID"] for each in inside if each["SLURM_JOB_ID"] == outer] == []
    assert plain["SLURM_JOB_NAME"].startswith("look-")
    assert (plain["SLURM_CPUS_PER_TASK"], plain["SLURM_NTASKS"]) == ("1", "1")
    assert "SLURM_MEM_PER_NODE" not in plain, "it is the outer job's, and this one asked for none"
    assert large["SLURM_JOB_NAME"].startswith("look-large-")
    assert (large["SLURM_CPUS_PER_TASK"], large["SLURM_CPUS_ON_NODE"], large["SLURM_MEM_PER_NODE"]) == ("2", "2", "200")
    assert (array["SLURM_ARRAY_TASK_ID"], array["SLURM_ARRAY_TASK_COUNT"]) == ("0", "2")


@pytest.fixture
def others(standing: Env) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a script as the lab's ordinary user, by a Python that it may use, in a folder of its own."""
    user = "labuser"
    as_user = (*labs._as_root(), "runuser", "-u", user, "--")
    enough = "import sys; assert sys.version_info >= (3, 11)"
    pythons = (each for each in (sys.executable, "/usr/bin/python3") if Path(each).exists())
    python = next((each for each in pythons if is_well(*as_user, each, "-c", enough)), None)
    if python is None:
        labs._missing(f"{user} may use no Python 3.11 here; install one as /usr/bin/python3")
    folder = Path(tempfile.mkdtemp(prefix="batchport-other-"))
    try:
        # Neither this checkout nor its environment need be readable for others.
        for package in (batchport, batchport_slurm, cloudpickle):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, folder / "packages" / source.name, ignore=shutil.ignore_patterns("__pycache__"))

        def run(script: str) -> subprocess.CompletedProcess[str]:
            (folder / "script.py").write_text(script, encoding="utf-8")
            subprocess.run((*labs._as_root(), "chown", "-R", f"{user}:", folder), check=True)
            env = ("env", f"SLURM_CONF={standing['SLURM_CONF']}", f"PYTHONPATH={folder}/packages", f"HOME={folder}")
            command = (*as_user, *env, python, "script.py")
            return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)

        yield run
    finally:
        subprocess.run((*labs._as_root(), "rm", "-r", folder), check=True)


def is_well(*command: str) -> bool:
    return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


NOT_ROOT = """
import json, os, signal

from batchport import BatchExecutor, TaskFailedError
from batchport_slurm.adapter import Adapter
from batchport_slurm.options import Options

def who():
    return os.getuid(), os.environ["SLURM_JOB_USER"], os.environ["SLURM_JOB_ACCOUNT"]

def die():
    os.kill(os.getppid(), signal.SIGKILL)

with BatchExecutor(Adapter(Options()), "store", poll_s=(0.5, 2), grace_s=2) as executor:
    died = executor.submit(die)
    ran_as = executor.submit(who).result()
    elements = list(executor.map(pow, range(5), [2] * 5))
    print(json.dumps([os.getuid(), ran_as, elements, str(died.exception())]))
"""


def test_a_user_who_is_not_root_gets_results_and_reasons(
    others: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = others(NOT_ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    uid, ran_as, elements, said_of_death = json.loads(done.stdout)
    assert uid != 0
    assert ran_as == [uid, "labuser", "lab"]
    assert elements == [0, 1, 4, 9, 16]
    assert "and left no result. [crash]" in said_of_death
    assert "Slurm says FAILED" in said_of_death
