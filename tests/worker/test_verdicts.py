"""The words for a job that is over: each reason says what happened, what was seen, and what to do."""

from __future__ import annotations

import pytest

from batchport import Blob, JobSpec, JobState, JobStatus, Reason, Resources, Task
from batchport.envelope import Envelope
from batchport.worker import verdicts
from batchport.worker.tracking import Element, Entry, Job, Rules, Verdict

RULES = Rules(settle_s=60, grace_s=30, start_deadline_s=None)
RESOURCES = Resources(memory_mib=512, time_limit_s=90)


def _element(status: JobStatus | None = None, job_id: str = "4711") -> Element:
    job = Job(JobSpec("fit-k3j9x2ab-1-7", "fit", ("python",), {}, RESOURCES), per_element=1, id=job_id)
    return Element(job, 0, {0: Entry(Task("t", Blob.of(b"")))}, id=job_id, status=status)


def _evidence(reason: str | None, evidence: str = "", output: bytes = b"") -> Envelope:
    fields = {"reason": reason, "message": "It died.", "evidence": evidence, "advice": "Look.", "exit_code": None}
    return Envelope("evidence", "fit", parts=(b"", output), fields=fields)


@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [
        (
            JobStatus("4711", JobState.FAILED, reason=Reason.OUT_OF_MEMORY),
            Reason.OUT_OF_MEMORY,
            "was ended because it used more memory than its limit of 512 MiB a task.",
        ),
        (
            JobStatus("4711", JobState.FAILED, reason=Reason.TIMEOUT),
            Reason.TIMEOUT,
            "was ended because it ran longer than its time limit of 90 s a task.",
        ),
        (
            JobStatus("4711", JobState.FAILED, reason=Reason.NODE_LOST),
            Reason.NODE_LOST,
            "ended because the machine that ran it went away.",
        ),
        (
            JobStatus("4711", JobState.FAILED, reason=Reason.PREEMPTED),
            Reason.PREEMPTED,
            "was ended because the backend needed the machine for something else.",
        ),
        (
            JobStatus("4711", JobState.QUEUED, reason=Reason.IMAGE),
            Reason.IMAGE,
            "could not start: its image can't be pulled or run.",
        ),
        (
            JobStatus("4711", JobState.QUEUED, reason=Reason.UNSCHEDULABLE),
            Reason.UNSCHEDULABLE,
            "could not start: nothing at the backend can hold it.",
        ),
        (
            JobStatus("4711", JobState.QUEUED, reason=Reason.CONFIGURATION),
            Reason.CONFIGURATION,
            "could not start: the backend can never run it as it is.",
        ),
        (
            JobStatus("4711", JobState.QUEUED, reason=Reason.HELD),
            Reason.HELD,
            "could not start: it is held at the backend.",
        ),
        (
            JobStatus("4711", JobState.CANCELLED),
            Reason.CANCELLED,
            "was cancelled at the backend, and not by its worker.",
        ),
        (
            JobStatus("4711", JobState.FAILED, exit_code=127),
            Reason.ENVIRONMENT,
            "could not start batchport's runner.",
        ),
        (
            JobStatus("4711", JobState.FAILED, exit_code=1, evidence="/usr/bin/python: No module named batchport"),
            Reason.ENVIRONMENT,
            "could not start batchport's runner.",
        ),
        (JobStatus("4711", JobState.FAILED, exit_code=74), Reason.ENVIRONMENT, "could not use the store."),
        (
            JobStatus("4711", JobState.FAILED, exit_code=139),
            Reason.RUNNER_CRASH,
            "ended with exit code 139 (SIGSEGV) and left no result.",
        ),
        (JobStatus("4711", JobState.FAILED), Reason.RUNNER_CRASH, "ended and left no result."),
    ],
)
def test_a_bad_ending_is_told_by_its_reason(status: JobStatus, reason: Reason, sentence: str) -> None:
    failure = verdicts.failure_of_job(_element(status), Verdict.ENDED, RULES, RESOURCES, "file:///store")
    assert failure.reason is reason
    assert failure.message == f"Job fit-k3j9x2ab-1-7 (4711) {sentence}"
    assert failure.evidence.startswith("the backend says: ")
    assert failure.advice.endswith(".")


def test_a_signal_from_outside_is_a_cancel_where_the_backend_says_cancelled() -> None:
    fields = {"reason": None, "message": "It was told to end by SIGTERM.", "evidence": "", "advice": "Ask the backend."}
    evidence = Envelope("evidence", "fit-k3j9x2ab-1-7", parts=(b"", b""), fields=fields)
    failure = verdicts.failure_of_evidence(_element(JobStatus("4711", JobState.CANCELLED)), RESOURCES, evidence)
    assert failure.reason is Reason.CANCELLED
    assert failure.message == "Job fit-k3j9x2ab-1-7 (4711) was cancelled at the backend, and not by its worker."


def test_a_failure_reads_as_sentence_evidence_and_advice() -> None:
    status = JobStatus("4711", JobState.FAILED, reason=Reason.OUT_OF_MEMORY, evidence="node n7\nKilled", exit_code=137)
    failure = verdicts.failure_of_job(_element(status), Verdict.ENDED, RULES, RESOURCES, "file:///store")
    assert str(failure) == (
        "Job fit-k3j9x2ab-1-7 (4711) was ended because it used more memory than its limit of 512 MiB a task. "
        "[out of memory]\n"
        "  | the backend says: failed, out of memory, exit code 137\n"
        "  | node n7\n"
        "  | Killed\n"
        "  -> Ask for more with Resources(memory_mib=...), or let the task use less."
    )


def test_a_store_that_jobs_cannot_use_is_named() -> None:
    status = JobStatus("4711", JobState.FAILED, exit_code=74)
    failure = verdicts.failure_of_job(_element(status), Verdict.ENDED, RULES, RESOURCES, "s3://bucket/store")
    assert failure.advice == "Check that jobs can read and write s3://bucket/store from where they run."


def test_what_the_runner_knows_is_not_overruled_by_the_backend() -> None:
    element = _element(JobStatus("4711", JobState.FAILED, reason=Reason.NODE_LOST))
    assert verdicts.failure_of_evidence(element, RESOURCES, _evidence("TIMEOUT")).reason is Reason.TIMEOUT


def test_a_job_whose_id_is_its_name_is_named_once() -> None:
    element = _element(job_id="fit-k3j9x2ab-1-7")
    failure = verdicts.failure_of_job(element, Verdict.VANISHED, RULES, RESOURCES, "file:///store")
    assert failure.message.startswith("Job fit-k3j9x2ab-1-7 vanished: ")


@pytest.mark.parametrize(
    ("log", "left"),
    [
        ("log ends with:\nth\nline 2\n\nline 3", []),  # cut off in the middle of a line
        ("log ends with:\nline 3\nslurmstepd: killed", ["log ends with:", "slurmstepd: killed"]),
        ("log is empty", ["log is empty"]),
    ],
)
def test_what_the_log_repeats_of_the_tasks_output_is_told_once(log: str, left: list[str]) -> None:
    status = JobStatus("4711", JobState.FAILED, evidence=f"node n7\n{log}", exit_code=137)
    evidence = _evidence(None, evidence="line 3", output=b"first with\nline 2\n\nline 3\n")
    failure = verdicts.failure_of_evidence(_element(status), RESOURCES, evidence)
    assert failure.evidence.splitlines() == ["line 3", "the backend says: failed, exit code 137", "node n7", *left]
