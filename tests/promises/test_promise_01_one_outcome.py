"""Promise 1: every task ends in exactly one outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchport import JobState, Outcome, Reason, RejectedJobError, StoreError, Task
from batchport.store import FolderStore


async def test_every_fate_of_a_job_gives_each_task_exactly_one_outcome(
    world: Any, make_task: Callable[..., Task]
) -> None:
    def fate(job: Any) -> None:
        number = int(job.id) % 5
        if number == 0:
            world.leave_result(job)
        elif number == 1:
            job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
        elif number == 2:
            job.listed = False
        elif number == 3:
            job.end(JobState.SUCCEEDED)
        else:
            world.leave_result(job)
            job.end(JobState.FAILED, exit_code=1)

    def refuse(_: object) -> None:
        raise RejectedJobError("no such queue")

    world.backend.on_submit = fate
    world.backend.faults["submit_job"].extend([refuse, refuse])
    async with world.worker() as worker:
        for number in range(50):
            await worker.submit(make_task(f"t{number}"))
        await world.until(lambda: len(world.outcomes) == 50, f"50 outcomes, not {len(world.outcomes)}")
        await worker.drain()
    assert {len(each) for each in world.outcomes.values()} == {1}
    failures = [each[0].failure.reason for each in world.outcomes.values() if each[0].failure]
    assert sorted(reason.name for reason in set(failures)) == ["CONFIGURATION", "LOST", "OUT_OF_MEMORY"]
    assert failures.count(Reason.CONFIGURATION) == 2


async def test_an_outcome_that_the_host_does_not_take_is_offered_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    from batchport import BatchWorker  # the world's own worker takes everything

    offered: list[Outcome] = []

    async def deliver(outcome: Outcome) -> None:
        offered.append(outcome)
        if len(offered) == 1:
            raise ConnectionError("the host is away")

    def succeed(job: Any) -> None:
        world.leave_result(job)
        job.end(JobState.SUCCEEDED)

    world.backend.on_submit = succeed
    async with BatchWorker(world.backend, world.store, "w", deliver, results_s=0.02) as worker:
        await worker.submit(make_task("t"))
        await worker.drain()
    assert [outcome.task_id for outcome in offered] == ["t", "t"]
    assert offered[0] == offered[1]


async def test_a_cancelled_task_that_waits_has_one_outcome_and_no_job(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker(max_jobs=1) as worker:
        await worker.submit(make_task("runs"))
        job = await world.job()
        await worker.submit(make_task("waits"))
        assert await worker.cancel("waits") is True
        assert await worker.cancel("waits") is False
        failure = (await world.outcome("waits")).failure
        assert failure is not None
        assert failure.message == "Task waits was cancelled."
        world.leave_result(job)
        await worker.drain()
    assert list(world.backend.jobs) == ["1"]


async def test_a_task_that_is_offered_twice_runs_once(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await worker.submit(make_task("t"))
        assert (worker.counts.waiting, worker.counts.sent) == (0, 1)
        world.leave_result(job)
        await worker.drain()
    assert list(world.backend.jobs) == ["1"]
    assert len(world.outcomes["t"]) == 1


async def test_a_task_that_is_cancelled_while_the_store_takes_no_job_ends(
    world: Any, make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = FolderStore.put

    def fail(self: FolderStore, key: str, data: bytes, *, create: bool = False) -> bool:
        if key.startswith(world.keys.manifests):
            raise StoreError("the disk is full")
        return put(self, key, data, create=create)

    monkeypatch.setattr(FolderStore, "put", fail)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.until(lambda: "the disk is full" in caplog.text, "the user to be told")
        assert await worker.cancel("t")
        assert (await world.outcome("t")).failure.reason is Reason.CANCELLED
        await worker.drain()
    assert not world.backend.jobs
