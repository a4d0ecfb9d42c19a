"""Desk: one adapter's methods as plain calls, made exactly as the worker makes them.

Called by the cases. Plain methods run in a thread, coroutines on one loop for the adapter's whole life,
each with a deadline: a method that waits for a job's end fails its case.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Sequence
from typing import Any, Self, TypeVar

import pytest

from batchport.adapter import BatchWorkerAdapterBase
from batchport.jobs import Check, JobSpec, JobStatus
from batchport.worker.calls import Calls, UnclearAnswerError, overrides

__all__ = ["Desk"]

_T = TypeVar("_T")


class Desk:
    """The door to one adapter, as the worker of this name. A context manager: it opens the adapter, and closes it."""

    def __init__(self, adapter: BatchWorkerAdapterBase, deadline_s: float, worker: str = "conformance") -> None:
        self.adapter = adapter
        self.worker = worker
        self._calls = Calls(adapter, deadline_s)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        """Open the adapter."""
        try:
            self._run(self._calls.open(self.worker))
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the adapter, and the loop with it."""
        with self._runner:
            self._run(self._calls.close())

    def has(self, method: str) -> bool:
        """Return whether the adapter has its own version of this optional method."""
        return overrides(self.adapter, method)

    def submit(self, job: JobSpec) -> str:
        return self._run(self._calls.submit_job(job))

    def poll(self, job_ids: Sequence[str], *also: str) -> dict[str, JobStatus]:
        """Return what poll_jobs says of these jobs, by id, and of those in `also`, which are not asked about.

        What it says of others is left out, as by the worker.
        """
        answer = self._run(self._calls.poll_jobs(job_ids))
        return {status.job_id: status for status in answer if status.job_id in {*job_ids, *also}}

    def cancel(self, *job_ids: str) -> None:
        """Cancel these jobs, one call for each."""
        for job_id in job_ids:
            self._plainly(self.adapter.cancel_job(job_id))

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        """Cancel these jobs as the worker does: all in one call, where the adapter can."""
        self._run(self._calls.cancel_jobs(job_ids))

    def find(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Return what find_jobs says, sorted."""
        return sorted(self._run(self._calls.find_jobs(names)))

    def inspect(self, job_id: str) -> JobStatus | None:
        return self._run(self._calls.inspect_job(job_id))

    def check(self) -> list[Check]:
        """Return the adapter's checks; the worker never asks for them, `batchport doctor` does."""
        return list(self._plainly(self.adapter.check()))

    def _plainly(self, answer: Any) -> Any:
        async def awaited() -> Any:
            return await answer

        return self._run(awaited()) if inspect.isawaitable(answer) else answer

    def _run(self, call: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._runner.run(call)
        except UnclearAnswerError as error:
            pytest.fail(str(error))
