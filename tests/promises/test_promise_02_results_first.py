"""Promise 2: a result in the store beats the backend's word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from batchport import JobState, Reason, StoreError, Task
from batchport.store import FolderStore


async def test_a_result_counts_although_the_backend_says_failed(world: Any, make_task: Callable[..., Task]) -> None:
    def fail_with_result(job: Any) -> None:
        world.leave_result(job, value=b"good")
        job.end(JobState.FAILED, Reason.OUT_OF_MEMORY, exit_code=137)

    world.backend.on_submit = fail_with_result
    # Looks into the store by itself only once a minute: it must look before it believes the backend.
    async with world.worker(results_s=60) as worker:
        await worker.submit(make_task("warm-up"))
        await worker.submit(make_task("t"))
        outcome = await world.outcome("t")
    assert (outcome.result, outcome.failure) == (b"good", None)


async def test_success_without_a_result_waits_out_the_grace(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(grace_s=30) as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        job.end(JobState.SUCCEEDED, exit_code=0)
        polls = len(world.backend.calls["poll_jobs"])
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls + 3, "three polls that say succeeded")
        assert not world.outcomes["t"]
        world.leave_result(job, value=b"late")
        assert (await world.outcome("t")).result == b"late"


async def test_success_without_a_result_is_lost_once_the_grace_is_over(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker(grace_s=0.4) as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        job.end(JobState.SUCCEEDED, exit_code=0)
        ended = time.monotonic()
        failure = (await world.outcome("t")).failure
        assert time.monotonic() - ended >= 0.4
    assert failure is not None
    assert failure.reason is Reason.LOST
    assert failure.message == f"Job {job.spec.name} (1) succeeded by the backend's word, but left no result."
    assert failure.evidence == "No result came within 0.4 s.\nthe backend says: succeeded, exit code 0"
    assert failure.advice == f"Check that {world.store.url} is the same store for jobs as for this process."


async def test_evidence_of_a_dead_attempt_does_not_beat_the_result_of_the_next(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        world.leave_evidence(job)  # the first attempt died, and the backend started the job once more
        polls = len(world.backend.calls["poll_jobs"])
        await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls + 3, "three more polls")
        assert not world.outcomes["t"]
        world.leave_result(job)
        job.end(JobState.SUCCEEDED)
        assert (await world.outcome("t")).failure is None


async def test_evidence_is_told_once_the_job_is_over(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        world.leave_evidence(job)
        job.end(JobState.FAILED, exit_code=1)
        outcome = await world.outcome("t")
    assert outcome.failure is not None
    assert outcome.failure.reason is Reason.RUNNER_CRASH
    assert outcome.failure.evidence == "killed by SIGKILL\nthe backend says: failed, exit code 1"
    assert outcome.output == "last words"


async def test_where_the_runner_saw_only_a_signal_the_backend_says_why(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        world.leave_evidence(job, reason=None)
        job.end(JobState.FAILED, Reason.OUT_OF_MEMORY, exit_code=137)
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.OUT_OF_MEMORY


async def test_a_damaged_result_is_told_as_such(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        world.store.put(f"{world.keys.out}/{job.spec.name}.0.result", b"rubbish")
        failure = (await world.outcome("t")).failure
    assert failure is not None
    assert failure.reason is Reason.PAYLOAD
    assert failure.message == "The result of task t can't be read."
    assert failure.evidence == "these 7 bytes are not an envelope of batchport's"


async def test_a_store_that_is_down_is_asked_and_told_of_ever_more_seldom(
    world: Any, make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names, down = FolderStore.names, True

    def fail(self: FolderStore, folder: str) -> list[str]:
        if down and folder == world.keys.out:
            raise StoreError("nobody answers")
        return names(self, folder)

    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        monkeypatch.setattr(FolderStore, "names", fail)
        world.leave_result(job)
        await asyncio.sleep(2)
        told = [line for line in caplog.messages if "can't look for results, will look again in" in line]
        assert 1 < len(told) < 8, "one each tenth of a second would be twenty"
        assert told[0].endswith(": nobody answers")
        down = False
        assert (await world.outcome("t")).result == b"42"
