"""Bench: the suite's hands. It submits probes through the adapter, and watches them from outside.

Called by the cases. Every wait has the suite's patience as its deadline, and says what was awaited and
what was last seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from batchport.jobs import JobSpec, JobState, JobStatus, Resources
from batchport.processes import start_of
from batchport.testing.backend import Backend
from batchport.testing.desk import Desk
from batchport.testing.marks import BEAT_S, Mark, Marks, here

__all__ = ["Bench", "Job", "unlike"]

STILL_S = 4 * BEAT_S + 2
"""How long, in seconds, a process on another host does not beat before it counts as gone."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Job:
    """A probe at the backend: what was submitted, the id that came back, and where its marks are."""

    spec: JobSpec
    id: str
    marks: Marks


class Bench:
    """One case's probes on one backend, through one opened adapter."""

    def __init__(self, backend: Backend, desk: Desk, patience_s: float) -> None:
        self.backend = backend
        self.desk = desk
        self.patience_s = patience_s
        self._jobs: list[Job] = []
        self._marks: list[Marks] = []

    def end(self) -> None:
        """End all jobs, without waiting for them."""
        for marks in self._marks:
            marks.release()
        for job in self._jobs:
            with contextlib.suppress(Exception):  # a broken adapter may raise anything, and the gates are open
                self.desk.cancel(job.id)

    def clear(self) -> None:
        """Remove all marks."""
        for marks in self._marks:
            marks.clear()

    def marks(self) -> Marks:
        """Return a new place for marks."""
        where = self.backend.marks if self.backend.marks is not None else self.backend.store
        marks = Marks(os.fspath(where), secrets.token_hex(6))
        self._marks.append(marks)
        return marks

    def probe(
        self,
        *steps: str,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        resources: Resources | None = None,
        size: int = 1,
    ) -> tuple[JobSpec, Marks]:
        """Return a job that would take these steps (see `probe.STEPS`), and where it would leave its marks.

        With a `size` above 1 it is an array, each element of which takes the steps and marks its index.
        """
        marks = self.marks()
        if size > 1:
            steps = (f"index={self.desk.adapter.limits.array_index}", *steps)
        # So that a run which is killed leaves nothing for long.
        held = [f"hold={4 * self.patience_s:g}" if step == "hold" else step for step in steps]
        command = (self.backend.python, "-m", "batchport.testing.probe", marks.url, marks.key, *held)
        name = name or f"probe-{marks.key}"
        return JobSpec(name, "probe", command, dict(env or {}), resources or Resources(), size), marks

    def submit(self, *steps: str, **more: Any) -> Job:
        """Submit a probe that takes these steps; `more` is as for `probe`."""
        spec, marks = self.probe(*steps, **more)
        return self.enter(spec, marks)

    def enter(self, spec: JobSpec, marks: Marks, desk: Desk | None = None) -> Job:
        """Submit a job that `probe` made, through another desk if one is given."""
        job = Job(spec, (desk or self.desk).submit(spec), marks)
        self._jobs.append(job)
        return job

    def running(self, *steps: str, **more: Any) -> tuple[Job, Mark]:
        """Submit a probe that takes these steps, and then holds until it is released; return once it runs."""
        job = self.submit(*steps, "mark=run", "hold", "mark=end", **more)
        return job, self.marked(job, "run")

    def ended(self, *steps: str, **more: Any) -> tuple[Job, JobStatus]:
        """Submit a probe that takes these steps, and return once the backend reports its end."""
        job = self.submit(*steps, **more)
        return job, self.verdict(job)

    def until(self, what: str, look: Callable[[], _T | None], seen: Callable[[], object] = lambda: "") -> _T:
        """Look again and again until it gives something other than None or False, and return that."""
        end, pause = time.monotonic() + self.patience_s, 0.02
        while True:
            found = look()
            if found is not None and found is not False:
                return found
            if time.monotonic() > end:
                last = seen()
                pytest.fail(f"waited {self.patience_s:g} s for {what}" + (f"; last seen: {last}" if last else ""))
            time.sleep(pause)
            pause = min(pause * 1.3, 1.0)

    def marked(self, job: Job, label: str, index: int | None = None) -> Mark:
        """Wait for a job's mark, and return it; for that of the element `index`, counted from 0, if one is given."""
        base = self.desk.adapter.limits.array_base
        whose = f"job {job.id}" if index is None else f"element {index} of job {job.id}"
        return self.until(
            f"{whose} to leave its mark {label!r}",
            lambda: next(
                (
                    mark
                    for mark in job.marks.read(label)
                    if index is None or mark.env["PROBE_INDEX"] == str(base + index)
                ),
                None,
            ),
            lambda: f"the backend says {self.status(job)}",
        )

    def status(self, job: Job) -> JobStatus | None:
        """Return what the backend says of a job now; None if it does not mention it."""
        return self._said([job]).get(job.id)

    def _said(self, jobs: Sequence[Job]) -> dict[str, JobStatus]:
        """Return what one poll says of these jobs; of an array by its elements, where it is not reported itself.

        It is as the first of them that is not over, or else that did not succeed; and unknown while one of them is.
        """
        ids = {job.id: self.element_ids(job) if job.spec.size > 1 else [] for job in jobs}
        said = self.desk.poll(list(ids), *(each for elements in ids.values() for each in elements))
        for job_id, elements in ids.items():
            if job_id not in said and elements and all(each in said for each in elements):
                states = [said[each] for each in elements]
                bad = [each for each in states if each.state is not JobState.SUCCEEDED] or states
                said[job_id] = next((each for each in bad if not each.state.is_final), bad[0])
        return {job_id: said[job_id] for job_id in ids if job_id in said}

    def element_ids(self, array: Job) -> list[str]:
        """Return how the backend names the elements of an array, by the adapter's word."""
        return [self.desk.adapter.element_id(array.id, index) for index in range(array.spec.size)]

    def elements(self, array: Job) -> list[JobStatus | None]:
        """Return what the backend says of each element now: by its own status, else by that of the whole array."""
        ids = self.element_ids(array)
        said = self.desk.poll([array.id], *ids)
        return [said.get(each, said.get(array.id)) for each in ids]

    def fates(self, array: Job) -> list[JobStatus]:
        """Wait for the end of an array, and return how each element ended, as the backend says if asked about it."""
        self.verdict(array)
        ids = self.element_ids(array)
        size, said = self.desk.adapter.limits.poll_batch or len(ids), self.desk.poll([array.id], *ids)
        for start in range(0, len(ids), size):
            said |= self.desk.poll(ids[start : start + size])
        return [said[each] if each in said else said[array.id] for each in ids]

    def verdict(self, job: Job) -> JobStatus:
        """Wait until the backend reports a job's end, and return how."""
        return self.verdicts([job])[job.id]

    def verdicts(self, jobs: Sequence[Job]) -> Mapping[str, JobStatus]:
        """Wait until the backend reports the end of each of these jobs, in polls of at most `poll_batch` ids."""
        of, open_ids = {job.id: job for job in jobs}, [job.id for job in jobs]
        ended: dict[str, JobStatus] = {}
        last: dict[str, JobStatus | None] = {}
        batch = self.desk.adapter.limits.poll_batch or len(open_ids)

        def look() -> dict[str, JobStatus] | None:
            for job_id, status in self._said([of[each] for each in open_ids[:batch]]).items():
                last[job_id] = status
                if status.state.is_final:
                    ended[job_id] = status
                    open_ids.remove(job_id)
            open_ids[:] = open_ids[batch:] + open_ids[:batch]
            return None if open_ids else ended

        return self.until(
            f"poll_jobs to report the end of job {', '.join(open_ids)}",
            look,
            lambda: ", ".join(f"{each}: {last.get(each, 'not reported')}" for each in open_ids),
        )

    def gone(self, marks: Marks, mark: Mark) -> None:
        """Wait until the process that left this mark is there no more, as its host or its beat shows."""
        what = f"process {mark.pid}, which left the mark {mark.label!r} on {mark.host.partition(' ')[0]}, to be gone"
        if mark.host == here():
            self.until(what, lambda: start_of(mark.pid) != mark.started, lambda: "it is alive")
            return

        def beats_no_more() -> bool:
            before = marks.beat(mark.attempt)
            time.sleep(STILL_S)
            return before == marks.beat(mark.attempt)

        self.until(what, beats_no_more, lambda: "it beats")

    def ended_without_success(self, job: Job) -> JobStatus | None:
        """Wait until a cancelled job is no longer alive by the backend's word; fail if that word is success."""
        last: list[JobStatus | None] = [None]

        def look() -> bool:
            last[0] = self.status(job)
            return last[0] is None or last[0].state.is_final

        self.until(f"cancelled job {job.id} to be reported as ended, or not at all", look, lambda: last[0])
        assert last[0] is None or last[0].state is not JobState.SUCCEEDED, (
            f"job {job.id} was cancelled while it ran, and is reported as {last[0]}"
        )
        return last[0]

    def quietly(self, what: str, call: Callable[[], object]) -> None:
        """Make a call that must succeed silently."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever it raises is what must not be raised
            pytest.fail(f"{what} must succeed silently, and raised {type(error).__name__}: {error}")


def unlike(job_id: str) -> str:
    """Return an id that looks like this one, and that no job has: a number becomes one not given out yet."""
    changed = re.sub(r"[0-9]", "9", job_id)
    if changed == job_id:
        changed = re.sub(r"[A-Za-z]", "z", job_id)
    return changed if changed != job_id else f"{job_id}9"
