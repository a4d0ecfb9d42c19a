"""Cases about cancel_job: the processes go, the queue forgets, and asking once too often does no harm."""

from __future__ import annotations

import time

import pytest

from batchport.jobs import JobState
from batchport.testing.bench import Bench, Job, unlike
from batchport.testing.cases.base import Cases

__all__ = ["CancellingCases"]

MOST_WAITING = 12
"""How many jobs a case submits in order to see one that has to wait."""


class CancellingCases(Cases):
    """A cancelled job ends, wherever it is, and a job that is over stays as it is."""

    def test_cancelling_ends_the_process(self, bench: Bench) -> None:
        """The process of a cancelled job is soon gone, and did not come to its end."""
        job, mark = bench.running()
        bench.desk.cancel(job.id)
        bench.gone(job.marks, mark)
        assert not job.marks.read("end")

    def test_cancelling_ends_what_the_job_has_started(self, bench: Bench) -> None:
        """A process that a cancelled job has started is soon gone too."""
        job, mark = bench.running("spawn=child")
        child = bench.marked(job, "child")
        bench.desk.cancel(job.id)
        bench.gone(job.marks, child)
        bench.gone(job.marks, mark)

    def test_cancelling_ends_a_job_that_does_not_listen(self, bench: Bench) -> None:
        """A cancelled job that ignores SIGTERM is ended all the same."""
        job, mark = bench.running("deaf")
        bench.desk.cancel(job.id)
        bench.gone(job.marks, mark)

    def test_a_cancelled_job_is_no_success(self, bench: Bench) -> None:
        """A job cancelled while it ran is reported as ended or not at all, and never as SUCCEEDED."""
        job, _ = bench.running()
        bench.desk.cancel(job.id)
        bench.ended_without_success(job)

    def test_a_cancelled_job_that_waited_never_runs(self, bench: Bench) -> None:
        """A job cancelled while it waits for its turn does not run when its turn comes."""
        jobs = _fill(bench)
        waiting = jobs[-1]
        bench.desk.cancel(waiting.id)
        status = bench.ended_without_success(waiting)
        for job in jobs:
            job.marks.release()
        bench.verdicts(jobs[:-1])
        runs = waiting.marks.read("run")
        assert not runs, f"job {waiting.id} was cancelled while it waited, is reported as {status}, and ran: {runs}"

    def test_cancelling_twice_is_silent(self, bench: Bench) -> None:
        """Cancelling a job that was cancelled already succeeds silently, at once and after its end."""
        job, mark = bench.running()
        bench.desk.cancel(job.id)
        bench.quietly("cancelling a job again", lambda: bench.desk.cancel(job.id))
        bench.gone(job.marks, mark)
        bench.ended_without_success(job)
        bench.quietly("cancelling a cancelled job", lambda: bench.desk.cancel(job.id))

    def test_cancelling_an_unknown_job_is_silent(self, bench: Bench) -> None:
        """Cancelling a job that the backend does not know succeeds silently."""
        job = bench.submit("mark=run")
        bench.quietly("cancelling an unknown job", lambda: bench.desk.cancel(unlike(job.id)))
        assert bench.verdict(job).state is JobState.SUCCEEDED, "and another job must not suffer for it"

    def test_cancelling_an_ended_job_is_silent(self, bench: Bench) -> None:
        """Cancelling a job that is over succeeds silently."""
        job, _ = bench.ended("mark=run")
        bench.quietly("cancelling a job that is over", lambda: bench.desk.cancel(job.id))

    def test_cancelling_an_ended_job_keeps_its_verdict(self, bench: Bench) -> None:
        """A job that is over is still reported as it ended after it is cancelled."""
        jobs = [bench.submit("mark=run"), bench.submit("mark=run", "exit=3")]
        before = {job_id: status.state for job_id, status in bench.verdicts(jobs).items()}
        bench.quietly("cancelling jobs that are over", lambda: bench.desk.cancel(*(job.id for job in jobs)))
        after = {job_id: status.state for job_id, status in bench.verdicts(jobs).items()}
        assert after == before

    def test_cancelling_one_job_leaves_the_others(self, bench: Bench) -> None:
        """Cancelling a job does nothing to another one."""
        other = bench.submit("mark=run", "hold", "mark=end")
        job = bench.submit("hold")
        bench.desk.cancel(job.id)
        bench.ended_without_success(job)
        other.marks.release()
        assert bench.verdict(other).state is JobState.SUCCEEDED

    def test_many_are_cancelled_at_once(self, bench: Bench) -> None:
        """cancel_jobs ends each job that it is given, and passes over those that are unknown or over."""
        if not bench.desk.has("cancel_jobs"):
            pytest.skip("cancel_jobs is not overridden: the worker cancels one by one")
        ended, _ = bench.ended("mark=run")
        jobs = [bench.submit("mark=run", "hold", "mark=end") for _ in range(3)]
        mark = bench.marked(jobs[0], "run")
        ids = [unlike(ended.id), ended.id, *(job.id for job in jobs)]
        bench.quietly("cancelling many jobs at once", lambda: bench.desk.cancel_jobs(ids))
        for job in jobs:
            bench.ended_without_success(job)
        bench.gone(jobs[0].marks, mark)
        for job in jobs:
            job.marks.release()
        assert not any(job.marks.read("end") for job in jobs)


def _fill(bench: Bench) -> list[Job]:
    """Submit jobs that hold until one has to wait; return them, the one that waits last."""
    jobs: list[Job] = []
    while len(jobs) < MOST_WAITING:
        jobs.append(bench.submit("mark=run", "hold"))
        bench.marked(jobs[0], "run")
        if _has_to_wait(bench, jobs[-1]):
            return jobs
    pytest.skip(f"no job has to wait: {MOST_WAITING} at once all ran")


def _has_to_wait(bench: Bench, job: Job) -> bool:
    """Return whether a job is reported as QUEUED and stays so for a while, and so is not just on its way to a place."""

    def looks() -> JobState | None:
        if job.marks.read("run"):
            return JobState.RUNNING
        status = bench.status(job)
        return status.state if status and status.state is JobState.QUEUED else None

    end = time.monotonic() + bench.patience_s / 40
    what = f"job {job.id} to run, or to be reported as QUEUED"
    while bench.until(what, looks, lambda: bench.status(job)) is JobState.QUEUED:
        if time.monotonic() > end:
            return True
        time.sleep(0.05)
    return False
