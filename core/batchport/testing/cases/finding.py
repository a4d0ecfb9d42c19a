"""Cases about restarts: jobs outlive the adapter that submitted them, and a fresh one takes them over."""

from __future__ import annotations

import pytest

from batchport.jobs import JobState, JobStatus
from batchport.testing.bench import Bench, Job
from batchport.testing.cases.base import Cases
from batchport.testing.desk import Desk

__all__ = ["FindingCases"]


class FindingCases(Cases):
    """Nothing that a worker must know is in the adapter's memory alone."""

    def test_a_fresh_adapter_polls_the_jobs_of_another(self, bench: Bench) -> None:
        """A fresh adapter, as after a restart, reports the jobs that another one has submitted."""
        job, _ = bench.running()
        bench.until(f"poll_jobs to report job {job.id}", lambda: bench.status(job))
        with _fresh(bench) as other:
            status = other.poll([job.id]).get(job.id)
        assert status is not None, (
            f"a fresh adapter does not report job {job.id}: an adapter must keep no table of jobs"
        )
        assert not status.state.is_final, f"a fresh adapter reports the running job {job.id} as {status}"

    def test_a_fresh_adapter_cancels_the_jobs_of_another(self, bench: Bench) -> None:
        """A fresh adapter cancels a job that another one has submitted."""
        job, mark = bench.running()
        with _fresh(bench) as other:
            other.cancel(job.id)
        bench.gone(job.marks, mark)

    def test_jobs_live_on_when_their_adapter_is_closed(self, bench: Bench) -> None:
        """A job that runs or waits when its adapter is closed goes on, to its own end."""
        spec, marks = bench.probe("mark=run", "hold", "mark=end")
        with _fresh(bench) as other:
            job = bench.enter(spec, marks, other)
            bench.marked(job, "run")
        marks.release()
        bench.marked(job, "end")
        assert bench.verdict(job).state is JobState.SUCCEEDED

    def test_an_end_that_was_not_polled_is_told_after_a_restart(self, bench: Bench) -> None:
        """A job that ended without a poll that says so is reported once its adapter is closed and a fresh one opens."""
        spec, marks = bench.probe("mark=run", "exit=3")
        with _fresh(bench) as other:
            job = bench.enter(spec, marks, other)
            bench.gone(marks, bench.marked(job, "run"))
            if other.has("inspect_job"):  # which tells, without a poll, when the backend knows of the end
                bench.until(f"inspect_job to tell the end of job {job.id}", lambda: _is_over(other.inspect(job.id)))
        with _fresh(bench) as again:
            status = bench.until(
                f"a fresh adapter to report the end of job {job.id}, which no poll has reported yet",
                lambda: found if _is_over(found := again.poll([job.id]).get(job.id)) else None,
                lambda: again.poll([job.id]) or "it does not know the job",
            )
        assert status.state is JobState.FAILED, f"job {job.id} exited with 3: {status}"

    def test_a_living_job_is_found_by_its_name(self, bench: Bench) -> None:
        """find_jobs gives the id of a job that runs, and only that one."""
        _needs_find_jobs(bench)
        job, _ = bench.running()
        _found(bench, bench.desk, [job.spec.name], job)

    def test_an_ended_job_is_found_by_its_name(self, bench: Bench) -> None:
        """find_jobs gives the ids of jobs that are over, whether well or badly."""
        _needs_find_jobs(bench)
        jobs = [bench.submit("mark=run"), bench.submit("mark=run", "exit=3")]
        bench.verdicts(jobs)
        _found(bench, bench.desk, [job.spec.name for job in jobs], *jobs)

    def test_an_unknown_name_is_left_out(self, bench: Bench) -> None:
        """find_jobs leaves out a name that no job has, even one that is only the beginning of a job's name."""
        _needs_find_jobs(bench)
        job, _ = bench.running()
        _found(bench, bench.desk, [job.spec.name[:-1], f"{job.spec.name}x", job.spec.name], job)
        assert bench.desk.find([]) == []

    def test_a_fresh_adapter_finds_the_jobs_of_another(self, bench: Bench) -> None:
        """A fresh adapter, as after a restart, finds jobs that another one has submitted."""
        _needs_find_jobs(bench)
        job, _ = bench.running()
        with _fresh(bench) as other:
            _found(bench, other, [job.spec.name], job)


def _fresh(bench: Bench) -> Desk:
    return Desk(bench.backend.adapter(), bench.patience_s)


def _is_over(status: JobStatus | None) -> bool:
    return status is not None and status.state.is_final


def _needs_find_jobs(bench: Bench) -> None:
    if not bench.desk.has("find_jobs"):
        pytest.skip("find_jobs is not overridden: the worker cannot ask this backend for a job by its name")


def _found(bench: Bench, desk: Desk, names: list[str], *jobs: Job) -> None:
    """Wait until each job is found by its name, as the worker does; no other may be found then."""
    wanted = sorted((job.spec.name, job.id) for job in jobs)
    bench.until(
        f"find_jobs to find {wanted} among {names}",
        lambda: set(wanted) <= set(desk.find(names)),
        lambda: desk.find(names),
    )
    assert desk.find(names) == wanted
