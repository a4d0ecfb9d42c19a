"""Cases about inspect_job: after a bad ending it tells people more."""

from __future__ import annotations

import pytest

from batchport.jobs import JobState
from batchport.testing.bench import Bench, unlike
from batchport.testing.cases.base import Cases

__all__ = ["EvidenceCases"]


class EvidenceCases(Cases):
    """inspect_job brings the end of a job's log, and is never in the way."""

    @pytest.fixture(autouse=True)
    def _can_inspect(self, request: pytest.FixtureRequest) -> None:
        if request.function.__name__ in vars(EvidenceCases):
            bench: Bench = request.getfixturevalue("bench")
            if not bench.desk.has("inspect_job"):
                pytest.skip("inspect_job is not overridden: the backend has no more to tell than poll_jobs does")

    def test_the_log_of_a_failed_job_is_evidence(self, bench: Bench) -> None:
        """The evidence of a job that ended badly has the last line that it printed."""
        word = f"last-words-{bench.marks().key}"
        job, _ = bench.ended("mark=run", "print=first-words", f"print={word}", "exit=3")
        bench.until(
            f"inspect_job of job {job.id} to have the line {word!r}, which it printed last, in its evidence",
            lambda: (status := bench.desk.inspect(job.id)) and word in status.evidence,
            lambda: bench.desk.inspect(job.id),
        )

    def test_inspecting_agrees_with_polling(self, bench: Bench) -> None:
        """inspect_job gives a job the same final state and name as poll_jobs."""
        job, polled = bench.ended("mark=run", "exit=3")
        inspected = bench.desk.inspect(job.id)
        assert inspected is not None, f"inspect_job has nothing to tell of job {job.id}, which failed"
        assert (inspected.job_id, inspected.state) == (job.id, JobState.FAILED), f"{inspected} is not {polled}"
        assert inspected.name in {None, job.spec.name}

    def test_a_living_job_can_be_inspected(self, bench: Bench) -> None:
        """inspect_job of a job that runs does not raise, and does not say that it is over."""
        job, _ = bench.running()
        status = bench.desk.inspect(job.id)
        assert status is None or not status.state.is_final, f"job {job.id} runs: {status}"

    def test_inspecting_an_unknown_job_tells_nothing(self, bench: Bench) -> None:
        """inspect_job of a job that the backend does not know returns None."""
        job = bench.submit("mark=run")
        assert bench.desk.inspect(unlike(job.id)) is None
