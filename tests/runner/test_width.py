"""Several tasks of a pack at once: each has its own child, limits, output and end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.runner.conftest import is_alive

from batchport.envelope import Envelope
from batchport.store import OutKey

if TYPE_CHECKING:
    from tests.runner.conftest import Job

    Wait = Callable[[Callable[[], object]], None]


@pytest.fixture(name="meet")
def _meet(tmp_path: Path) -> Callable[[int, int], int]:
    """Return a task that ends once `others` of its kind have begun."""

    def meet(number: int, others: int) -> int:
        (tmp_path / f"met-{number}").touch()
        end = time.monotonic() + 20
        while len(list(tmp_path.glob("met-*"))) < others:
            assert time.monotonic() < end
            time.sleep(0.01)
        return number

    return meet


@pytest.fixture(name="hang")
def _hang(tmp_path: Path) -> Callable[[int], None]:
    def hang(number: int) -> None:
        print(f"task {number} begun")
        (tmp_path / f"hangs-{number}").touch()
        time.sleep(300)

    return hang


def test_a_pack_runs_as_many_tasks_at_once_as_its_width(job: Job, meet: Callable[[int, int], int]) -> None:
    job.offer(*((meet, number, 3) for number in range(3)), width=3)
    assert job.run() == (0, "", "")
    assert [job.result(place) for place in range(3)] == [0, 1, 2]


def test_a_pack_never_runs_more_tasks_at_once_than_its_width(job: Job, tmp_path: Path) -> None:
    def f(number: int) -> int:
        mark = tmp_path / f"runs-{number}"
        mark.touch()
        time.sleep(0.05)
        most = len(list(tmp_path.glob("runs-*")))
        mark.unlink()
        return most

    job.offer(*((f, number) for number in range(8)), width=2)
    assert job.run()[0] == 0
    assert max(job.result(place) for place in range(8)) <= 2


def test_a_width_beyond_the_packs_tasks_does_no_harm(job: Job) -> None:
    job.offer((abs, -1), (abs, -2), width=64)
    assert job.run()[0] == 0
    assert (job.result(0), job.result(1)) == (1, 2)


def test_each_result_is_committed_as_its_task_ends(job: Job, tmp_path: Path, wait_until: Wait) -> None:
    def wait() -> str:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return "slow"

    job.offer(wait, lambda: "fast", lambda: "next", width=2)
    runner = job.start()
    wait_until(lambda: job.left() == [(1, "result"), (2, "result")])
    assert (job.result(1), job.result(2)) == ("fast", "next")
    (tmp_path / "go").touch()
    assert runner.wait(20) == 0
    assert job.result(0) == "slow"


def test_a_crash_leaves_the_others_alone(job: Job, tmp_path: Path) -> None:
    def crash() -> None:
        while not (tmp_path / "met-1").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSEGV)

    def outlive(root: str) -> str:
        (tmp_path / "met-1").touch()
        while not [name for name in os.listdir(root) if ".evidence." in name]:  # noqa: PTH208 - travels by value
            time.sleep(0.01)
        return "well"

    out = job.store.root / job.keys.out
    out.mkdir(parents=True)
    job.offer(crash, (outlive, str(out)), width=2)
    assert job.run()[0] == 1
    assert job.left() == [(0, "evidence"), (1, "result")]
    assert job.result(1) == "well"
    assert "SIGSEGV" in job.fields("evidence")["message"]


def test_each_task_has_its_own_output(job: Job, meet: Callable[[int, int], int]) -> None:
    def f(number: int) -> None:
        print(f"before {number}")
        meet(number, 4)
        print(f"after {number}")

    job.offer(*((f, number) for number in range(4)), width=4)
    code, out, _ = job.run()
    assert code == 0
    assert [job.output(place) for place in range(4)] == [f"before {n}\nafter {n}\n" for n in range(4)]
    assert sorted(out.splitlines()) == sorted(f"{word} {n}" for n in range(4) for word in ("before", "after"))


def test_the_output_of_each_can_be_read_while_it_runs(job: Job, hang: Callable[[int], None], wait_until: Wait) -> None:
    job.first("pack.OUTPUT_S = 0.05")
    job.offer((hang, 0), (hang, 1), width=2)
    job.start()
    keys = [job.keys.left(OutKey(job.name, place, "output")) for place in range(2)]
    wait_until(lambda: [job.store.get(key) for key in keys] == [b"task 0 begun\n", b"task 1 begun\n"])


def test_a_stop_marker_ends_its_task_only(
    job: Job, tmp_path: Path, hang: Callable[[int], None], wait_until: Wait
) -> None:
    def wait() -> str:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return "well"

    job.first("pack.STOPS_S = 0.05")
    job.offer((hang, 0), wait, lambda: "next", width=2)
    runner = job.start()
    wait_until((tmp_path / "hangs-0").exists)
    job.stop(0)
    wait_until(lambda: job.left() == [(0, "stopped"), (2, "result")])
    (tmp_path / "go").touch()
    assert runner.wait(20) == 0
    assert job.result(1) == "well"


def test_each_task_has_its_own_time_limit(job: Job, hang: Callable[[int], None]) -> None:
    def longer(seconds: float) -> str:
        time.sleep(seconds)
        return "well"

    job.offer((hang, 0), (longer, 1.5), width=2, fields={"time_limit_s": 1})
    assert job.run()[0] == 1
    assert job.fields("evidence")["reason"] == "TIMEOUT"
    assert job.fields("evidence")["message"] == "The task ran longer than its time limit of 1 s and was ended."
    assert job.result(1) == "well"


def test_a_runner_that_is_told_to_end_leaves_evidence_of_every_running_task(
    job: Job, tmp_path: Path, wait_until: Wait
) -> None:
    def stubborn(number: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / f"runs-{number}").touch()
        time.sleep(300)

    job.offer(*((stubborn, number) for number in range(4)), width=3)
    runner = job.start()
    wait_until(lambda: len(list(tmp_path.glob("runs-*"))) == 3)
    runner.terminate()
    assert runner.wait(5) == 143, "they are ended together, not one after the other"
    assert job.left() == [(place, "evidence") for place in range(3)]
    for place in range(3):
        fields = job.fields("evidence", place)
        assert fields["message"] == "The job was told to end by SIGTERM while the task ran."
        assert fields["exit_code"] == 137


def test_a_runner_that_is_killed_takes_every_task_along(job: Job, tmp_path: Path, wait_until: Wait) -> None:
    def f(number: int) -> None:
        pid = subprocess.Popen(["sleep", "300"]).pid
        (tmp_path / f"pids-{number}").write_text(f"{os.getpid()} {pid} ")
        time.sleep(300)

    job.offer(*((f, number) for number in range(3)), width=3)
    runner = job.start()

    def pids() -> list[int]:
        return [int(pid) for path in tmp_path.glob("pids-*") for pid in path.read_text().split()]

    wait_until(lambda: len(pids()) == 6)
    runner.kill()
    wait_until(lambda: not any(map(is_alive, pids())))


def test_a_child_holds_none_of_its_siblings_pipes(job: Job, tmp_path: Path, wait_until: Wait) -> None:
    def pipes() -> int:
        (tmp_path / f"begun-{os.getpid()}").touch()
        while len(list(tmp_path.glob("begun-*"))) < 3:
            time.sleep(0.01)
        held = 0
        for fd in range(3, 64):
            with suppress(OSError):
                held += stat.S_ISFIFO(os.fstat(fd).st_mode)
        return held

    job.offer(pipes, pipes, pipes, width=3)
    assert job.run()[0] == 0
    assert len({job.result(place) for place in range(3)}) == 1


def test_a_job_that_is_superseded_half_way_leaves_nothing_running(job: Job, tmp_path: Path, wait_until: Wait) -> None:
    def f() -> None:
        (tmp_path / "pid").write_text(f"{os.getpid()} ")
        time.sleep(300)

    def drop(manifest: str) -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        Path(manifest).unlink()

    key = job.keys.manifest(job.name)
    job.offer((drop, str(job.store.root / key)), f, (abs, "?"), width=2, inline=False)
    envelope = Envelope.from_bytes(job.store.get(key) or b"", ("manifest",))
    envelope.fields["payload"]["tasks"][2]["args"] = ["gone"]
    job.store.put(key, envelope.to_bytes())
    assert job.run()[0] == 0
    assert job.left() == [(0, "result")]
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_a_store_that_stays_out_of_reach_leaves_nothing_running(job: Job, tmp_path: Path, wait_until: Wait) -> None:
    def f() -> None:
        (tmp_path / "pid").write_text(f"{os.getpid()} ")
        time.sleep(300)

    def drop(out: str) -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        Path(out).touch()

    job.first("pack.PAUSES_S = (0.01,)")
    job.offer((drop, str(job.store.root / job.keys.out)), f, width=2)
    assert job.run()[0] == 74
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))
