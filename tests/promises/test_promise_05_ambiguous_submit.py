"""Promise 5: an ambiguous submit is looked up by name before anything is sent again; retries are bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchport import JobSpec, JobState, Reason, Task
from batchport.worker import sending


async def test_a_submit_that_worked_without_an_answer_makes_one_job(world: Any, make_task: Callable[..., Task]) -> None:
    def submit_then_break(spec: JobSpec) -> None:
        world.leave_result(world.backend.add(spec))
        raise ConnectionResetError("connection reset after the request was sent")

    world.backend.faults["submit_job"].append(submit_then_break)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).failure is None
        await worker.drain()
    assert list(world.backend.jobs) == ["1"]
    assert len(world.backend.calls["submit_job"]) == 1


async def test_a_submit_that_did_not_work_is_sent_again_after_settling(
    world: Any, make_task: Callable[..., Task]
) -> None:
    def break_before(_: JobSpec) -> None:
        raise TimeoutError("no answer")

    world.backend.faults["submit_job"].append(break_before)
    world.backend.on_submit = world.leave_result
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).failure is None
    (first, spec), (second, again) = world.backend.calls["submit_job"]
    assert spec.name == again.name, "the same job, under the same name"
    assert second - first >= world.backend.limits.settle_s, "a listing may lag that long"
    looks = [when for when, _ in world.backend.calls["find_jobs"]]
    assert len(looks) >= 2, "one look is not enough"
    assert first < looks[0] < looks[1] < second, "looked up twice before it was sent again"


async def test_a_job_that_turns_up_late_is_not_sent_again(world: Any, make_task: Callable[..., Task]) -> None:
    def submit_unlisted(spec: JobSpec) -> None:
        world.backend.add(spec).listed = False
        raise TimeoutError("no answer")

    def list_it(_: object) -> None:
        for job in world.backend.jobs.values():
            job.listed = True

    world.backend.faults["submit_job"].append(submit_unlisted)
    world.backend.faults["find_jobs"].extend([lambda _: None, list_it])
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        await world.until(lambda: len(world.backend.calls["find_jobs"]) >= 2, "the second look")
        world.leave_result(job)
        assert (await world.outcome("t")).failure is None
    assert len(world.backend.calls["submit_job"]) == 1


async def test_of_two_jobs_under_one_name_one_is_cancelled(
    world: Any, make_task: Callable[..., Task], caplog: pytest.LogCaptureFixture
) -> None:
    def submit_twice_then_break(spec: JobSpec) -> None:
        world.backend.add(spec)
        world.backend.add(spec)
        raise TimeoutError("no answer")

    world.backend.faults["submit_job"].append(submit_twice_then_break)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.job(2)
        await world.until(lambda: world.backend.calls["cancel_job"], "a cancel of the second job")
        world.leave_result(world.backend.jobs["1"])
        assert (await world.outcome("t")).failure is None
    assert [argument for _, argument in world.backend.calls["cancel_job"]] == ["2"]
    assert "there are 2 jobs named" in caplog.text


async def test_a_twin_that_turns_up_after_the_second_submit_is_cancelled(
    world: Any, make_task: Callable[..., Task]
) -> None:
    def submit_unlisted(spec: JobSpec) -> None:
        world.backend.add(spec).listed = False
        raise TimeoutError("no answer")

    world.backend.faults["submit_job"].append(submit_unlisted)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.job(2)
        world.backend.jobs["1"].listed = True
        await world.until(lambda: world.backend.jobs["1"].cancels, "a cancel of the late twin")
        world.leave_result(world.backend.jobs["2"])
        assert (await world.outcome("t")).failure is None
    assert world.backend.jobs["2"].cancels == 0


async def test_without_find_jobs_nothing_is_sent_again(nameless_world: Any, make_task: Callable[..., Task]) -> None:
    world = nameless_world

    def break_before(_: JobSpec) -> None:
        raise TimeoutError("no answer")

    world.backend.faults["submit_job"].append(break_before)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.LOST
    assert failure.message.endswith("may or may not have been submitted: its submit had no clear answer.")
    assert failure.evidence == (
        "no answer\nNo result came within 0.4 s, and this adapter has no find_jobs to look the job up."
    )
    assert len(world.backend.calls["submit_job"]) == 1, "it may be running: a second run was risked"


async def test_without_find_jobs_a_result_within_the_grace_counts(
    nameless_world: Any, make_task: Callable[..., Task]
) -> None:
    world = nameless_world

    def submit_then_break(spec: JobSpec) -> None:
        world.leave_result(world.backend.add(spec))
        raise TimeoutError("no answer")

    world.backend.faults["submit_job"].append(submit_then_break)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).failure is None


async def test_an_id_that_is_no_string_is_no_clear_answer(
    world: Any, make_task: Callable[..., Task], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(world.backend), "submit_job", lambda self, job: self.add(job) and None)
    world.backend.on_submit = world.leave_result
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).failure is None
    assert "submit_job returned None, where the job's id (a str) belongs" in caplog.text


async def test_a_submit_that_never_works_is_given_up_with_the_adapters_own_words(
    world: Any, make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(_: JobSpec) -> None:
        raise KeyError("partition")

    monkeypatch.setattr(sending, "_TRIES_TO_SUBMIT", 3)
    world.backend.faults["submit_job"].extend([stumble] * 100)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.CONFIGURATION
    assert failure.message.endswith("could not be submitted: submit_job failed 3 times.")
    assert failure.evidence.endswith("KeyError: 'partition'\n")
    times = [when for when, _ in world.backend.calls["submit_job"]]
    assert len(times) == 3
    assert times[2] - times[1] > times[1] - times[0] - 0.5, "it backs off between them"


async def test_a_refused_job_fails_in_the_backends_words(world: Any, make_task: Callable[..., Task]) -> None:
    from batchport import RejectedJobError

    def refuse(_: JobSpec) -> None:
        raise RejectedJobError("sbatch: error: invalid partition specified: gpuu")

    world.backend.faults["submit_job"].append(refuse)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.CONFIGURATION
    assert failure.evidence == "sbatch: error: invalid partition specified: gpuu"


@pytest.mark.parametrize("reason", [Reason.NODE_LOST, Reason.PREEMPTED])
async def test_retries_are_bounded_and_counted(world: Any, make_task: Callable[..., Task], reason: Reason) -> None:
    world.backend.on_submit = lambda job: job.end(JobState.FAILED, reason)
    async with world.worker(retries=2) as worker:
        await worker.submit(make_task("t"))
        outcome = await world.outcome("t")
    assert outcome.failure is not None
    assert outcome.failure.reason is reason
    assert outcome.attempts == 3
    assert len(world.backend.jobs) == 3
    assert len({job.spec.name for job in world.backend.jobs.values()}) == 3, "each attempt has a name of its own"


async def test_what_a_retry_cannot_help_is_not_retried(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.on_submit = lambda job: job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    async with world.worker(retries=2) as worker:
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).attempts == 1
    assert len(world.backend.jobs) == 1


async def test_lost_work_is_not_run_again_unless_the_user_says_so(world: Any, make_task: Callable[..., Task]) -> None:
    world.backend.on_submit = lambda job: job.end(JobState.FAILED, Reason.NODE_LOST)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await world.outcome("t")
    assert len(world.backend.jobs) == 1
