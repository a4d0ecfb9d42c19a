"""A backend in memory that does what a test says, and a worker on it: the promises' laboratory.

The worker is the real one, with a real folder store; jobs are entries of a table, and the test writes
what their runners would leave.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from batchport import (
    BatchWorker,
    BatchWorkerAdapterBase,
    Blob,
    JobSpec,
    JobState,
    JobStatus,
    Limits,
    Outcome,
    Reason,
    Resources,
    Task,
)
from batchport.envelope import Envelope
from batchport.store import FolderStore, Keys, OutKey

SETTLE_S = 0.2
GRACE_S = 0.4


@dataclass
class Job:
    """A job of the scripted backend."""

    id: str
    spec: JobSpec
    state: JobState = JobState.RUNNING
    reason: Reason | None = None
    evidence: str = ""
    exit_code: int | None = None
    listed: bool = True
    cancels: int = 0
    lingers: bool = False

    def end(
        self, state: JobState, reason: Reason | None = None, evidence: str = "", exit_code: int | None = None
    ) -> None:
        """Have the backend report this from now on."""
        self.state, self.reason, self.evidence, self.exit_code = state, reason, evidence, exit_code


class ScriptedBackend(BatchWorkerAdapterBase):
    """Keeps its jobs in a table; every call may first run what a test has queued for it."""

    limits = Limits(name_length=64, inline_bytes=65536, settle_s=SETTLE_S)

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.calls: dict[str, list[tuple[float, Any]]] = defaultdict(list)
        self.faults: dict[str, deque[Callable[[Any], object]]] = defaultdict(deque)
        self.on_submit: Callable[[Job], object] = lambda _job: None
        self.on_cancel: Callable[[Job], object] = lambda job: job.end(JobState.CANCELLED)
        self._ids = itertools.count(1)

    def _called(self, method: str, argument: object) -> None:
        self.calls[method].append((time.monotonic(), argument))
        if self.faults[method]:
            self.faults[method].popleft()(argument)

    def add(self, spec: JobSpec) -> Job:
        """Make a job, as submit_job does."""
        job = Job(str(next(self._ids)), spec)
        self.jobs[job.id] = job
        self.on_submit(job)
        return job

    def submit_job(self, job: JobSpec) -> str:
        self._called("submit_job", job)
        return self.add(job).id

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        self._called("poll_jobs", list(job_ids))
        known = [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]
        return [
            JobStatus(job.id, job.state, job.spec.name, job.reason, job.evidence, job.exit_code)
            for job in known
            if job.listed
        ]

    def cancel_job(self, job_id: str) -> None:
        self._called("cancel_job", job_id)
        if job := self.jobs.get(job_id):
            job.cancels += 1
            self.on_cancel(job)

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        self._called("find_jobs", list(names))
        return [(job.spec.name, job.id) for job in self.jobs.values() if job.spec.name in names and job.listed]

    def inspect_job(self, job_id: str) -> JobStatus | None:
        self._called("inspect_job", job_id)
        return None


class BackendWithArrays(ScriptedBackend):
    """The same, with native arrays; it reports the elements that `elements` has a state for, else the parent."""

    limits = Limits(
        name_length=64, inline_bytes=65536, settle_s=SETTLE_S, array_size=10, array_index="INDEX", array_base=1
    )

    def __init__(self) -> None:
        super().__init__()
        self.elements: dict[str, Job] = {}

    def element(self, job: Job, index: int) -> Job:
        """Return an element, to be reported by itself from now on."""
        return self.elements.setdefault(f"{job.id}:{index}", Job(f"{job.id}:{index}", job.spec))

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}:{index}"

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        own = [each for each in self.elements.values() if each.id.partition(":")[0] in job_ids and each.listed]
        elements = [
            JobStatus(each.id, each.state, each.spec.name, each.reason, each.evidence, each.exit_code) for each in own
        ]
        return [*super().poll_jobs(job_ids), *elements]

    def cancel_job(self, job_id: str) -> None:
        super().cancel_job(job_id)
        if element := self.elements.get(job_id):
            element.cancels += 1
            element.end(JobState.CANCELLED)


class BackendWithoutNames(ScriptedBackend):
    """The same, but it can't be asked by name."""

    find_jobs = BatchWorkerAdapterBase.find_jobs  # type: ignore[assignment]


@dataclass
class World:
    """A store, a backend, and all that came back."""

    store: FolderStore
    backend: Any
    keys: Keys = field(default_factory=lambda: Keys("w"))
    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    @asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[BatchWorker]:
        """Run a quick worker; leave it when the test is done with it."""

        async def deliver(outcome: Outcome) -> None:
            self.outcomes[outcome.task_id].append(outcome)

        quick: dict[str, Any] = {"poll_s": (0.05, 0.1), "results_s": 0.02, "grace_s": GRACE_S, **options}
        async with BatchWorker(self.backend, self.store, "w", deliver, **quick) as worker:
            yield worker
            self.end_all()

    def end_all(self) -> None:
        """Have the backend report every job that is not meant to linger as over."""
        for job in self.backend.jobs.values():
            if not job.lingers and not job.state.is_final:
                job.end(JobState.SUCCEEDED)

    async def until(self, holds: Callable[[], object], what: str, seconds: float = 10) -> None:
        """Wait until something holds; fail with `what` if it does not."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
            await asyncio.sleep(0.01)

    async def job(self, number: int = 1) -> Job:
        """Return the backend's job of this number, once it is there."""
        await self.until(lambda: str(number) in self.backend.jobs, f"job {number} at the backend")
        found: Job = self.backend.jobs[str(number)]
        return found

    async def outcome(self, task_id: str) -> Outcome:
        """Return the one outcome of a task, once it is there."""
        await self.until(lambda: self.outcomes[task_id], f"an outcome of {task_id}")
        assert len(self.outcomes[task_id]) == 1, f"{task_id} has more than one outcome"
        return self.outcomes[task_id][0]

    def tasks_of(self, job: Job) -> list[str]:
        """Return the ids of a job's tasks, by its manifest."""
        data = self.store.get(self.keys.manifest(job.spec.name))
        assert data is not None, f"job {job.spec.name} has no manifest"
        return list(Envelope.from_bytes(data, ("manifest",)).fields["tasks"])

    def leave_result(self, job: Job, place: int = 0, value: bytes = b"42") -> None:
        """Leave what a runner leaves after a task went well."""
        name = job.spec.name
        envelope = Envelope("result", name, parts=(value, b""), fields={"nonce": "0000aaaa"})
        self.store.put(self.keys.left(OutKey(name, place, "result")), envelope.to_bytes(), create=True)

    def leave_evidence(self, job: Job, place: int = 0, reason: Reason | None = Reason.RUNNER_CRASH) -> None:
        """Leave what a runner leaves after a task's process died."""
        name = job.spec.name
        fields = {
            "reason": reason.name if reason else None,
            "message": "The task's process died.",
            "evidence": "killed by SIGKILL",
            "advice": "Look at the evidence.",
            "exit_code": 137,
        }
        envelope = Envelope("evidence", name, parts=(b"", b"last words"), fields=fields)
        self.store.put(self.keys.left(OutKey(name, place, "evidence", "0000aaaa")), envelope.to_bytes())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Make a fresh world with a scripted backend."""
    return World(FolderStore(tmp_path / "store"), ScriptedBackend())


@pytest.fixture
def nameless_world(tmp_path: Path) -> World:
    """Make a world whose backend has no find_jobs."""
    return World(FolderStore(tmp_path / "store"), BackendWithoutNames())


@pytest.fixture
def array_world(tmp_path: Path) -> World:
    """Make a world whose backend has native arrays of up to ten elements."""
    return World(FolderStore(tmp_path / "store"), BackendWithArrays())


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Make a task by its id; what its function is matters to no scripted backend."""

    def make(task_id: str, *args: bytes, resources: Resources | None = None) -> Task:
        blobs = tuple(Blob.of(each) for each in args)
        return Task(task_id, Blob.of(b"function"), blobs, resources=resources or Resources())

    return make
