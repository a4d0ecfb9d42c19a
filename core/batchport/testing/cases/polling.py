"""Cases about poll_jobs: it says what is so, of the jobs that it was asked for, and guesses nothing."""

from __future__ import annotations

import pytest

from batchport.errors import Reason, RejectedJobError
from batchport.jobs import JobState, JobStatus, Resources
from batchport.testing.bench import Bench, Job, unlike
from batchport.testing.cases.base import Cases

__all__ = ["PollingCases"]

MANY = 150
"""Ids in one poll where `limits.poll_batch` has no limit."""


class PollingCases(Cases):
    """A job's state is reported as it is, from its first moment to long after its end."""

    def test_polling_nothing_gives_nothing(self, bench: Bench) -> None:
        """A poll of no ids returns no statuses and does not raise."""
        assert bench.desk.poll([]) == {}

    def test_an_unknown_job_is_not_reported(self, bench: Bench) -> None:
        """An id that no job has is left out, whatever else is asked for in the same poll."""
        job, _ = bench.running()
        unknown = unlike(job.id)
        bench.until(f"poll_jobs to report job {job.id}", lambda: bench.status(job))
        assert bench.desk.poll([unknown]) == {}, "a job that the backend does not know must be left out"
        assert list(bench.desk.poll([unknown, job.id])) == [job.id]

    def test_a_full_poll_is_answered_whole(self, bench: Bench) -> None:
        """A poll of `limits.poll_batch` ids reports each job among them: the first, the last and those between."""
        jobs = [bench.submit("mark=run") for _ in range(3)]
        size = bench.desk.adapter.limits.poll_batch or MANY
        jobs = jobs[:size]
        unknown = [f"{unlike(jobs[0].id)}{number}" for number in range(size - len(jobs))]
        half = len(unknown) // 2
        middle, last = jobs[1:2], jobs[2:]
        ids = [jobs[0].id, *unknown[:half], *(job.id for job in middle), *unknown[half:], *(job.id for job in last)]
        wanted = {job.id for job in jobs}
        bench.until(
            f"one poll of {size} ids to report all of {', '.join(wanted)}",
            lambda: set(bench.desk.poll(ids)) == wanted,
            lambda: f"it reported {', '.join(bench.desk.poll(ids)) or 'none'}",
        )

    def test_more_jobs_than_one_poll_holds_all_end(self, bench: Bench) -> None:
        """Many jobs at once all run, once each, and the end of each is reported."""
        jobs = [bench.submit("mark=run") for _ in range(8)]
        assert len({job.id for job in jobs}) == len(jobs), "each job must have an id of its own"
        states = {job.id: status.state for job, status in _by_job(bench, jobs)}
        assert set(states.values()) == {JobState.SUCCEEDED}, states
        assert [len(job.marks.read("run")) for job in jobs] == [1] * len(jobs)

    def test_a_running_job_is_reported_as_running(self, bench: Bench) -> None:
        """A job whose process is there is reported as RUNNING soon."""
        job, _ = bench.running()
        bench.until(
            f"job {job.id}, whose process is there, to be reported as RUNNING",
            lambda: (status := bench.status(job)) and status.state is JobState.RUNNING,
            lambda: bench.status(job),
        )

    def test_success_is_reported_after_the_end_and_not_before(self, bench: Bench) -> None:
        """A job that ends well is SUCCEEDED, and not while its process is there."""
        job, _ = bench.running()
        for _ in range(3):
            status = bench.status(job)
            assert status is None or not status.state.is_final, f"the process of job {job.id} is there: {status}"
        job.marks.release()
        status = bench.verdict(job)
        assert status.state is JobState.SUCCEEDED, f"job {job.id} ended with exit code 0: {status}"
        assert job.marks.read("end"), f"job {job.id} is reported as ended before it was: {status}"

    def test_an_exit_code_is_reported(self, bench: Bench) -> None:
        """A job that exits with 3 is FAILED with exit code 3."""
        job, status = bench.ended("mark=run", "exit=3")
        assert status.state is JobState.FAILED, f"job {job.id} exited with 3: {status}"
        code = _exit_code(bench, job, status)
        assert code == 3, f"job {job.id} exited with 3, and the exit code reported is {code}: {status}"  # noqa: PLR2004 - as the probe was told

    def test_a_signal_is_reported(self, bench: Bench) -> None:
        """A job whose process SIGKILL ended is FAILED with exit code 128 + 9."""
        job, status = bench.ended("mark=run", "kill=SIGKILL")
        assert status.state is JobState.FAILED, f"job {job.id} died by SIGKILL: {status}"
        assert _exit_code(bench, job, status) == 128 + 9, f"job {job.id} died by SIGKILL: {status}"

    def test_a_command_that_cannot_start_is_a_failure(self, bench: Bench) -> None:
        """A job whose program is not there is FAILED, or refused; it does not stay for ever."""
        spec, marks = bench.probe("mark=run")
        lost = type(spec)(spec.name, spec.label, ("/no/such/program", *spec.command[1:]), spec.env, spec.resources)
        try:
            job = bench.enter(lost, marks)
        except Exception:  # noqa: BLE001 - to refuse it at once is as good
            return
        status = bench.verdict(job)
        assert status.state is JobState.FAILED, f"the program of job {job.id} is not there: {status}"

    def test_a_verdict_stays(self, bench: Bench) -> None:
        """A final state is reported again as it was, and never becomes a living one."""
        job, first = bench.ended("mark=run", "exit=3")
        for _ in range(3):
            again = bench.status(job)
            assert again is not None, f"job {job.id} was reported as {first}, and in the next poll not at all"
            assert again.state is first.state, f"job {job.id} was reported as {first}, and then as {again}"

    def test_a_time_limit_is_kept(self, bench: Bench) -> None:
        """A job that is still there at its time limit is ended by the backend, and the reason is TIMEOUT."""
        job, mark = bench.running(resources=Resources(time_limit_s=2))
        bench.gone(job.marks, mark)
        status = bench.verdict(job)
        assert not job.marks.read("end")
        assert status.state is JobState.FAILED, f"job {job.id} met its time limit: {status}"
        assert _reason(bench, job, status) is Reason.TIMEOUT, f"job {job.id} met its time limit: {status}"

    def test_a_memory_limit_is_told_from_a_crash(self, bench: Bench) -> None:
        """Where the backend ends a job that uses too much memory, the reason is OUT_OF_MEMORY."""
        asked = Resources(memory_mib=64)
        try:
            job = bench.submit("allocate=256", "mark=allocated", "sleep=3", "mark=spared", resources=asked)
        except RejectedJobError as error:
            pytest.skip(f"the backend refuses a job of 64 MiB: {error}")
        status = bench.verdict(job)
        if job.marks.read("spared"):
            pytest.skip("the backend let a job of 64 MiB keep 256: it enforces no memory limit")
        assert status.state is JobState.FAILED, f"job {job.id} used more memory than it may: {status}"
        assert _reason(bench, job, status) is Reason.OUT_OF_MEMORY, f"job {job.id} used too much memory: {status}"


def _by_job(bench: Bench, jobs: list[Job]) -> list[tuple[Job, JobStatus]]:
    statuses = bench.verdicts(jobs)
    return [(job, statuses[job.id]) for job in jobs]


def _exit_code(bench: Bench, job: Job, status: JobStatus) -> int | None:
    more = bench.desk.inspect(job.id) if status.exit_code is None else None
    return more.exit_code if more else status.exit_code


def _reason(bench: Bench, job: Job, status: JobStatus) -> Reason | None:
    more = bench.desk.inspect(job.id) if status.reason is None else None
    return more.reason if more else status.reason
