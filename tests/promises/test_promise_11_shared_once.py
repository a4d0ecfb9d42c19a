"""Promise 11: what many tasks share is stored once, and removed when no task needs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchport import JobState, Task


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_argument_that_a_hundred_tasks_share_is_stored_once(
    world: Any, make_task: Callable[..., Task]
) -> None:
    shared = os.urandom(1 << 20)  # does not shrink when it is zipped
    async with world.worker() as worker:
        for number in range(100):
            await worker.submit(make_task(f"t{number}", shared))
        await world.job(100)
        stored = sum(path.stat().st_size for path in _files(world.store.root))
        blobs = _files(world.store.root / "w" / "blobs")
        for job in list(world.backend.jobs.values()):
            world.leave_result(job)
        await worker.drain()
    assert len(blobs) == 1
    assert stored < (1 << 20) + 100 * 1024, "each task costs less than a KiB besides"


async def test_what_the_elements_of_an_array_share_is_not_in_each_ones_payload(
    array_world: Any, make_task: Callable[..., Task]
) -> None:
    world, shared = array_world, os.urandom(5_000)
    async with world.worker() as worker:
        for number in range(10):
            await worker.submit(make_task(f"t{number}", shared, b"own"))
        job = await world.job()
        stored = sum(path.stat().st_size for path in _files(world.store.root))
        assert len(_files(world.store.root / "w" / "blobs")) == 1
        assert stored < 5_000 + 10 * 1024
        for place in range(10):
            world.leave_result(job, place)
        await worker.drain()
    assert _files(world.store.root / "w" / "blobs") == []


async def test_a_shared_argument_goes_with_the_last_task_that_needs_it(
    world: Any, make_task: Callable[..., Task]
) -> None:
    shared = os.urandom(50_000)
    blobs = world.store.root / "w" / "blobs"
    async with world.worker() as worker:
        await worker.submit(make_task("first", shared))
        await worker.submit(make_task("second", shared))
        first, second = await world.job(1), await world.job(2)
        world.leave_result(first)
        await world.until(lambda: sum(map(len, world.outcomes.values())) == 1, "the first outcome")
        assert len(_files(blobs)) == 1, "the second task still needs it"
        world.leave_result(second)
        await worker.drain()
        assert _files(blobs) == []
        await worker.submit(make_task("third", shared))
        third = await world.job(3)
        assert len(_files(blobs)) == 1, "it is needed, and stored, again"
        world.leave_result(third)
        await worker.drain()


async def test_a_retry_finds_its_arguments_still_there(world: Any, make_task: Callable[..., Task]) -> None:
    from batchport import Reason

    async with world.worker(retries=1) as worker:
        await worker.submit(make_task("t", os.urandom(50_000)))
        (await world.job(1)).end(JobState.FAILED, Reason.NODE_LOST)
        second = await world.job(2)
        assert len(_files(world.store.root / "w" / "blobs")) == 1
        world.leave_result(second)
        await worker.drain()


async def test_nothing_of_a_delivered_task_stays_in_the_store(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(tasks_per_job=2) as worker:
        for number in range(6):
            await worker.submit(make_task(f"t{number}", os.urandom(50_000)))
        for number in (1, 2, 3):
            job = await world.job(number)
            world.leave_result(job, place=0)
            world.leave_evidence(job, place=1)
            job.end(JobState.FAILED, exit_code=1)
        await worker.drain()
    left = sorted(str(path.relative_to(world.store.root)) for path in _files(world.store.root))
    assert left == ["w/birth", "w/epochs/00000001"]


async def test_a_task_in_flight_has_at_most_two_files(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        for number in range(20):
            await worker.submit(make_task(f"t{number}"))
        await world.job(20)
        ids = world.store.root / "w" / "ids"
        await world.until(lambda: len(_files(ids)) == 20, "20 noted ids")
        in_flight = [path for path in _files(world.store.root) if path.parent.name not in {"w", "epochs"}]
        for job in list(world.backend.jobs.values()):
            world.leave_result(job)
        await worker.drain()
    assert len(in_flight) <= 40
