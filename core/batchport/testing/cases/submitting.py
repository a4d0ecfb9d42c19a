"""Cases about submit_job: what was asked for is what runs, once."""

from __future__ import annotations

import base64
import secrets
import string

import pytest

from batchport.errors import RejectedJobError
from batchport.jobs import JobState
from batchport.testing.bench import Bench
from batchport.testing.cases.base import Cases

__all__ = ["SubmittingCases"]

CHARACTERS = string.ascii_letters + string.digits + "_./:=+,@%-"
"""All that a command or the environment may hold, by the contract."""


class SubmittingCases(Cases):
    """A submitted job runs its command once, with its environment, under its name."""

    def test_a_job_runs_once(self, bench: Bench) -> None:
        """A submitted job's command runs, once, and to its end."""
        job, status = bench.ended("mark=run", "sleep=0.2", "mark=end")
        runs, ends = job.marks.read("run"), job.marks.read("end")
        assert len(runs) == 1, f"job {job.id} was submitted once and ran {len(runs)} times: {runs}"
        assert len(ends) == 1, f"job {job.id} began and did not come to its end, and is reported as {status}"

    def test_the_command_arrives_unchanged(self, bench: Bench) -> None:
        """The words of the command arrive as they are, whatever of the contract's characters they hold."""
        words = [f"say={CHARACTERS}", "say=--name=%d", "say=a,b:c@d", "mark=run"]
        job = bench.submit(*words)
        assert bench.marked(job, "run").words[2:] == words

    def test_the_environment_arrives_unchanged(self, bench: Bench) -> None:
        """Variables arrive as they are, whatever of the contract's characters they hold."""
        env = {"PROBE_ALL": CHARACTERS, "PROBE_TURNED": CHARACTERS[::-1], "PROBE_SHORT": "1"}
        job = bench.submit("mark=run", env=env)
        assert bench.marked(job, "run").env == env

    def test_an_inline_payload_arrives_whole(self, bench: Bench) -> None:
        """A variable that holds `limits.inline_bytes` bytes in base64 arrives whole."""
        size = bench.desk.adapter.limits.inline_bytes
        if size == 0:
            pytest.skip("inline_bytes is 0: payloads travel through the store alone")
        payload = base64.b64encode(secrets.token_bytes(size)).decode()
        job = bench.submit("mark=run", env={"PROBE_PAYLOAD": payload})
        arrived = bench.marked(job, "run").env.get("PROBE_PAYLOAD", "")
        assert arrived == payload, f"{len(arrived)} of {len(payload)} characters arrived"

    def test_a_name_of_full_length_is_kept(self, bench: Bench) -> None:
        """A name of `limits.name_length` characters is accepted, and is the one that poll_jobs reports, if any."""
        marks = bench.marks()
        name = f"probe-{marks.key}-".ljust(bench.desk.adapter.limits.name_length, "x")
        job, _ = bench.running(name=name)
        status = bench.until(f"poll_jobs to report job {job.id}", lambda: bench.status(job))
        assert status.name in {None, name}, "the worker takes a status of another name for another job's"

    def test_names_that_differ_at_their_end_are_two_jobs(self, bench: Bench) -> None:
        """Two jobs whose names differ in the last character only have two ids, and both run."""
        stem = f"probe-{bench.marks().key}-"
        jobs = [bench.submit("mark=run", name=stem + end) for end in "ab"]
        assert jobs[0].id != jobs[1].id, f"two jobs, {stem}a and {stem}b, got the same id {jobs[0].id!r}"
        bench.verdicts(jobs)
        assert [len(job.marks.read("run")) for job in jobs] == [1, 1], "each must have run once"

    def test_a_name_submitted_twice_is_seen(self, bench: Bench) -> None:
        """A second submit of one name is refused, or gives the first job's id, or makes a job that find_jobs shows."""
        spec, marks = bench.probe("mark=run", "hold")
        first = bench.enter(spec, marks)
        bench.marked(first, "run")
        try:
            second = bench.enter(spec, marks)
        except Exception:  # noqa: BLE001 - any error will do: the worker then looks the job up by name
            return
        if second.id == first.id:
            runs = marks.read("run")
            assert len(runs) == 1, f"a second submit gave the first job's id {first.id} and ran it again: {runs}"
        elif bench.desk.has("find_jobs"):
            bench.until(
                f"find_jobs to show both jobs named {spec.name}, {first.id} and {second.id}",
                lambda: bench.desk.find([spec.name]) == sorted((spec.name, each.id) for each in (first, second)),
                lambda: bench.desk.find([spec.name]),
            )
        bench.desk.cancel(second.id)

    def test_submitting_does_not_wait(self, bench: Bench) -> None:
        """submit_job returns while its job has yet to end."""
        job = bench.submit("hold", "mark=end")
        assert not job.marks.read("end")
        job.marks.release()
        assert bench.verdict(job).state is JobState.SUCCEEDED

    def test_resources_it_cannot_give_are_refused_in_words(self, bench: Bench) -> None:
        """A job that asks for what the backend can never give is a RejectedJobError that says so, and never runs."""
        if bench.backend.refused is None:
            pytest.skip("Backend.refused is None: it names no resources that the backend refuses")
        spec, marks = bench.probe("mark=run", resources=bench.backend.refused)
        refusal: Exception | None = None
        try:
            bench.enter(spec, marks)
        except Exception as error:  # noqa: BLE001 - an adapter under test may raise anything
            refusal = error
        assert isinstance(refusal, RejectedJobError), (
            f"{spec.resources} must be refused with a RejectedJobError, and "
            + ("the job was accepted" if refusal is None else f"submit_job raised {refusal!r}")
        )
        assert str(refusal).strip(), "the error must have the backend's words: they are all that the user sees"
        assert not marks.read("run")
