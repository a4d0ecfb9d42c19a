"""Broken copies of LocalAdapter, each with one defect that real adapters have had.

`test_adapters.py` proves that each defect is seen by the case that is about it, and `matrix.py` prints which
other cases see it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchport.backends import _supervisor
from batchport.backends.local import LocalAdapter, Options
from batchport.errors import Reason, RejectedJobError
from batchport.jobs import Check, JobSpec, JobState, JobStatus, Resources
from batchport.testing import Backend

__all__ = ["CONTROL", "MUTANTS", "Mutant", "backend"]

CONTROL = "test_a_job_runs_once"

MUTANTS: dict[type[Mutant], tuple[str, ...]] = {}
"""Each broken adapter, with the cases that must fail on it; its `control` is a case that must not."""


def killed_by(*cases: str) -> Callable[[type[Mutant]], type[Mutant]]:
    def enter(kind: type[Mutant]) -> type[Mutant]:
        MUTANTS[kind] = tuple(f"test_{case}" for case in cases)
        return kind

    return enter


class Mutant(LocalAdapter):
    """LocalAdapter as it is, with one place where all that it reports can be changed."""

    control = CONTROL

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        return [self.report(status) for status in super().poll_jobs(job_ids)]

    def inspect_job(self, job_id: str) -> JobStatus | None:
        status = super().inspect_job(job_id)
        return self.report(status) if status else None

    def report(self, status: JobStatus) -> JobStatus:
        """Return what is said of a job, in polls and when it is inspected."""
        return status

    def is_over(self, job_id: str) -> bool:
        return any(status.state.is_final for status in LocalAdapter.poll_jobs(self, [job_id]))


def backend(kind: type[LocalAdapter], folder: Path) -> Backend:
    """Return what the conformance suite must know to run on one of these."""
    options = Options(folder=str(folder / "jobs"), slots=3)
    return Backend(lambda: kind(options), str(folder / "store"), sys.executable, refused=Resources(gpus=1))


@killed_by("an_unknown_job_is_not_reported")
class VanishedIsSuccess(Mutant):
    """A job that the backend does not know is taken to have ended well (Parsl on Slurm, PSI/J)."""

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        known = {status.job_id: status for status in super().poll_jobs(job_ids)}
        return [known.get(job_id, JobStatus(job_id, JobState.SUCCEEDED)) for job_id in job_ids]


@killed_by("an_unknown_job_is_not_reported")
class VanishedIsFailure(Mutant):
    """A job that the backend does not know, or not yet, is reported as failed."""

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        known = {status.job_id: status for status in super().poll_jobs(job_ids)}
        return [known.get(job_id, JobStatus(job_id, JobState.FAILED)) for job_id in job_ids]


@killed_by("a_full_poll_is_answered_whole")
class CutsListOfIds(Mutant):
    """Ids beyond the hundredth of one poll are dropped (describe_jobs takes 100)."""

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        return super().poll_jobs(job_ids[:100])


@killed_by("success_is_reported_after_the_end_and_not_before")
class FailedPollIsFailure(Mutant):
    """A poll that fails, as every third one does here, is reported as failed jobs."""

    control = "test_the_environment_arrives_unchanged"
    polls = 0

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        self.polls += 1
        if self.polls % 3 == 0:
            return [JobStatus(job_id, JobState.FAILED, evidence="connection reset") for job_id in job_ids]
        return super().poll_jobs(job_ids)


@killed_by("a_verdict_stays")
class FailedPollIsEmpty(Mutant):
    """A poll that fails, as every third one does here, gives an empty answer instead of raising."""

    polls = 0

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        self.polls += 1
        return [] if self.polls % 3 == 0 else super().poll_jobs(job_ids)


@killed_by("a_verdict_stays")
class ForgetsOnceTold(Mutant):
    """The end of a job is reported once, and then no more."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.told: set[str] = set()

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        fresh = [status for status in super().poll_jobs(job_ids) if status.job_id not in self.told]
        self.told |= {status.job_id for status in fresh if status.state.is_final}
        return fresh


@killed_by("success_is_reported_after_the_end_and_not_before", "a_running_job_is_reported_as_running")
class RunningIsSuccess(Mutant):
    """A state that is not over yet counts as success (COMPLETING, Metaflow on Slurm)."""

    control = "test_the_environment_arrives_unchanged"

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, state=JobState.SUCCEEDED) if status.state is JobState.RUNNING else status


@killed_by("a_running_job_is_reported_as_running")
class RunningIsQueued(Mutant):
    """A job that runs is reported as one that waits."""

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, state=JobState.QUEUED) if status.state is JobState.RUNNING else status


@killed_by("an_exit_code_is_reported", "a_signal_is_reported", "a_command_that_cannot_start_is_a_failure")
class SwallowsExitCode(Mutant):
    """Whatever has ended has succeeded (psij-python#401)."""

    def report(self, status: JobStatus) -> JobStatus:
        failed = status.state is JobState.FAILED
        return replace(status, state=JobState.SUCCEEDED, exit_code=0) if failed else status


@killed_by("an_exit_code_is_reported", "a_signal_is_reported")
class LosesExitCode(Mutant):
    """A failed job's exit code is not reported."""

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, exit_code=None)


@killed_by("a_signal_is_reported")
class MistakesSignal(Mutant):
    """The signal that ended a job is reported as it is, without the 128 that makes it an exit code."""

    def report(self, status: JobStatus) -> JobStatus:
        code = status.exit_code
        return replace(status, exit_code=code - 128) if code is not None and code > 128 else status


@killed_by("a_time_limit_is_kept")
class IgnoresTimeLimit(Mutant):
    """The time limit is not passed on."""

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, resources=replace(job.resources, time_limit_s=None)))


@killed_by("a_time_limit_is_kept")
class TimeoutIsCancelled(Mutant):
    """A job that met its time limit is reported as cancelled by somebody."""

    def report(self, status: JobStatus) -> JobStatus:
        late = status.reason is Reason.TIMEOUT
        return replace(status, state=JobState.CANCELLED, reason=Reason.CANCELLED) if late else status


@killed_by("a_memory_limit_is_told_from_a_crash")
class OutOfMemoryIsPlainFailure(Mutant):
    """A job that used too much memory just failed, for no known reason."""

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, reason=None) if status.reason is Reason.OUT_OF_MEMORY else status


@killed_by("names_that_differ_at_their_end_are_two_jobs", "a_name_of_full_length_is_kept")
class CutsNames(Mutant):
    """Names are cut to twelve characters, and collide (the seed's scaler-{id[:12]})."""

    control = "test_submitting_does_not_wait"

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, name=job.name[:12]))


@killed_by("a_job_runs_once", "more_jobs_than_one_poll_holds_all_end")
class SubmitsTwice(Mutant):
    """A submit is sent again inside, although the first one had worked (botocore's default retries)."""

    control = "test_cancelling_an_ended_job_is_silent"

    def submit_job(self, job: JobSpec) -> str:
        super().submit_job(replace(job, name=f"{job.name[:-1]}-"))
        return super().submit_job(job)


@killed_by("submitting_does_not_wait", "a_running_job_is_reported_as_running")
class SubmitWaits(Mutant):
    """submit_job returns when its job has ended."""

    def submit_job(self, job: JobSpec) -> str:
        job_id = super().submit_job(job)
        while not self.is_over(job_id):
            time.sleep(0.02)
        return job_id


@killed_by("an_inline_payload_arrives_whole")
class CutsEnvironment(Mutant):
    """A variable is cut at 4 KiB."""

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, env={name: value[:4096] for name, value in job.env.items()}))


@killed_by("the_environment_arrives_unchanged")
class UnquotesEnvironment(Mutant):
    """Percent signs in variables are eaten on the way."""

    def submit_job(self, job: JobSpec) -> str:
        env = {name: value.replace("%", "") for name, value in job.env.items()}
        return super().submit_job(replace(job, env=env))


@killed_by("resources_it_cannot_give_are_refused_in_words")
class RefusesWithoutWords(Mutant):
    """A refusal is an error like any other, so that the worker must take the submit for ambiguous."""

    def submit_job(self, job: JobSpec) -> str:
        try:
            return super().submit_job(job)
        except RejectedJobError:
            raise RuntimeError("submit failed") from None


@killed_by("resources_it_cannot_give_are_refused_in_words")
class DropsWhatItCannotGive(Mutant):
    """Resources that the backend does not have are left out, and the job runs without them."""

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, resources=replace(job.resources, gpus=0)))


@killed_by("cancelling_ends_the_process", "a_cancelled_job_that_waited_never_runs")
class ForgetsCancel(Mutant):
    """A cancel does nothing (toil#5082)."""

    def cancel_job(self, job_id: str) -> None:
        pass


@killed_by("cancelling_ends_the_process", "cancelling_ends_what_the_job_has_started")
class OnlyMarksCancelled(Mutant):
    """A cancelled job is reported as such, and goes on."""

    def cancel_job(self, job_id: str) -> None:
        if (folder := self.jobs / job_id).exists():
            (folder / "said-cancelled").touch()

    def report(self, status: JobStatus) -> JobStatus:
        marked = not status.state.is_final and (self.jobs / status.job_id / "said-cancelled").exists()
        return replace(status, state=JobState.CANCELLED) if marked else status


@killed_by("a_cancelled_job_that_waited_never_runs")
class CancelsOnlyWhatRuns(Mutant):
    """A job that waits cannot be cancelled."""

    def cancel_job(self, job_id: str) -> None:
        if any(status.state is not JobState.QUEUED for status in super().poll_jobs([job_id])):
            super().cancel_job(job_id)


@killed_by("a_cancelled_job_is_no_success", "a_cancelled_job_that_waited_never_runs")
class CancelledIsSuccess(Mutant):
    """A cancelled job is reported as one that ended well."""

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, state=JobState.SUCCEEDED) if status.state is JobState.CANCELLED else status


@killed_by("cancelling_an_ended_job_is_silent", "cancelling_an_ended_job_keeps_its_verdict")
class CancelRaisesForEnded(Mutant):
    """Cancelling a job that is over raises."""

    def cancel_job(self, job_id: str) -> None:
        if self.is_over(job_id):
            raise LookupError(f"no job {job_id} to cancel")
        super().cancel_job(job_id)


@killed_by("cancelling_an_unknown_job_is_silent")
class CancelRaisesForUnknown(Mutant):
    """Cancelling a job that the backend does not know raises."""

    def cancel_job(self, job_id: str) -> None:
        if not list(super().poll_jobs([job_id])):
            raise LookupError(f"Invalid job id {job_id}")
        super().cancel_job(job_id)


@killed_by("cancelling_an_ended_job_keeps_its_verdict")
class CancelRewritesVerdict(Mutant):
    """A job that is over is reported as cancelled once somebody has cancelled it."""

    def report(self, status: JobStatus) -> JobStatus:
        cancelled = (self.jobs / status.job_id / "cancel").exists()
        return replace(status, state=JobState.CANCELLED) if cancelled and status.state.is_final else status


@killed_by("cancelling_one_job_leaves_the_others")
class CancelsAll(Mutant):
    """A cancel ends every job of the worker."""

    def cancel_job(self, job_id: str) -> None:
        for folder in self.jobs.iterdir():
            super().cancel_job(folder.name)


@killed_by("many_are_cancelled_at_once")
class CancelsFirstOfMany(Mutant):
    """Of many jobs to cancel, those after the first that is over are left."""

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            if self.is_over(job_id):
                return
            self.cancel_job(job_id)


@killed_by("a_fresh_adapter_polls_the_jobs_of_another", "a_fresh_adapter_cancels_the_jobs_of_another")
class KeepsTable(Mutant):
    """Ids are kept in the adapter's memory, and mean nothing after a restart (executorlib#412)."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.table: set[str] = set()

    def submit_job(self, job: JobSpec) -> str:
        self.table.add(job.name)
        return super().submit_job(job)

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        return super().poll_jobs([job_id for job_id in job_ids if job_id in self.table])

    def cancel_job(self, job_id: str) -> None:
        if job_id in self.table:
            super().cancel_job(job_id)


@killed_by("jobs_live_on_when_their_adapter_is_closed")
class CloseEndsJobs(Mutant):
    """Closing the adapter ends its jobs."""

    def close(self) -> None:
        for folder in self.jobs.iterdir():
            self.cancel_job(folder.name)


@killed_by("an_end_that_was_not_polled_is_told_after_a_restart")
class CloseForgetsEnds(Mutant):
    """Closing the adapter removes all that is known of jobs that ended, polled or not."""

    def close(self) -> None:
        for folder in self.jobs.iterdir():
            if any(status.state.is_final for status in self._statuses([folder.name])):
                shutil.rmtree(folder)


@killed_by("an_ended_job_is_found_by_its_name")
class FindsOnlyLiving(Mutant):
    """A job that is over is not found by its name, and so would be submitted again."""

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        return [(name, job_id) for name, job_id in super().find_jobs(names) if not self.is_over(job_id)]


@killed_by("an_unknown_name_is_left_out")
class FindsByPrefix(Mutant):
    """A name is found if a job's name only begins with it."""

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        folders = [folder.name for folder in self.jobs.iterdir()]
        return [(name, job_id) for name in names for job_id in folders if job_id.startswith(name)]


@killed_by("the_log_of_a_failed_job_is_evidence")
class LosesLog(Mutant):
    """A failed job's log is not looked at (nextflow PR#2146)."""

    def inspect_job(self, job_id: str) -> JobStatus | None:
        return next(iter(self.poll_jobs([job_id])), None)


@killed_by("the_log_of_a_failed_job_is_evidence")
class ShowsLogsBeginning(Mutant):
    """The first line of the log is shown, where the last ones tell what happened."""

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, evidence="\n".join(status.evidence.splitlines()[:3]))


@killed_by("inspecting_an_unknown_job_tells_nothing")
class InspectsUnknown(Mutant):
    """An unknown job is told about as if it were there."""

    def inspect_job(self, job_id: str) -> JobStatus | None:
        return super().inspect_job(job_id) or JobStatus(job_id, JobState.FAILED)


@killed_by("inspecting_agrees_with_polling")
class InspectsOtherwise(Mutant):
    """A job's verdict is another one when it is inspected."""

    def inspect_job(self, job_id: str) -> JobStatus | None:
        status = super().inspect_job(job_id)
        return replace(status, state=JobState.RUNNING) if status else None


@killed_by("a_living_job_can_be_inspected")
class InspectsTooSoon(Mutant):
    """A job that still runs is told about as one that failed."""

    def inspect_job(self, job_id: str) -> JobStatus | None:
        status = super().inspect_job(job_id)
        return replace(status, state=JobState.FAILED) if status else None


@killed_by("polling_nothing_gives_nothing")
class CannotPollNothing(Mutant):
    """An empty list of ids makes a command line that the backend refuses."""

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        assert job_ids, "squeue: error: Unrecognized option: -j"
        return super().poll_jobs(job_ids)


@killed_by("the_command_arrives_unchanged")
class SplitsWords(Mutant):
    """Words of the command are split at commas on the way."""

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, command=tuple(" ".join(job.command).replace(",", " ").split())))


@killed_by("a_name_submitted_twice_is_seen")
class HidesSecondJob(Mutant):
    """A second job of one name is made, and cannot be found by that name."""

    def submit_job(self, job: JobSpec) -> str:
        taken = any(super().find_jobs([job.name]))
        return super().submit_job(replace(job, name=f"{job.name}-2") if taken else job)


@killed_by("a_living_job_is_found_by_its_name")
class FindsOnlyEnded(Mutant):
    """A job is found by its name only once it is in the archive."""

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        return [(name, job_id) for name, job_id in super().find_jobs(names) if self.is_over(job_id)]


@killed_by("a_fresh_adapter_finds_the_jobs_of_another")
class FindsOnlyItsOwn(Mutant):
    """Only names that this very adapter has submitted are found."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.names: set[str] = set()

    def submit_job(self, job: JobSpec) -> str:
        self.names.add(job.name)
        return super().submit_job(job)

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        return super().find_jobs([name for name in names if name in self.names])


@killed_by("cancelling_twice_is_silent")
class CannotCancelTwice(Mutant):
    """Cancelling a job that was cancelled already raises."""

    def cancel_job(self, job_id: str) -> None:
        if (self._folder(job_id) / "cancel").exists():
            raise LookupError(f"job {job_id} is being cancelled")
        super().cancel_job(job_id)


@killed_by("cancelling_ends_a_job_that_does_not_listen")
class AsksOnly(Mutant):
    """A cancel is a SIGTERM to the job, and nothing follows it."""

    control = "test_a_cancelled_job_is_no_success"

    def cancel_job(self, job_id: str) -> None:
        record = _supervisor.read_record(str(self._folder(job_id))) or {}
        if "job" in record and record["state"] not in _supervisor.FINAL:
            os.killpg(int(record["job"]), signal.SIGTERM)


@killed_by("what_jobs_need_is_in_place")
class DoubtsItself(Mutant):
    """check() finds fault with a backend on which jobs run."""

    def check(self) -> Iterable[Check]:
        return [Check("the queue", False, "ask the administrator")]


@dataclass
class Changeable:
    """Options as they must not be."""

    folder: str = field(default="")


@killed_by("options_are_a_frozen_dataclass")
class HasChangeableOptions(Mutant):
    """The options are a dataclass that anybody may change."""

    options_type = Changeable  # type: ignore[assignment]  # that is the defect


@killed_by("indices_count_from_array_base")
class CountsFromOne(Mutant):
    """Indices are said to count from one, and count from nought."""

    limits = replace(LocalAdapter.limits, array_base=1)


@killed_by("each_element_runs_once", "a_map_runs_as_an_array")
class GivesOneIndexToAll(Mutant):
    """Every element is told that it is the first."""

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, setup=f"export {_supervisor.INDEX}=0") if job.size > 1 else job)


@killed_by("an_array_of_full_size_ends")
class CutsArrays(Mutant):
    """Elements beyond the tenth are dropped, although `limits.array_size` allows them."""

    def submit_job(self, job: JobSpec) -> str:
        return super().submit_job(replace(job, size=min(job.size, 10)))


@killed_by("elements_fates_are_told_apart")
class GivesAllTheArraysVerdict(Mutant):
    """Each element is reported as its array is: one failure fails all."""

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        arrays = {job_id: job_id.partition(":")[0] for job_id in job_ids}
        said = {status.job_id: status for status in super().poll_jobs(sorted({*arrays.values()}))}
        return [replace(said[array], job_id=each) for each, array in arrays.items() if array in said]


@killed_by("elements_fates_are_told_apart")
class LosesElementsExitCode(Mutant):
    """The exit code of an element is not reported."""

    def report(self, status: JobStatus) -> JobStatus:
        return replace(status, exit_code=None) if ":" in status.job_id else status


@killed_by("elements_are_reported_by_their_ids")
class NamesElementsOtherwise(Mutant):
    """`element_id` is not how the backend names an element."""

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}[{index}]"

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        known = [job_id for job_id in job_ids if "[" not in job_id]
        elements = [f"{job_id}:{index}" for job_id in known for index in range(self._size(job_id))]
        return super().poll_jobs([*known, *elements])


@killed_by("an_array_is_over_when_its_last_element_is")
class EndsWithFirstElement(Mutant):
    """An array is reported as over once one of its elements is."""

    def report(self, status: JobStatus) -> JobStatus:
        elements = [LocalAdapter.element_id(self, status.job_id, index) for index in range(self._size(status.job_id))]
        over = not status.state.is_final and any(map(self.is_over, elements))
        return replace(status, state=JobState.SUCCEEDED) if over else status


@killed_by("cancelling_one_element_leaves_the_others", "one_task_of_a_map_is_cancelled")
class CancelsWholeArray(Mutant):
    """The cancel of one element cancels its array."""

    def cancel_job(self, job_id: str) -> None:
        super().cancel_job(job_id.partition(":")[0])


@killed_by("cancelling_an_array_ends_all_its_elements")
class CancelsFirstElement(Mutant):
    """The cancel of an array cancels its first element."""

    def cancel_job(self, job_id: str) -> None:
        super().cancel_job(self.element_id(job_id, 0) if self._size(job_id) else job_id)


@killed_by("an_array_is_found_once_by_its_name")
class FindsElements(Mutant):
    """An array is found by its name once for each element."""

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        for name, job_id in super().find_jobs(names):
            yield from [(name, self.element_id(job_id, index)) for index in range(self._size(job_id))] or [
                (name, job_id)
            ]


@killed_by("the_log_of_a_failed_element_is_evidence")
class ShowsArraysLog(Mutant):
    """An element's log is looked for where its array has one, and that is empty."""

    def inspect_job(self, job_id: str) -> JobStatus | None:
        status = super().inspect_job(job_id.partition(":")[0])
        own = next(iter(self.poll_jobs([job_id])), None)
        return replace(own, evidence=status.evidence) if own and status else own
