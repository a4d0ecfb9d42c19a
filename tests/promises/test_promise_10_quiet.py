"""Promise 10: the event loop is never blocked, idling costs nothing, nothing of the user's is logged."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from batchport import BatchWorker, Blob, Outcome, Task
from batchport.backends.local import LocalAdapter, Options


async def test_a_blocking_adapter_does_not_block_the_event_loop(world: Any, make_task: Callable[..., Task]) -> None:
    turns = 0

    async def spin() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turns_during: list[int] = []

    def block(_: object) -> None:
        before = turns
        time.sleep(0.3)
        turns_during.append(turns - before)

    for method in ("submit_job", "poll_jobs", "cancel_job"):
        world.backend.faults[method].append(block)
    async with world.worker() as worker:
        spinning = asyncio.create_task(spin())
        await worker.submit(make_task("t"))
        await world.until(lambda: world.backend.calls["poll_jobs"], "a poll")
        await worker.cancel("t")
        await world.outcome("t")
        spinning.cancel()
    assert len(turns_during) == 3
    assert min(turns_during) > 10, "the loop stood still while the adapter slept"


async def test_an_idle_worker_makes_no_call_and_uses_no_cpu_to_speak_of(
    world: Any, make_task: Callable[..., Task]
) -> None:
    world.backend.on_submit = world.leave_result
    async with world.worker() as worker:
        await worker.submit(make_task("t"))
        await worker.drain()
        await asyncio.sleep(0.2)
        calls, stored, cpu = worker.counts.backend_calls, worker.counts.store_calls, time.process_time()
        await asyncio.sleep(1.5)
        assert worker.counts.backend_calls == calls
        assert worker.counts.store_calls == stored
        assert time.process_time() - cpu < 0.15


async def test_arguments_and_results_are_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def shout(secret: str) -> str:
        return secret.upper()

    outcomes: list[Outcome] = []

    async def deliver(outcome: Outcome) -> None:
        outcomes.append(outcome)

    secret = Blob.of(cloudpickle.dumps("hunter2-hunter2"))
    adapter = LocalAdapter(Options(folder=str(tmp_path / "local")))
    async with BatchWorker(adapter, str(tmp_path / "store"), "w", deliver, results_s=0.05) as worker:
        await worker.submit(Task("t", Blob.of(cloudpickle.dumps(shout)), (secret,)))
        await worker.drain()
        logs = [path.read_text() for path in (tmp_path / "local").rglob("log")]
    assert outcomes[0].failure is None
    assert logs, "the job has no log"
    for text in (caplog.text, *logs):
        assert "hunter2" not in text.lower()


async def test_the_store_is_for_its_owner_alone(world: Any, make_task: Callable[..., Task]) -> None:
    before = os.umask(0o022)
    try:
        async with world.worker() as worker:
            await worker.submit(make_task("t"))
            world.leave_result(await world.job())
            paths = [world.store.root, *world.store.root.rglob("*")]
            modes = {path.stat().st_mode & 0o777 for path in paths}
            await worker.drain()
    finally:
        os.umask(before)
    assert world.store.root.stat().st_mode & 0o777 == 0o700
    assert modes <= {0o700, 0o600}


async def test_user_code_is_not_unpickled_in_the_worker(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return eval, (f"__import__('os').mkdir('{tmp_path}/unpickled-in-' + str(__import__('os').getpid()))",)

    outcomes: list[Outcome] = []

    async def deliver(outcome: Outcome) -> None:
        outcomes.append(outcome)

    adapter = LocalAdapter(Options(folder=str(tmp_path / "local")))
    async with BatchWorker(adapter, str(tmp_path / "store"), "w", deliver, results_s=0.05) as worker:
        await worker.submit(Task("t", Blob.of(cloudpickle.dumps(lambda _: 1)), (Blob.of(cloudpickle.dumps(Bomb())),)))
        await worker.drain()
    assert outcomes[0].result is not None
    assert len(list(tmp_path.glob("unpickled-in-*"))) == 1, "the job has unpickled it, and only the job"
    assert not (tmp_path / f"unpickled-in-{os.getpid()}").exists()
