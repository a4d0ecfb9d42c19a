"""Promise 4: a failed poll is not a failed job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchport import JobState, Limits, Reason, Task, TransientBackendError


async def test_jobs_are_kept_and_the_user_is_told_while_polls_fail(
    world: Any, make_task: Callable[..., Task], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise TransientBackendError("squeue: Unable to contact slurm controller")

    world.backend.faults["poll_jobs"].extend([fail] * 3)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) >= 3, "three failed polls")
        job.end(JobState.FAILED, Reason.NODE_LOST)
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.NODE_LOST, "the job failed by its own ending, not by the polls"
    assert "a poll failed, no job is given up for it" in caplog.text
    assert "squeue: Unable to contact slurm controller" in caplog.text


async def test_failed_polls_back_off(world: Any, make_task: Callable[..., Task]) -> None:
    def fail(_: object) -> None:
        raise TransientBackendError("busy")

    world.backend.faults["poll_jobs"].extend([fail] * 5)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) >= 6, "five failed polls and a good one")
        world.leave_result(job)
        await worker.drain()
    times = [when for when, _ in world.backend.calls["poll_jobs"]]
    assert times[5] - times[4] > 3 * (times[1] - times[0]), "the worker kept asking as fast as before"


async def test_one_bad_batch_does_not_hide_the_others(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, settle_s=0.2, poll_batch=1)

    def fail_for_first(job_ids: list[str]) -> None:
        if job_ids == ["1"]:
            raise TransientBackendError("only this one")

    world.backend.faults["poll_jobs"].extend([fail_for_first] * 1000)
    async with world.worker() as worker:
        await worker.submit(make_task("t1"))
        first = await world.job(1)
        await worker.submit(make_task("t2"))
        second = await world.job(2)
        second.end(JobState.FAILED, Reason.PREEMPTED)
        done = "t2" if world.tasks_of(second) == ["t2"] else "t1"
        assert (await world.outcome(done)).failure.reason is Reason.PREEMPTED
        world.leave_result(first)
        await worker.drain()
