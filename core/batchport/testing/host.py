"""Host: sends functions through a BatchWorker, as a real host does, and collects the outcomes.

Called by the cases about real work.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import secrets
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import pytest

from batchport.jobs import Resources
from batchport.store import Keys, open_store
from batchport.tasks import Blob, Failure, Outcome, Task
from batchport.testing.backend import Backend
from batchport.testing.bench import Bench
from batchport.testing.marks import Mark, Marks
from batchport.worker import BatchWorker

__all__ = ["POLL_S", "Host", "run"]

POLL_S = 0.5
"""How often, in seconds, the worker polls while there is news."""


class Host:
    """One worker with a name of its own, on a fresh adapter. An async context manager."""

    def __init__(self, backend: Backend, patience_s: float, *, tasks_per_job: int = 1) -> None:
        self.name = f"conformance-{secrets.token_hex(4)}"
        self.store = open_store(backend.store)
        self.adapter = backend.adapter()
        self.outcomes: list[Outcome] = []
        self.worker = BatchWorker(
            self.adapter,
            self.store,
            self.name,
            self._deliver,
            tasks_per_job=tasks_per_job,
            poll_s=(POLL_S, 2 * POLL_S),
            results_s=0.1,
            python=backend.python,
        )
        self._patience_s = patience_s
        self._news = asyncio.Condition()
        self._ids = (f"{self.name}-{number}" for number in itertools.count())

    async def __aenter__(self) -> Self:
        """Start the worker."""
        await self.worker.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker, after a failed case its tasks first, and remove what says that it was there."""
        if error is not None:
            for number in range(int(next(self._ids).rpartition("-")[2])):
                await self.worker.cancel(f"{self.name}-{number}")
        await self.worker.__aexit__(kind, error, trace)
        keys = Keys(self.name)
        epochs = [f"{keys.epochs}/{name}" for name in self.store.names(keys.epochs)]
        self.store.delete([keys.birth, *epochs])

    async def call(self, function: Callable[..., Any], *args: object, resources: Resources | None = None) -> str:
        """Hand a call over to the worker, and return the task's id."""
        function_blob, *blobs = (Blob.of(pickle.dumps(each)) for each in (function, *args))
        task = Task(
            next(self._ids), function_blob, tuple(blobs), resources=resources or Resources(), label="conformance"
        )
        await self.worker.submit(task)
        return task.id

    async def outcome(self, task_id: str) -> Outcome:
        """Wait for a task's outcome."""
        await self.until(
            f"the outcome of task {task_id}", lambda: any(each.task_id == task_id for each in self.outcomes)
        )
        return next(each for each in self.outcomes if each.task_id == task_id)

    async def result(self, task_id: str) -> Any:
        """Wait for a task's result; fail with its failure if it has none."""
        outcome = await self.outcome(task_id)
        assert outcome.result is not None, f"task {task_id} failed:\n{outcome.failure}"
        return pickle.loads(outcome.result)

    async def failure(self, task_id: str) -> Failure:
        """Wait for a task's failure; fail if it succeeds."""
        outcome = await self.outcome(task_id)
        assert outcome.failure is not None, f"task {task_id} must fail, and succeeded"
        return outcome.failure

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        end = asyncio.get_running_loop().time() + self._patience_s
        while not await asyncio.to_thread(holds):
            if asyncio.get_running_loop().time() > end:
                pytest.fail(f"waited {self._patience_s:g} s for {what}; last seen: {self.worker.counts}")
            await asyncio.sleep(0.05)

    async def marked(self, task_id: str, marks: Marks) -> Mark:
        """Wait until a task that runs `functions.hold` with these marks runs, and return the mark of its process."""
        await self.until(f"task {task_id} to leave its mark", lambda: bool(marks.read("run")))
        return marks.read("run")[0]

    def left_in_store(self) -> list[str]:
        """Return the keys of all that the worker's tasks have in the store."""
        keys = Keys(self.name)
        folders = {keys.out, *(key.rpartition("/")[0] for key in (keys.manifest(""), keys.job_id(""), keys.blob("")))}
        folders |= {keys.array("").rpartition("/")[0], keys.stop("", 0).rpartition("/")[0]}
        return [f"{folder}/{name}" for folder in sorted(folders) for name in self.store.names(folder)]

    def job_ids(self) -> list[str]:
        """Return the backend's ids of the jobs that the worker has there, as it noted them."""
        folder = Keys(self.name).job_id("").rpartition("/")[0]
        return [(self.store.get(f"{folder}/{name}") or b"").decode() for name in self.store.names(folder)]

    async def _deliver(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def run(case: Callable[[Host], Coroutine[Any, Any, None]], bench: Bench, *, tasks_per_job: int = 1) -> None:
    """Run a case with a host of its own."""

    async def with_host() -> None:
        async with Host(bench.backend, bench.patience_s, tasks_per_job=tasks_per_job) as host:
            await case(host)

    asyncio.run(with_host())
