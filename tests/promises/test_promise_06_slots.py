"""Promise 6: a slot is never leaked, and never waits for a slow poll once the results are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batchport import JobState, Limits, Reason, Task
from batchport.worker import tracking


async def test_never_more_jobs_than_max_jobs_are_at_the_backend(world: Any, make_task: Callable[..., Task]) -> None:
    def living() -> int:
        done = {job.spec.name for job in world.backend.jobs.values() if job.state.is_final}
        return len(world.backend.jobs) - len(done)

    seen: list[int] = []
    world.backend.on_submit = lambda _: seen.append(living())
    async with world.worker(max_jobs=3) as worker:
        for number in range(9):
            await worker.submit(make_task(f"t{number}"))
        await world.job(3)  # or a slow machine would never have as many at once
        for number in range(1, 10):
            job = await world.job(number)
            job.end(JobState.SUCCEEDED)
            world.leave_result(job)
        await worker.drain()
    assert max(seen) == 3


async def test_results_free_their_slots_while_a_poll_hangs(world: Any, make_task: Callable[..., Task]) -> None:
    hanging = threading.Event()
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, parallel_calls=2)
    world.backend.faults["poll_jobs"].append(lambda _: hanging.wait(20))
    async with world.worker(max_jobs=1) as worker:
        await worker.submit(make_task("first"))
        await worker.submit(make_task("second"))
        job = await world.job(1)
        await world.until(lambda: world.backend.calls["poll_jobs"], "a poll that hangs")
        world.leave_result(job)
        second = await world.job(2)
        world.leave_result(second)
        await worker.drain()
        assert not hanging.is_set()
        hanging.set()


async def test_a_job_that_is_over_frees_its_slot_before_the_grace_is(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker(max_jobs=1, grace_s=60) as worker:
        await worker.submit(make_task("first"))
        await worker.submit(make_task("second"))
        first = await world.job(1)
        first.end(JobState.SUCCEEDED)
        second = await world.job(2)
        assert not world.outcomes["first"], "its grace is not over"
        for job in (first, second):
            world.leave_result(job)
        await worker.drain()


async def test_a_cancel_that_is_confirmed_frees_the_slot(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(max_jobs=1) as worker:
        await worker.submit(make_task("first"))
        await worker.submit(make_task("second"))
        await world.job(1)
        assert await worker.cancel("first") is True
        failure = (await world.outcome("first")).failure
        assert failure.reason is Reason.CANCELLED
        world.leave_result(await world.job(2))
        await worker.drain()


async def test_not_reported_after_an_accepted_cancel_is_cancelled(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, settle_s=3600)

    def vanish(job: Any) -> None:
        job.listed = False

    world.backend.on_cancel = vanish
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.job()
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > 1, "a poll that reports it")
        await worker.cancel("t")
        failure = (await world.outcome("t")).failure
    assert failure.reason is Reason.CANCELLED


async def test_a_cancel_that_fails_is_sent_again(world: Any, make_task: Callable[..., Task]) -> None:
    def fail(_: object) -> None:
        raise ConnectionError("busy")

    world.backend.faults["cancel_job"].append(fail)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.job()
        await worker.cancel("t")
        assert (await world.outcome("t")).failure.reason is Reason.CANCELLED
    assert len(world.backend.calls["cancel_job"]) == 2


async def test_a_job_that_outlives_its_last_outcome_is_cancelled(
    world: Any, make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_LINGER_S", 0.2)  # a minute, in a hurry
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        world.leave_result(job)  # and goes on running: a side-car, a hung exit
        await worker.drain()
        await world.until(lambda: job.cancels, "a cancel of the job that lives on")


async def test_leaving_ends_jobs_that_outlive_their_last_outcome(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        job.lingers = True
        world.leave_result(job)
        await worker.drain()
    assert job.cancels == 1


async def test_a_job_that_can_never_start_is_cancelled_after_its_deadline(
    world: Any, make_task: Callable[..., Task], caplog: pytest.LogCaptureFixture
) -> None:
    world.backend.on_submit = lambda job: job.end(JobState.QUEUED, Reason.IMAGE, "ImagePullBackOff: no such tag")
    async with world.worker(start_deadline_s=0.3) as worker:
        await worker.submit(make_task("t"))
        failure = (await world.outcome("t")).failure
        await world.until(lambda: world.backend.jobs["1"].cancels, "a cancel of the blocked job")
    assert failure.reason is Reason.IMAGE
    assert failure.evidence == "the backend says: queued, image\nImagePullBackOff: no such tag"
    assert "can't start: image; ImagePullBackOff: no such tag" in caplog.text


async def test_a_job_that_can_never_start_is_looked_at_before_it_is_cancelled(
    world: Any, make_task: Callable[..., Task]
) -> None:
    cancels: list[int] = []

    def look(_: object) -> None:
        time.sleep(0.2)  # time enough for a cancel that does not wait
        cancels.append(len(world.backend.calls["cancel_job"]))

    world.backend.limits = Limits(name_length=64, inline_bytes=65536, parallel_calls=2)
    world.backend.on_submit = lambda job: job.end(JobState.QUEUED, Reason.IMAGE)
    world.backend.faults["inspect_job"].append(look)
    async with world.worker(start_deadline_s=0.3) as worker:
        await worker.submit(make_task("t"))
        await world.outcome("t")
        await world.until(lambda: world.backend.jobs["1"].cancels, "a cancel of the blocked job")
    assert cancels == [0], "what is told of it would be its own cancel"


async def test_a_cancel_before_the_id_is_known_is_not_forgotten(world: Any, make_task: Callable[..., Task]) -> None:
    going, gone = threading.Event(), threading.Event()

    def slowly(_: object) -> None:
        going.set()
        gone.wait(20)

    world.backend.faults["submit_job"].append(slowly)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.until(going.is_set, "a submit under way")
        assert await worker.cancel("t") is True
        gone.set()
        assert (await world.outcome("t")).failure.reason is Reason.CANCELLED
    assert world.backend.jobs["1"].cancels == 1


async def test_cancelling_one_task_of_a_pack_leaves_the_others_alone(
    world: Any, make_task: Callable[..., Task]
) -> None:
    from batchport.envelope import Envelope
    from batchport.store import OutKey

    async with world.worker(tasks_per_job=2) as worker:
        await worker.submit(make_task("t0"))
        await worker.submit(make_task("t1"))
        job = await world.job()
        await worker.cancel("t0")
        name = job.spec.name
        assert world.store.exists(world.keys.stop(name, 0)), "no stop marker for the runner to see"
        world.store.put(world.keys.left(OutKey(name, 0, "stopped")), Envelope("stopped", name).to_bytes())
        assert (await world.outcome("t0")).failure.reason is Reason.CANCELLED
        world.leave_result(job, place=1)
        assert (await world.outcome("t1")).failure is None
        job.end(JobState.SUCCEEDED)
    assert job.cancels == 0


async def test_one_job_that_cannot_be_cancelled_keeps_no_other_from_it(
    world: Any, make_task: Callable[..., Task], caplog: pytest.LogCaptureFixture
) -> None:
    cancel_job = world.backend.cancel_job

    def refuse_the_first(job_id: str) -> None:
        if job_id == "1":
            raise PermissionError("job 1 is root's")
        cancel_job(job_id)

    world.backend.cancel_job = refuse_the_first
    async with world.worker() as worker:
        for number in range(3):
            await worker.submit(make_task(f"t{number}"))
        first = await world.job(3)
        for number in range(3):
            assert await worker.cancel(f"t{number}")
        await world.until(lambda: all(world.backend.jobs[each].cancels for each in ("2", "3")), "the other cancels")
        world.leave_result(world.backend.jobs["1"])
        await worker.drain()
    assert first.cancels
    assert "a cancel failed" in caplog.text
    assert "job 1 is root's" in caplog.text


async def test_a_job_whose_id_may_be_anothers_by_now_is_not_cancelled_until_it_is_listed_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    world.backend.limits = replace(world.backend.limits, settle_s=60)
    async with world.worker(poll_s=(0.05, 0.05)) as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        job.listed = False
        polls = len(world.backend.calls["poll_jobs"])
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls + 1, "polls that leave it out")
        assert await worker.cancel("t")
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls + 4, "more of them")
        assert not job.cancels
        job.listed = True
        assert (await world.outcome("t")).failure.reason is Reason.CANCELLED
    assert job.cancels


async def test_a_task_that_waits_can_be_withdrawn_and_leaves_nothing(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker(max_jobs=1) as worker:
        await worker.submit(make_task("runs"))
        job = await world.job()
        await worker.submit(make_task("waits", bytes(50_000)))

        assert worker.withdraw("waits")
        assert not worker.withdraw("runs"), "it is in a job"
        assert not worker.withdraw("unknown")

        world.leave_result(job)
        await worker.drain()
        await worker.submit(make_task("waits", bytes(50_000)))
        world.leave_result(await world.job(2))
        assert (await world.outcome("waits")).failure is None
    assert len(world.backend.jobs) == 2
    assert list((world.store.root / "w" / "blobs").iterdir()) == []
