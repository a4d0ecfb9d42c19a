"""Promise 13: waiting tasks cost next to no memory, and a host that offers too much is slowed down.

What the executor, as a host, holds for its calls is tested in tests/hosts/test_waiting.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

from batchport import Blob, Task


async def test_a_host_that_offers_too_much_waits_and_is_not_refused(world: Any, make_task: Callable[..., Task]) -> None:
    async with world.worker(max_jobs=1, waiting=2) as worker:
        await worker.submit(make_task("runs"))
        job = await world.job()
        await worker.submit(make_task("waits-1"))
        await worker.submit(make_task("waits-2"))
        offer = asyncio.ensure_future(worker.submit(make_task("too many")))
        await asyncio.sleep(0.1)
        assert not offer.done()
        assert worker.counts.waiting == 2
        world.leave_result(job)
        await offer
        world.backend.on_submit = world.leave_result
        world.leave_result(await world.job(2))
        await worker.drain()
    assert len(world.outcomes) == 4


async def test_a_waiting_task_costs_a_few_hundred_bytes_beyond_what_the_host_holds(world: Any) -> None:
    reads = 0

    async def read() -> bytes:
        nonlocal reads
        reads += 1
        return os.urandom(10_000)

    def task(number: int) -> Task:
        return Task(f"t{number}", Blob.of(b"function"), (Blob(f"argument-{number}", 10_000, read),))

    tasks = [task(number) for number in range(2_000)]
    async with world.worker(max_jobs=1) as worker:
        await worker.submit(task(-1))
        job = await world.job()
        for each in tasks[:100]:
            await worker.submit(each)
        gc.collect()
        tracemalloc.start()
        try:
            for each in tasks[100:]:
                await worker.submit(each)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (worker.counts.waiting, reads) == (2_000, 1), "only the task that has a job was read"
        assert held / 1_900 < 600, "bytes"
        for each in tasks:
            await worker.cancel(each.id)
        world.leave_result(job)
        await worker.drain()
