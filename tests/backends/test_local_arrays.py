"""Arrays and the queue limit of the embedded backend, beyond what the conformance suite asks of every backend."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchport import BackendFullError, JobSpec, JobState, Resources
from batchport.backends.local import LocalAdapter, Options
from batchport.testing import Backend, functions
from batchport.testing.host import Host

TASKS, LIMIT = 500, 50
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED"}


def job(name: str, *command: str, size: int = 1) -> JobSpec:
    return JobSpec(name, "job", command, {}, Resources(), size)


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[LocalAdapter]:
    adapter = LocalAdapter(Options(folder=str(tmp_path), slots=8, queue_limit=LIMIT))
    adapter.open("worker")
    yield adapter
    for folder in adapter.jobs.iterdir():
        adapter.cancel_job(folder.name)


def ended(adapter: LocalAdapter, job_id: str) -> dict[str, JobState]:
    while True:
        states = {status.job_id: status.state for status in adapter.poll_jobs([job_id])}
        if states[job_id].is_final:
            return states
        time.sleep(0.01)


class Queue:
    """Counts elements that wait or run by their files, never more than there were when the look began."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over: set[Path] = set()

    def length(self) -> int:
        count = 0
        for job in set(self._folder.glob("jobs/*/*")) - self._over:
            state, size = _record(job) or ("", 0)
            if state in ENDED:
                self._over.add(job)
            else:
                elements = [job / str(index) for index in range(size)] if size > 1 else [job][:size]
                count += sum((_record(element) or ("", 0))[0] not in ENDED for element in elements)
        return count


def _record(folder: Path) -> tuple[str, int] | None:
    try:
        words = (folder / "state").read_text("utf-8").partition("\n")[0]
    except FileNotFoundError:
        return None
    found = dict(re.findall(r"(\S+)=(\S*)", words))
    return found["state"], int(found["size"])


@pytest.mark.timeout(120)  # 25 s alone, most of it the start of 500 interpreters
async def test_500_tasks_pass_a_queue_that_holds_50(tmp_path: Path) -> None:
    refused: list[int] = []
    taken: list[int] = []

    class Watched(LocalAdapter):
        def submit_job(self, job: JobSpec) -> str:
            try:
                job_id = super().submit_job(job)
            except BackendFullError:
                refused.append(job.size)
                raise
            taken.append(job.size)
            return job_id

    options = Options(folder=str(tmp_path), slots=2, queue_limit=LIMIT)
    backend = Backend(lambda: Watched(options), str(tmp_path / "store"), sys.executable)
    queue, seen, done = Queue(tmp_path), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(queue.length())

    watcher = asyncio.create_task(asyncio.to_thread(watch))
    try:
        async with Host(backend, patience_s=55) as host:
            tasks = [await host.call(functions.add, number, 1) for number in range(TASKS)]
            await host.worker.drain()
            assert [await host.result(task) for task in tasks] == [number + 1 for number in range(TASKS)]
    finally:
        done.set()
        await watcher
    assert refused[:2] == [TASKS, TASKS // 2], "an array too large for the queue is halved"
    assert taken[0] < max(seen) <= LIMIT, f"what is offered grows again, up to what fits: {taken[0]}, {max(seen)}"
    assert max(taken[1:]) > 1, "and goes in arrays when more than one place is free"


def test_a_full_queue_takes_a_part_of_what_is_offered(adapter: LocalAdapter) -> None:
    adapter.submit_job(job("first", "sleep", "60", size=30))
    with pytest.raises(BackendFullError) as caught:
        adapter.submit_job(job("second", "sleep", "60", size=21))
    assert str(caught.value) == "30 elements are there, 21 more are offered, 50 may be"
    assert not list(adapter.find_jobs(["second"]))
    adapter.submit_job(job("second", "sleep", "60", size=20))
    adapter.cancel_job("first")
    ended(adapter, "first")
    adapter.submit_job(job("third", "sleep", "60", size=30))


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.02])
def test_a_cancel_is_kept_by_elements_that_are_just_being_started(adapter: LocalAdapter, delay: float) -> None:
    for number in range(3):
        for name, of_all in ((f"elements-{number}", False), (f"array-{number}", True)):
            adapter.submit_job(job(name, "sleep", "60", size=8))
            time.sleep(delay)
            for each in [name] if of_all else [adapter.element_id(name, index) for index in range(8)]:
                adapter.cancel_job(each)
            assert JobState.SUCCEEDED not in ended(adapter, name).values()
