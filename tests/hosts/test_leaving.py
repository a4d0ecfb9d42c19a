"""What a host may count on that leaves with work under way."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

from batchport import (
    BackendUnusableError,
    BatchWorker,
    BatchWorkerAdapterBase,
    Blob,
    JobSpec,
    JobState,
    JobStatus,
    Limits,
    Outcome,
    Task,
)
from batchport.store import FolderStore

ROOM = 12


class Down(BatchWorkerAdapterBase):
    """Is down after the first jobs; they run until they are cancelled."""

    limits = Limits(name_length=64, inline_bytes=65536)

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}

    def submit_job(self, job: JobSpec) -> str:
        if len(self.states) == ROOM:
            raise BackendUnusableError("no such queue")
        self.states[job.name] = JobState.RUNNING
        return job.name

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        return [JobStatus(job_id, self.states[job_id]) for job_id in job_ids]

    def cancel_job(self, job_id: str) -> None:
        self.states[job_id] = JobState.CANCELLED


async def test_jobs_that_end_are_no_sign_that_a_backend_takes_more(tmp_path: Path) -> None:
    async def deliver(outcome: Outcome) -> None:
        pass

    adapter = Down()
    async with BatchWorker(adapter, FolderStore(tmp_path), "w", deliver, poll_s=(0.05, 0.05)) as worker:
        for number in range(ROOM + 1):
            await worker.submit(Task(f"t{number}", Blob.of(pickle.dumps(abs)), label=f"t{number}"))
        while len(adapter.states) < ROOM:
            await asyncio.sleep(0.01)

        async def end_one_after_another() -> None:
            for name in list(adapter.states):  # whichever came first, the one that was refused is not among them
                await worker.cancel(name.partition("-")[0])
                await asyncio.sleep(0.3)

        ending = asyncio.create_task(end_one_after_another())
        assert not await worker.sent(patience_s=1)
        ending.cancel()
        assert JobState.RUNNING in adapter.states.values()
