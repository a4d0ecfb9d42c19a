"""Promise 8: a worker that is started again under its name adopts its jobs; of two, the older one stops in words."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from batchport import BatchWorker, Blob, JobSpec, JobState, Outcome, Reason, StoreError, SupersededError, Task
from batchport.store import FolderStore, OutKey


async def die(worker: BatchWorker) -> None:
    """End a worker as SIGKILL does: nothing more is written, delivered or said to the backend."""
    for task in list(worker._running):
        task.cancel()
    await asyncio.gather(*worker._running, return_exceptions=True)


async def begin(world: Any, **options: Any) -> BatchWorker:
    """Start a worker that is not going to leave as it should."""

    async def deliver(outcome: Outcome) -> None:
        world.outcomes[outcome.task_id].append(outcome)

    quick: dict[str, Any] = {"poll_s": (0.05, 0.1), "results_s": 0.02, "grace_s": 0.4, **options}
    return await BatchWorker(world.backend, world.store, "w", deliver, **quick).__aenter__()


async def left_by_a_killed_worker(world: Any, make_task: Callable[..., Task], *task_ids: str, **options: Any) -> Any:
    """Return the job of these tasks, whose id a worker has noted before it was killed."""
    first = await begin(world, tasks_per_job=len(task_ids), **options)
    for task_id in task_ids:
        await first.submit(make_task(task_id))
    job = await world.job()
    await world.until(lambda: world.store.exists(world.keys.job_id(job.spec.name)), "the noted id")
    await die(first)
    return job


@pytest.fixture(autouse=True)
def dead_workers_are_known_to_be_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each start look like one on another host, for the process of a worker that `die`s lives on here."""
    hosts = iter(f"host{number}" for number in range(100))
    monkeypatch.setattr(socket, "gethostname", lambda: next(hosts))


async def test_a_job_that_was_submitted_is_adopted_and_not_run_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "t")
    async with world.worker() as worker:
        assert worker.has_job("t")
        assert not worker.has_job("another")
        await worker.submit(make_task("t"))
        world.leave_result(job)
        assert (await world.outcome("t")).failure is None
        assert not worker.has_job("t")
        await worker.drain()
    assert list(world.backend.jobs) == ["1"]
    assert not world.backend.calls["find_jobs"], "its id was noted, and nobody need be asked"


async def test_an_adopted_result_is_delivered_although_nobody_has_asked_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "t")
    world.leave_result(job, value=b"late")
    async with world.worker():
        assert (await world.outcome("t")).result == b"late"


async def test_a_job_that_the_backend_has_forgotten_while_no_worker_was_there_is_lost_in_these_words(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "t")
    job.listed = False
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        failure = (await world.outcome("t")).failure
    assert failure.reason is Reason.LOST
    assert failure.evidence.endswith(
        "polls in a row did not mention it; it may have ended while no worker was there, "
        "and the backend have forgotten it since."
    )


async def test_a_delivery_that_was_broken_off_is_made_by_the_next_start(
    world: Any, make_task: Callable[..., Task]
) -> None:
    reached = asyncio.Event()

    async def take_for_ever(_: Outcome) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with BatchWorker(world.backend, world.store, "w", take_for_ever, results_s=0.02) as worker:
        await worker.submit(make_task("t"))
        world.leave_result(await world.job(), value=b"good")
        await reached.wait()
        # left in good order, while the host has not taken the outcome
    async with world.worker():
        assert (await world.outcome("t")).result == b"good"
    assert list(world.backend.jobs) == ["1"]


async def test_a_job_that_died_between_submit_and_the_noted_id_is_found_by_name(
    world: Any, make_task: Callable[..., Task]
) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def submit_and_hang(spec: JobSpec) -> None:
        world.backend.add(spec)
        loop.call_soon_threadsafe(reached.set)
        raise SystemExit  # the answer never comes

    first = await begin(world)
    world.backend.faults["submit_job"].append(submit_and_hang)
    world.backend.faults["find_jobs"].append(lambda _: (_ for _ in ()).throw(TimeoutError()))
    await first.submit(make_task("t"))
    await reached.wait()
    await die(first)
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        noted = world.keys.job_id(world.backend.jobs["1"].spec.name)
        await world.until(lambda: world.store.exists(noted) or "2" in world.backend.jobs, "an id, or a second job")
        assert list(world.backend.jobs) == ["1"]
        world.leave_result(world.backend.jobs["1"])
        assert (await world.outcome("t")).failure is None


async def test_a_job_that_died_between_manifest_and_submit_is_sent_once_its_task_is_offered_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def die_before(_: JobSpec) -> None:
        loop.call_soon_threadsafe(reached.set)
        raise SystemExit

    first = await begin(world)
    world.backend.faults["submit_job"].append(die_before)
    await first.submit(make_task("t"))
    await reached.wait()
    await die(first)
    world.backend.on_submit = world.leave_result
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).failure is None
        await worker.drain()
    assert len(world.backend.jobs) == 1


async def test_a_task_that_nobody_offers_again_is_not_run(world: Any, make_task: Callable[..., Task]) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def die_before(_: JobSpec) -> None:
        loop.call_soon_threadsafe(reached.set)
        raise SystemExit

    first = await begin(world)
    world.backend.faults["submit_job"].append(die_before)
    await first.submit(make_task("t"))
    await reached.wait()
    await die(first)
    async with world.worker() as worker:
        await world.until(lambda: not world.store.names(world.keys.manifests), "its manifest is gone")
        await worker.drain()
    assert not world.backend.jobs
    assert not world.outcomes["t"]


async def test_what_a_dead_pack_had_not_started_waits_for_its_host(world: Any, make_task: Callable[..., Task]) -> None:
    job = await left_by_a_killed_worker(world, make_task, "t0", "t1", "t2")
    world.leave_result(job, place=0)
    job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    async with world.worker(tasks_per_job=3) as worker:
        assert (await world.outcome("t0")).failure is None
        assert (await world.outcome("t1")).failure.reason is Reason.OUT_OF_MEMORY
        await worker.submit(make_task("t2"))
        second = await world.job(2)
        assert world.tasks_of(second) == ["t2"]
        world.leave_result(second)
        assert (await world.outcome("t2")).failure is None


async def test_outcomes_that_are_held_wait_in_the_store_until_their_tasks_are_offered_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    first = await begin(world)
    for number, task_id in enumerate(("good", "bad"), 1):
        await first.submit(make_task(task_id))
        await world.job(number)
    await die(first)
    world.leave_result(world.backend.jobs["1"], value=b"there")
    world.backend.jobs["2"].end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    second = await begin(world, hold_adopted=True)
    await second.drain()  # it has nothing to wait for
    polls = len(world.backend.calls["poll_jobs"]) + 3
    await world.until(lambda: len(world.backend.calls["poll_jobs"]) > polls, "it has looked at what is there")
    assert not world.outcomes["good"]
    assert not world.outcomes["bad"]
    await die(second)
    async with world.worker(hold_adopted=True) as worker:
        await worker.submit(make_task("good"))
        assert (await world.outcome("good")).result == b"there"
        assert not world.outcomes["bad"]
        await worker.submit(make_task("bad"))
        assert (await world.outcome("bad")).failure.reason is Reason.OUT_OF_MEMORY
        await worker.drain()
    assert list(world.backend.jobs) == ["1", "2"]
    assert not world.store.names(world.keys.manifests)


async def test_of_a_dead_pack_only_those_tasks_have_outcomes_that_were_offered_again(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "offered", "held", width=2)
    job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    async with world.worker(tasks_per_job=2, width=2, hold_adopted=True) as worker:
        await worker.submit(make_task("offered"))
        assert (await world.outcome("offered")).failure.reason is Reason.OUT_OF_MEMORY
        assert not world.outcomes["held"]
        await worker.submit(make_task("held"))
        assert (await world.outcome("held")).failure.reason is Reason.OUT_OF_MEMORY


async def test_of_a_dead_pack_the_task_that_ran_is_blamed_though_a_result_before_it_is_held(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "good", "ran")
    world.leave_result(job, 0)
    job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    async with world.worker(tasks_per_job=2, hold_adopted=True) as worker:
        await worker.submit(make_task("ran"))
        assert (await world.outcome("ran")).failure.reason is Reason.OUT_OF_MEMORY
        await worker.submit(make_task("good"))
        assert (await world.outcome("good")).failure is None
    assert list(world.backend.jobs) == ["1"]


async def test_of_a_dead_pack_a_task_that_never_started_is_run_though_it_is_offered_after_the_one_that_ran(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "ran", "never started")
    job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    async with world.worker(tasks_per_job=2, hold_adopted=True) as worker:
        await worker.submit(make_task("ran"))
        assert (await world.outcome("ran")).failure.reason is Reason.OUT_OF_MEMORY
        await worker.submit(make_task("never started"))
        world.leave_result(await world.job(2))
        assert (await world.outcome("never started")).failure is None


async def test_a_task_that_is_offered_while_another_of_its_dead_pack_gets_its_verdict_keeps_its_result(
    world: Any, make_task: Callable[..., Task]
) -> None:
    job = await left_by_a_killed_worker(world, make_task, "good", "ran")
    world.leave_result(job, 0)
    job.end(JobState.FAILED, Reason.OUT_OF_MEMORY)
    loop = asyncio.get_running_loop()
    async with world.worker(tasks_per_job=2, hold_adopted=True, results_s=5) as worker:

        def offer_the_other(_: str) -> None:
            asyncio.run_coroutine_threadsafe(worker.submit(make_task("good")), loop).result()

        world.backend.faults["inspect_job"].append(offer_the_other)
        await worker.submit(make_task("ran"))
        assert (await world.outcome("ran")).failure.reason is Reason.OUT_OF_MEMORY
        assert (await world.outcome("good")).failure is None
    assert list(world.backend.jobs) == ["1"]


async def test_where_nobody_can_be_asked_by_name_a_held_result_is_there_when_its_task_is_offered(
    nameless_world: Any, make_task: Callable[..., Task]
) -> None:
    world = nameless_world
    job = await dead_without_an_id(world, make_task, "t")
    world.leave_result(job)
    async with world.worker(hold_adopted=True) as worker:
        await asyncio.sleep(0.8)  # twice the grace: it has looked by then
        await worker.submit(make_task("t"))
        assert (await world.outcome("t")).failure is None
        await worker.drain()
    assert not world.store.names(world.keys.manifests)


async def test_where_nobody_can_be_asked_by_name_a_task_that_is_offered_waits_for_no_other(
    nameless_world: Any, make_task: Callable[..., Task]
) -> None:
    world = nameless_world
    await dead_without_an_id(world, make_task, "offered", "held")
    async with world.worker(tasks_per_job=2, hold_adopted=True) as worker:
        await worker.submit(make_task("offered"))
        assert (await world.outcome("offered")).failure.reason is Reason.LOST
        await worker.drain()
        assert not world.outcomes["held"]
        await worker.submit(make_task("held"))
        assert (await world.outcome("held")).failure.reason is Reason.LOST
        await worker.drain()
    assert not world.store.names(world.keys.manifests)


async def dead_without_an_id(world: Any, make_task: Callable[..., Task], *task_ids: str) -> Any:
    """Return a job of these tasks whose worker has died before it noted the id."""
    job = await left_by_a_killed_worker(world, make_task, *task_ids)
    world.store.delete([world.keys.job_id(job.spec.name)])
    return job


async def test_a_held_task_that_nobody_wants_is_cancelled(world: Any, make_task: Callable[..., Task]) -> None:
    await left_by_a_killed_worker(world, make_task, "t")
    async with world.worker(hold_adopted=True) as worker:
        assert await worker.cancel("t")
        assert (await world.outcome("t")).failure.reason is Reason.CANCELLED
        await worker.drain()
    assert world.backend.jobs["1"].cancels


async def test_shared_arguments_live_as_long_as_an_adopted_task_needs_them(
    world: Any, make_task: Callable[..., Task]
) -> None:
    blobs = world.store.root / "w" / "blobs"
    first = await begin(world)
    await first.submit(make_task("t", os.urandom(50_000)))
    job = await world.job()
    await die(first)
    world.store.put(world.keys.blob("stray"), b"of a job that is long gone")
    async with world.worker() as worker:
        assert len(list(blobs.iterdir())) == 1, "the task's argument, and no stray one"
        world.leave_result(job)
        await world.outcome("t")
        await worker.drain()
    assert list(blobs.iterdir()) == []


async def test_the_older_of_two_workers_stops_in_words_and_submits_nothing_more(
    world: Any, make_task: Callable[..., Task]
) -> None:
    with pytest.raises(SupersededError) as caught:  # noqa: PT012 - it is raised where the worker's body waits
        async with world.worker() as older:
            await older.submit(make_task("t0"))
            job = await world.job()
            newer = await begin(world)
            await older.submit(make_task("t1"))
            await asyncio.sleep(20)
    assert str(caught.value).startswith("the worker 'w' was started again by process ")
    assert str(caught.value).endswith("Give each of two workers that shall run at once a name of its own")
    assert list(world.backend.jobs) == ["1"], "the older worker has submitted after it was superseded"
    world.leave_result(job)
    assert (await world.outcome("t0")).failure is None
    await newer.submit(make_task("t1"))
    world.leave_result(await world.job(2))
    assert (await world.outcome("t1")).failure is None
    world.end_all()
    await newer.__aexit__(None, None, None)


async def test_the_older_of_two_workers_delivers_nothing_more(world: Any, make_task: Callable[..., Task]) -> None:
    delivered: list[str] = []

    async def deliver(outcome: Outcome) -> None:
        delivered.append(outcome.task_id)

    with pytest.raises(SupersededError):  # noqa: PT012 - it is raised where the worker's body waits
        async with BatchWorker(world.backend, world.store, "w", deliver, results_s=0.02) as older:
            await older.submit(make_task("t"))
            job = await world.job()
            newer = await begin(world)
            world.leave_result(job)
            await asyncio.sleep(20)
    assert (await world.outcome("t")).failure is None
    assert delivered == []
    world.end_all()
    await newer.__aexit__(None, None, None)


async def test_the_older_of_two_workers_stops_in_the_midst_of_many_deliveries(
    world: Any, make_task: Callable[..., Task]
) -> None:
    delivered: list[str] = []
    newer: list[BatchWorker] = []

    async def deliver(outcome: Outcome) -> None:
        delivered.append(outcome.task_id)
        if len(delivered) == 3:
            newer.append(await begin(world))
        await asyncio.sleep(0.03)

    world.backend.on_submit = lambda _: None
    with pytest.raises(SupersededError):  # noqa: PT012 - it is raised where the worker's body waits
        async with BatchWorker(world.backend, world.store, "w", deliver, results_s=0.5) as older:
            for number in range(20):
                await older.submit(make_task(f"t{number}"))
            for number in range(1, 21):
                world.leave_result(await world.job(number))
            await asyncio.sleep(20)
    await world.until(lambda: len({*delivered, *world.outcomes}) == 20, "an outcome of every task")
    assert len(delivered) <= 4, "with at most the one that was under way"
    assert all(outcome.failure is None for outcomes in world.outcomes.values() for outcome in outcomes)
    world.end_all()
    await newer[0].__aexit__(None, None, None)


async def test_of_submits_that_wait_for_their_turn_the_older_worker_makes_one_more_at_most(
    world: Any, make_task: Callable[..., Task]
) -> None:
    taken = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take_time(_: JobSpec) -> None:
        loop.call_soon_threadsafe(taken.set)
        time.sleep(0.2)

    world.backend.faults["submit_job"].extend([take_time] * 8)
    with pytest.raises(SupersededError):  # noqa: PT012 - it is raised where the worker's body waits
        async with world.worker(poll_s=(10, 10)) as older:
            for number in range(8):
                await older.submit(make_task(f"t{number}"))
            await taken.wait()
            newer = await begin(world)
            await asyncio.sleep(20)
    assert len(world.backend.jobs) <= 2
    world.end_all()
    await newer.__aexit__(None, None, None)


async def test_the_older_of_two_workers_does_not_fail_a_task_whose_bytes_the_newer_one_has_removed(
    world: Any, make_task: Callable[..., Task]
) -> None:
    async def gone() -> bytes:
        raise StoreError("what waited was removed from the store")

    delivered: list[str] = []

    async def deliver(outcome: Outcome) -> None:
        delivered.append(outcome.task_id)

    with pytest.raises(SupersededError):  # noqa: PT012 - it is raised where the worker's body waits
        async with BatchWorker(world.backend, world.store, "w", deliver) as older:
            newer = await begin(world)
            await older.submit(Task("t", Blob("function", 8, gone)))
            await older.drain()
            pytest.fail("the older worker goes on")
    assert not delivered
    await die(newer)


async def test_an_idle_worker_that_leaves_removes_nothing_of_the_start_after_it(
    world: Any, make_task: Callable[..., Task]
) -> None:
    older = await begin(world)
    newer = await begin(world, results_s=60)
    await newer.submit(make_task("t"))
    job = await world.job()
    world.leave_result(job)
    (told,) = await asyncio.gather(older.__aexit__(None, None, None), return_exceptions=True)
    assert world.store.names(world.keys.out) != [], "the newer one's result is gone"
    assert isinstance(told, SupersededError)
    job.end(JobState.SUCCEEDED)
    assert (await world.outcome("t")).failure is None
    await newer.__aexit__(None, None, None)


async def test_a_job_that_is_over_keeps_its_result_until_the_host_has_it(
    world: Any, make_task: Callable[..., Task]
) -> None:
    may_take = asyncio.Event()

    async def take_time(outcome: Outcome) -> None:
        await may_take.wait()
        world.outcomes[outcome.task_id].append(outcome)

    quick: dict[str, Any] = {"poll_s": (0.02, 0.02), "results_s": 0.02}
    async with BatchWorker(world.backend, world.store, "w", take_time, **quick) as worker:
        await worker.submit(make_task("t"))
        job = await world.job()
        world.leave_result(job)
        job.listed = False
        await asyncio.sleep(0.3)
        assert world.store.exists(world.keys.manifest(job.spec.name))
        assert world.store.names(world.keys.out) != []
        may_take.set()
        await worker.drain()
    assert world.store.names(world.keys.out) == []


async def test_what_goes_wrong_at_the_end_does_not_hide_what_went_wrong_before(
    world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[bool] = []
    world.backend.close = lambda: closed.append(True)
    put = FolderStore.put

    def fail(self: FolderStore, key: str, data: bytes, *, create: bool = False) -> bool:
        if "/epochs/" in key:
            raise StoreError("the disk is full")
        return put(self, key, data, create=create)

    with pytest.raises(ValueError, match="the body's own"):  # noqa: PT012 - it is raised in the worker's body
        async with world.worker():
            monkeypatch.setattr(FolderStore, "put", fail)
            raise ValueError("the body's own")
    assert "the worker w could not note its end: the disk is full" in caplog.messages
    assert closed == [True]


async def test_a_manifest_that_cannot_be_read_is_left_alone_with_all_that_is_the_jobs(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = "b-abcdefgh-1-1"
    theirs = [world.keys.manifest(job), world.keys.job_id(job), world.keys.array(job), world.keys.stop(job, 0)]
    for key in [*theirs, result := world.keys.left(OutKey(job, 0, "result"))]:
        world.store.put(key, b"rubbish")
    async with world.worker() as worker:
        await worker.drain()
    assert all(world.store.exists(key) for key in [*theirs, result])
    assert "the manifest of job b-abcdefgh-1-1 can't be read, and is left alone" in caplog.text
