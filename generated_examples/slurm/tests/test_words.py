"""What Slurm says is read right, and what it is asked for is what the job needs; no cluster is needed here."""

from __future__ import annotations

import pytest
from batchport import (
    BackendFullError,
    BackendUnusableError,
    CommandError,
    JobSpec,
    JobState,
    RejectedJobError,
    Resources,
    TransientBackendError,
)

from batchport_slurm.adapter import Adapter
from batchport_slurm.options import Options
from batchport_slurm.states import BLOCKED_BY, ENDED_BY, STATES, refusal, status


@pytest.mark.parametrize("word", STATES)
def test_a_state_of_the_queue_is_the_contracts(word: str) -> None:
    read = status(f"7|{word}|fit-1|0|None||")
    assert (read.job_id, read.name, read.state) == ("7", "fit-1", STATES[word])
    assert read.reason is ENDED_BY.get(word)
    assert read.exit_code == (0 if read.state.is_final else None)
    assert read.evidence == f"Slurm says {word}"


def test_a_state_that_is_not_known_is_running_with_slurms_word_for_it() -> None:
    read = status("7|NEW_IN_SLURM|fit-1|0|None|n1|")
    assert (read.state, read.evidence) == (JobState.RUNNING, "Slurm says NEW_IN_SLURM, on n1")


@pytest.mark.parametrize("why", BLOCKED_BY)
def test_a_job_that_cannot_start_says_why(why: str) -> None:
    read = status(f"7_3|PENDING|fit-1|0|{why}, or more||")
    assert (read.job_id, read.state, read.reason) == ("7_3", JobState.QUEUED, BLOCKED_BY[why])
    assert read.evidence == f"Slurm says PENDING, {why}, or more"


@pytest.mark.parametrize("why", ["Priority", "Resources", "BeginTime", "QOSMaxJobsPerUserLimit"])
def test_a_job_that_only_waits_for_its_turn_is_not_blocked(why: str) -> None:
    assert status(f"7|PENDING|fit-1|0|{why}||").reason is None


@pytest.mark.parametrize(
    ("ended", "exit_code"),
    [("768", 3), ("51200", 200), ("9", 137), ("139", 139), ("0", 0), ("3:0", 3), ("0:9", 137), ("0:0", 0)],
    ids=["squeue: 3", "squeue: 200", "squeue: SIGKILL", "squeue: SIGSEGV and a core", "squeue: 0", "3", "SIGKILL", "0"],
)
def test_an_exit_code_is_read_as_squeue_and_as_sacct_write_it(ended: str, exit_code: int) -> None:
    assert status(f"7|FAILED|fit-1|{ended}|None|n1|").exit_code == exit_code


def test_who_cancelled_a_job_is_in_its_evidence() -> None:
    read = status("7|CANCELLED by 1000|fit-1|0:0|None|n2")
    assert (read.state, read.evidence) == (JobState.CANCELLED, "Slurm says CANCELLED by 1000, on n2")


def test_a_job_whose_name_accounting_never_heard_has_none() -> None:
    assert status("7|FAILED|allocation|3:0|None|n1").name is None


def test_elements_that_never_started_are_told_by_their_arrays_line() -> None:
    assert status("7_[2-4]|CANCELLED by 0|fit-1|0:0|None|None assigned").job_id == "7"


REFUSED = "Batch job submission failed: "


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (f"{REFUSED}Invalid partition name specified", RejectedJobError),
        (f"{REFUSED}Invalid account or account/partition combination specified", RejectedJobError),
        (f"{REFUSED}Requested node configuration is not available", RejectedJobError),
        ("sbatch: unrecognized option '--bogus'", RejectedJobError),
        (f"QOSMaxSubmitJobPerUserLimit\n{REFUSED}Job violates accounting/QOS policy", BackendFullError),
        (f"AssocMaxSubmitJobLimit\n{REFUSED}Job violates accounting/QOS policy", BackendFullError),
        ("Slurm temporarily unable to accept job, sleeping and retrying.", BackendFullError),
        (f"{REFUSED}Unable to contact slurm controller (connect failure)", TransientBackendError),
        (f"{REFUSED}Invalid authentication credential", BackendUnusableError),
        ("No such file or directory: sbatch", BackendUnusableError),
        (f"{REFUSED}Socket timed out on send/recv operation", CommandError),
        (f"{REFUSED}Zero Bytes were transmitted or received", CommandError),
        ("no answer within 60 s; it was killed", CommandError),
        ("words that no Slurm has said yet", CommandError),
    ],
)
def test_what_a_failed_submit_means(words: str, kind: type[Exception]) -> None:
    error = refusal(CommandError(("sbatch",), 1, "", words))
    assert type(error) is kind, "a CommandError is looked up by the job's name, since the job may be there"
    assert words in str(error)


def test_a_job_asks_for_what_it_needs() -> None:
    adapter = Adapter(Options(partition="long", account="lab", qos="low", constraint="ssd", logs="/logs"))
    need = Resources(cpus=2, memory_mib=500, gpus=1, time_limit_s=61, extra={"exclusive": True, "mem": None, "nice": 5})
    job = JobSpec("fit-1", "fit", ("python", "-m", "batchport.runner"), {}, need, size=10)
    assert sorted(adapter.flags(job)) == [
        "--account=lab",
        "--array=0-9",
        "--constraint=ssd",
        "--cpus-per-task=2",
        "--exclusive",
        "--export=ALL",
        "--gres=gpu:1",
        "--job-name=fit-1",
        "--nice=5",
        "--no-requeue",
        "--ntasks=1",
        "--output=/logs/%A_%a.log",
        "--partition=long",
        "--qos=low",
        "--time=2",
    ]


def test_a_job_that_asks_for_nothing_leaves_the_choice_to_slurm() -> None:
    job = JobSpec("fit-1", "fit", ("python",), {}, Resources())
    assert sorted(Adapter(Options(logs="/logs")).flags(job)) == [
        "--cpus-per-task=1",
        "--export=ALL",
        "--job-name=fit-1",
        "--no-requeue",
        "--ntasks=1",
        "--output=/logs/%j.log",
    ]
