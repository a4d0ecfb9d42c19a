"""Promise 3: a vanished job is lost only after two polls that omit it, settle_s apart, and a last look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from batchport import JobState, JobStatus, Limits, Reason, Task


async def test_a_vanished_job_is_lost_in_words(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > 1, "a poll that reports it")
        job.listed = False
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.LOST
    assert (
        failure.message == f"Job {job.spec.name} (1) vanished: the backend no longer knows it, and it left no result."
    )
    assert "polls in a row did not mention it; last reported as running." in failure.evidence
    assert "retries=N" in failure.advice


async def test_omissions_count_only_when_they_are_settle_s_apart(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, settle_s=1.0)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        job.listed = False
        await world.outcome("t")
    polls = world.backend.calls["poll_jobs"]
    assert polls[-1][0] - polls[0][0] >= 1.0, "it was given up before the backend had settled"


async def test_one_omission_is_never_enough(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.limits = Limits(name_length=64, inline_bytes=65536, settle_s=0)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        job.listed = False

        def list_it_again(_: object) -> None:
            job.listed = True

        polls = len(world.backend.calls["poll_jobs"])
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls, "a poll that omits it")
        list_it_again(None)
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls + 3, "polls that report it again")
        vanished = [each for each in world.outcomes["t"] if each.failure]
        world.leave_result(job)
        await worker.drain()
    assert not vanished


async def test_failed_polls_are_no_omissions(
    world: Any, make_task: Callable[..., Task], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ConnectionError("the scheduler does not answer")

    world.backend.limits = Limits(name_length=64, inline_bytes=65536, settle_s=0)
    world.backend.faults["poll_jobs"].extend([fail] * 4)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > 4, "four failed polls")
        assert not world.outcomes["t"]
        world.leave_result(job)
        assert (await world.outcome("t")).failure is None
    assert "the scheduler does not answer" in caplog.text


async def test_a_result_that_is_found_in_the_last_look_wins(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(results_s=60) as worker:  # only the last look before the verdict can see it
        await worker.submit(make_task("warm-up"))
        await worker.submit(make_task("t"))
        for number in (1, 2):
            job = await world.job(number)
            world.leave_result(job)
            job.listed = False
        assert (await world.outcome("t")).failure is None


async def test_a_status_under_another_name_is_another_job(world: Any, make_task: Callable[..., Task]) -> None:
    from dataclasses import replace

    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        mine = job.spec.name
        job.spec = replace(job.spec, name="somebody-else")  # the backend gave the id to another job
        job.end(JobState.SUCCEEDED, exit_code=0)
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.message == f"Job {mine} (1) vanished: the backend no longer knows it, and it left no result."


async def test_the_rest_of_a_vanished_pack_is_sent_again_behind_stop_markers(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker(tasks_per_job=3) as worker:
        for number in range(3):
            await worker.submit(make_task(f"t{number}"))
        first = await world.job()
        assert world.tasks_of(first) == ["t0", "t1", "t2"]
        world.leave_result(first, place=0)
        await world.outcome("t0")
        first.listed = False
        second = await world.job(2)
        assert world.tasks_of(second) == ["t2"]
        assert world.store.exists(world.keys.stop(first.spec.name, 2)), "the old pack could still start t2"
        assert (await world.outcome("t1")).failure.reason is Reason.LOST
        world.leave_result(second)
        assert (await world.outcome("t2")).failure is None


async def test_an_element_that_one_answer_leaves_out_is_asked_for_by_its_own_id(
    array_world: Any, make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm does it: its queue forgets the elements that ended first, and its archive must be asked for them."""
    world = array_world
    whole = world.backend.poll_jobs

    def poll_jobs(job_ids: Sequence[str]) -> list[JobStatus]:
        return [status for status in whole(job_ids) if status.job_id in {"1:0", "1:1"} or "1:2" in job_ids]

    monkeypatch.setattr(world.backend, "poll_jobs", poll_jobs)
    async with world.worker() as worker:
        for number in range(3):
            await worker.submit(make_task(f"t{number}"))
        job = await world.job()
        job.listed = False
        for index in range(3):
            world.backend.element(job, index)
        world.backend.elements["1:2"].end(JobState.FAILED, Reason.OUT_OF_MEMORY, "too much", exit_code=137)
        outcome = await world.outcome("t2")
        for place in (0, 1):
            world.leave_result(job, place)
        await worker.drain()
        for index in (0, 1):
            world.backend.elements[f"1:{index}"].end(JobState.SUCCEEDED)
    assert outcome.failure.reason is Reason.OUT_OF_MEMORY
