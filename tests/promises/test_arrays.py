"""Native arrays: the promises hold for each element."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from batchport import BackendFullError, JobState, Limits, Reason, Task
from batchport.envelope import Envelope


async def _submit(worker: Any, make_task: Callable[..., Task], number: int) -> None:
    for each in range(number):
        await worker.submit(make_task(f"t{each}"))


async def test_waiting_tasks_become_one_array(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker() as worker:
        await _submit(worker, make_task, 7)
        job = await world.job()
        assert job.spec.size == 7
        assert job.spec.env["BATCHPORT_INDEX"] == "INDEX:1"
        assert "BATCHPORT_PAYLOAD" not in job.spec.env, "one environment is for all elements"
        for place in range(7):
            world.leave_result(job, place)
        await worker.drain()
    assert list(world.backend.jobs) == ["1"]


async def test_each_element_finds_its_payload_by_its_index(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker(tasks_per_job=2) as worker:
        await _submit(worker, make_task, 5)
        job = await world.job()
        assert job.spec.size == 3
        key = world.keys.array(job.spec.name)
        found = []
        for index in range(3):
            start, length = struct.unpack(">QQ", world.store.get_range(key, 16 * index, 16))
            payload = Envelope.from_bytes(world.store.get_range(key, start, length), ("payload",))
            found.append((payload.fields["first"], [task["id"] for task in payload.fields["tasks"]]))
        assert found == [(0, ["t0", "t1"]), (2, ["t2", "t3"]), (4, ["t4"])]
        for place in range(5):
            world.leave_result(job, place)
        await worker.drain()


async def test_arrays_are_no_larger_than_the_backend_takes(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker() as worker:
        await _submit(worker, make_task, 25)
        sizes = [(await world.job(number)).spec.size for number in (1, 2, 3)]
        for job in list(world.backend.jobs.values()):
            for place in range(job.spec.size):
                world.leave_result(job, place)
        await worker.drain()
    assert sorted(sizes) == [5, 10, 10], "three are submitted at once, and may arrive in any order"


async def test_max_jobs_counts_elements(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker(max_jobs=4) as worker:
        await _submit(worker, make_task, 6)
        job = await world.job()
        assert job.spec.size == 4
        world.leave_result(job, 0)
        world.leave_result(job, 1)
        second = await world.job(2)
        assert second.spec.size <= 2
        world.backend.on_submit = world.leave_result
        for each in list(world.backend.jobs.values()):
            for place in range(each.spec.size):
                world.leave_result(each, place)
        await worker.drain()


async def test_an_element_that_dies_leaves_the_others_alone(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        job = await world.job()
        world.backend.element(job, 1).end(JobState.FAILED, Reason.OUT_OF_MEMORY)
        failure = (await world.outcome("t1")).failure
        assert failure.reason is Reason.OUT_OF_MEMORY
        assert failure.message.startswith(f"Job {job.spec.name}[1] (1:1) was ended because it used more memory")
        assert not world.outcomes["t0"]
        world.leave_result(job, 0)
        world.leave_result(job, 2)
        await worker.drain()


async def test_the_parent_stands_for_the_elements_that_are_not_reported(
    array_world: Any, make_task: Callable[..., Task]
) -> None:
    world = array_world
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        job = await world.job()
        world.leave_result(job, 0)
        job.end(JobState.FAILED, Reason.NODE_LOST)
        assert (await world.outcome("t0")).failure is None
        for task_id in ("t1", "t2"):
            assert (await world.outcome(task_id)).failure.reason is Reason.NODE_LOST
        await worker.drain()


async def test_one_element_is_cancelled_alone(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        job = await world.job()
        world.backend.element(job, 1)
        await worker.cancel("t1")
        assert (await world.outcome("t1")).failure.reason is Reason.CANCELLED
        assert [each for _, each in world.backend.calls["cancel_job"]] == ["1:1"]
        world.leave_result(job, 0)
        world.leave_result(job, 2)
        await worker.drain()


async def test_where_elements_cannot_be_cancelled_alone_the_runner_is_told(
    array_world: Any, make_task: Callable[..., Task]
) -> None:
    world = array_world
    world.backend.limits = Limits(
        name_length=64, inline_bytes=0, array_size=10, array_index="INDEX", element_cancel=False
    )
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        job = await world.job()
        await worker.cancel("t1")
        assert world.store.exists(world.keys.stop(job.spec.name, 1))
        assert not world.backend.calls["cancel_job"]
        for place in range(3):
            world.leave_result(job, place)
        await worker.drain()


async def test_an_array_that_nobody_wants_is_cancelled_in_one_call(
    array_world: Any, make_task: Callable[..., Task]
) -> None:
    world = array_world
    world.backend.limits = Limits(
        name_length=64, inline_bytes=0, array_size=10, array_index="INDEX", element_cancel=False
    )
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        await world.job()
        for each in range(3):
            await worker.cancel(f"t{each}")
        for each in range(3):
            assert (await world.outcome(f"t{each}")).failure.reason is Reason.CANCELLED
    assert [each for _, each in world.backend.calls["cancel_job"]] == ["1"]


async def test_a_thousand_elements_are_polled_by_their_arrays_alone(
    array_world: Any, make_task: Callable[..., Task]
) -> None:
    world = array_world
    world.backend.limits = Limits(
        name_length=64, inline_bytes=0, array_size=1000, array_index="INDEX", poll_batch=1, settle_s=60
    )
    async with world.worker(max_jobs=2000) as worker:
        await _submit(worker, make_task, 1000)
        job = await world.job()
        await world.until(lambda: world.backend.calls["poll_jobs"], "a poll")
        for each in list(world.backend.jobs.values()):
            for place in range(each.spec.size):
                world.leave_result(each, place)
        await worker.drain()
    assert job.spec.size > 100
    assert {len(ids) for _, ids in world.backend.calls["poll_jobs"]} == {1}
    assert len(world.backend.jobs) <= 10


async def test_a_full_backend_is_offered_less_at_a_time(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    tried: list[int] = []

    def full_above_three(spec: Any) -> None:
        tried.append(spec.size)
        if spec.size > 3:
            raise BackendFullError("at most three")

    world.backend.faults["submit_job"].extend([full_above_three] * 100)

    def finish(job: Any) -> None:
        for place in range(job.spec.size):
            world.leave_result(job, place)

    world.backend.on_submit = finish
    async with world.worker() as worker:
        await _submit(worker, make_task, 10)
        await worker.drain()
    assert tried[:3] == [10, 5, 2]
    assert 3 in tried[3:], "more is tried again once less was taken"
    assert max(tried[3:]) <= 4, "and little more"
    assert len(world.outcomes) == 10


async def test_a_cancelled_task_of_an_array_that_is_taken_apart_is_never_run(
    array_world: Any, make_task: Callable[..., Task]
) -> None:
    world = array_world
    loop = asyncio.get_running_loop()
    offered, cancelled = asyncio.Event(), threading.Event()

    def full(_: Any) -> None:
        loop.call_soon_threadsafe(offered.set)
        cancelled.wait(10)
        raise BackendFullError("three are too many")

    ran: list[str] = []

    def finish(job: Any) -> None:
        ran.extend(world.tasks_of(job))
        for place in range(job.spec.size):
            world.leave_result(job, place)

    world.backend.faults["submit_job"].append(full)
    world.backend.on_submit = finish
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        await offered.wait()
        assert await worker.cancel("t1")
        cancelled.set()
        failure = (await world.outcome("t1")).failure
        await worker.drain()
    assert failure.reason is Reason.CANCELLED
    assert sorted(ran) == ["t0", "t2"]


async def test_a_full_backend_is_tried_again_though_none_of_the_tasks_there_ends(
    world: Any, make_task: Callable[..., Task]
) -> None:
    """Jobs whose results are here may be there for a while longer, and others' jobs end too."""
    refused: list[str] = []

    def full(spec: Any) -> None:
        refused.append(spec.name)
        raise BackendFullError("another's job is there")

    async with world.worker() as worker:
        await worker.submit(make_task("long"))
        long = await world.job()
        world.backend.faults["submit_job"].append(full)
        world.backend.on_submit = world.leave_result
        await worker.submit(make_task("short"))
        assert (await world.outcome("short")).failure is None
        assert (len(refused), "long" in world.outcomes) == (1, False)
        world.leave_result(long)
        await worker.drain()


async def test_an_array_is_adopted_by_the_next_start(array_world: Any, make_task: Callable[..., Task]) -> None:
    world = array_world
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        job = await world.job()
        world.leave_result(job, 0)
        await world.outcome("t0")
        await world.until(lambda: world.store.exists(world.keys.job_id(job.spec.name)), "the noted id")
        job.lingers = True
        # left without a drain: its jobs live on
    world.outcomes.clear()
    async with world.worker() as worker:
        await _submit(worker, make_task, 3)
        world.leave_result(job, 1)
        world.leave_result(job, 2)
        for each in range(3):
            assert (await world.outcome(f"t{each}")).failure is None
        await worker.drain()
        job.lingers = False
    assert list(world.backend.jobs) == ["1"]


@pytest.mark.parametrize(("width", "cpus", "seconds"), [(1, 2, 460), (2, 4, 260), (4, 8, 160)])
async def test_an_element_asks_for_what_its_tasks_need_together(
    world: Any, make_task: Callable[..., Task], width: int, cpus: int, seconds: int
) -> None:
    from batchport import Resources

    need = Resources(cpus=2, memory_mib=100, gpus=1, time_limit_s=100)
    async with world.worker(tasks_per_job=4, width=width) as worker:
        for each in range(4):
            await worker.submit(make_task(f"t{each}", resources=need))
        job = await world.job()
        asked = job.spec.resources
        assert (asked.cpus, asked.memory_mib, asked.gpus, asked.time_limit_s) == (cpus, 100 * width, width, seconds)
        for place in range(4):
            world.leave_result(job, place)
        await worker.drain()
