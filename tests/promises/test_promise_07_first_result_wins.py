"""Promise 7: results are committed create-only, the first writer wins, and a second run leaves a record."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from batchport import Blob, JobSpec, Resources, Task
from batchport.envelope import Envelope
from batchport.store import FolderStore, Keys, OutKey
from batchport.worker.ledger import Ledger
from batchport.worker.payload import make_payload
from batchport.worker.tracking import Entry

JOB = "meet-abcd1234-1-1"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Make the store that the runners share."""
    return FolderStore(tmp_path / "store")


def _offer(store: FolderStore, function: Callable[[], object]) -> None:
    """Put a job of one task into the store, as the worker does."""
    blob = Blob.of(data := cloudpickle.dumps(function))
    spec = JobSpec(JOB, "meet", ("python",), {}, Resources())
    job = Ledger().open_job(spec, [Entry(Task("t", blob))], per_element=1)
    made = make_payload(job, {blob.key: data}, {"path": []}, inline_bytes=0)
    store.put(Keys("w").manifest(JOB), made.manifest)


def _start_runner(store: FolderStore) -> subprocess.Popen[str]:
    names = {"BATCHPORT_STORE": store.url, "BATCHPORT_WORKER": "w", "BATCHPORT_JOB": JOB}
    command = [sys.executable, "-m", "batchport.runner"]
    return subprocess.Popen(command, env={**os.environ, **names}, stderr=subprocess.PIPE, text=True)


def _run(*runners: subprocess.Popen[str]) -> list[int]:
    codes = []
    for runner in runners:
        with runner:
            runner.communicate(timeout=50)
        codes.append(runner.returncode)
    return codes


def test_of_two_runs_the_first_result_wins_and_the_second_is_recorded(store: FolderStore, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()

    def meet() -> int:
        """Return only once both runs are under way, the second one later."""
        import os
        import time

        place = len(list(meeting.iterdir()))
        (meeting / str(os.getpid())).touch()
        while len(list(meeting.iterdir())) < 2:
            time.sleep(0.01)
        while place and not (meeting / "first-is-done").exists():
            time.sleep(0.01)
        return place

    _offer(store, meet)
    first = _start_runner(store)
    while not any(meeting.iterdir()):
        pass
    second = _start_runner(store)
    assert _run(first) == [0]
    (meeting / "first-is-done").touch()
    assert _run(second) == [0]

    left = [OutKey.parse(name) for name in store.names(Keys("w").out)]
    assert sorted(out.kind for out in left if out) == ["result", "second"]
    data = store.get(Keys("w").left(OutKey(JOB, 0, "result")))
    assert data is not None
    assert cloudpickle.loads(Envelope.from_bytes(data, ("result",)).parts[0]) == 0, "the later run has taken its place"


def test_a_task_whose_result_is_there_is_not_run_again(store: FolderStore, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def leave_mark() -> None:
        with mark.open("a") as file:
            file.write("ran\n")

    _offer(store, leave_mark)
    assert _run(_start_runner(store)) == [0]
    assert _run(_start_runner(store)) == [0]
    assert mark.read_text() == "ran\n"


def test_a_runner_keeps_its_input(store: FolderStore) -> None:
    _offer(store, lambda: 1)
    assert _run(_start_runner(store)) == [0]
    assert store.exists(Keys("w").manifest(JOB)), "a second attempt would find nothing to run"


def test_a_runner_whose_manifest_is_gone_runs_nothing_and_ends_quietly(store: FolderStore, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    _offer(store, mark.touch)
    store.delete([Keys("w").manifest(JOB)])
    assert _run(_start_runner(store)) == [0]
    assert not mark.exists()
    assert store.names(Keys("w").out) == []


async def test_the_worker_counts_a_second_run(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(tasks_per_job=2) as worker:
        await worker.submit(make_task("t0"))
        await worker.submit(make_task("t1"))
        job = await world.job()
        world.leave_result(job, place=0)
        record = Envelope("second", job.spec.name, fields={"first": "0000aaaa"})
        world.store.put(world.keys.left(OutKey(job.spec.name, 0, "second", "0000bbbb")), record.to_bytes())
        await world.until(lambda: worker.counts.second_runs == 1, "a counted second run")
        world.leave_result(job, place=1)
        await worker.drain()
        assert worker.counts.second_runs == 1
