"""Promise 12: results are seen by listing; calls to the backend do not grow with the number of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from batchport import JobState, Limits, Reason, Task


async def test_results_are_seen_without_a_poll(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(poll_s=(3600, 3600)) as worker:
        for number in range(20):
            await worker.submit(make_task(f"t{number}"))
        await world.job(20)
        for job in list(world.backend.jobs.values()):
            world.leave_result(job)
        await worker.drain()
        assert worker.counts.backend_calls["poll_jobs"] == 0


async def test_a_round_of_polls_takes_as_few_calls_as_the_limit_allows(
    world: Any, make_task: Callable[..., Task]
) -> None:
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, poll_batch=7)
    async with world.worker(poll_s=(0.5, 0.5)) as worker:
        for number in range(30):
            await worker.submit(make_task(f"t{number}"))
        await world.job(30)
        before = len(world.backend.calls["poll_jobs"])
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) >= before + 15, "three rounds of polls")
        for job in list(world.backend.jobs.values()):
            world.leave_result(job)
        await worker.drain()
    sizes = [len(ids) for _, ids in world.backend.calls["poll_jobs"]]
    assert max(sizes) <= 7, "more ids than the backend takes"
    rounds = [sizes[start : start + math.ceil(30 / 7)] for start in range(before, before + 15, 5)]
    assert [7, 7, 7, 7, 2] in rounds


@pytest.mark.parametrize("tasks", [20, 2000])
async def test_submits_do_not_grow_with_the_tasks_of_a_pack(
    world: Any, make_task: Callable[..., Task], tasks: int
) -> None:
    def leave_all(job: Any) -> None:
        for place in range(len(world.tasks_of(job))):
            world.leave_result(job, place)

    world.backend.on_submit = leave_all
    async with world.worker(tasks_per_job=tasks // 4) as worker:
        for number in range(tasks):
            await worker.submit(make_task(f"t{number}"))
        await worker.drain()
        counts = worker.counts
    assert counts.done == tasks
    assert counts.backend_calls["submit_job"] == 4
    assert counts.backend_calls["poll_jobs"] <= 10


async def test_one_listing_sees_the_results_of_all_jobs(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        for number in range(50):
            await worker.submit(make_task(f"t{number}"))
        await world.job(50)
        before = worker.counts.store_calls["list"]
        for job in list(world.backend.jobs.values()):
            world.leave_result(job)
        await worker.drain()
        assert worker.counts.store_calls["list"] - before <= 10


async def test_polls_slow_down_while_there_is_no_news(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(poll_s=(0.05, 5)) as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) >= 6, "six polls")
        world.leave_result(job)
        await worker.drain()
    times = [when for when, _ in world.backend.calls["poll_jobs"]]
    assert times[5] - times[4] > 2 * (times[2] - times[1])


@pytest.mark.parametrize(("reason", "calls"), [(Reason.RUNNER_CRASH, 0), (None, 1)])
async def test_a_failed_job_is_inspected_only_where_its_runner_could_not_tell_the_reason(
    world: Any, make_task: Callable[..., Task], reason: Reason | None, calls: int
) -> None:
    def fail(job: Any) -> None:
        world.leave_evidence(job, reason=reason)
        job.end(JobState.FAILED, exit_code=1)

    world.backend.on_submit = fail
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.outcome("t")
        assert worker.counts.backend_calls["inspect_job"] == calls


async def test_submits_keep_below_the_backends_rate(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, submits_per_second=20)
    world.backend.on_submit = world.leave_result
    async with world.worker() as worker:
        for number in range(11):
            await worker.submit(make_task(f"t{number}"))
        await worker.drain()
    times = [when for when, _ in world.backend.calls["submit_job"]]
    assert times[-1] - times[0] >= 10 / 20 * 0.9
