"""The words for every bad ending: a Failure with its sentence, evidence and advice.

Called by the engine once a task is given up. What the runner saw from inside and what the backend says
from outside are put together here, and nowhere else.
"""

from __future__ import annotations

import signal
import traceback

from batchport.envelope import Envelope
from batchport.errors import Reason
from batchport.jobs import JobState, JobStatus, Resources
from batchport.store import NO_STORE
from batchport.tasks import Failure
from batchport.worker.tracking import CANNOT_START, Element, Job, Rules, Verdict

__all__ = [
    "cancelled",
    "failure_of_evidence",
    "failure_of_exception",
    "failure_of_job",
    "not_submitted",
    "output_of",
    "rejected",
    "unanswered",
    "unreadable",
]

_ADVICE = {
    Reason.OUT_OF_MEMORY: "Ask for more with Resources(memory_mib=...), or let the task use less.",
    Reason.TIMEOUT: "Ask for more with Resources(time_limit_s=...), or make the task shorter.",
    Reason.NODE_LOST: "Run it again; with retries=N the worker does so by itself.",
    Reason.PREEMPTED: "Run it again; with retries=N the worker does so by itself.",
    Reason.IMAGE: "Check the image's name, and that the backend may pull it.",
    Reason.UNSCHEDULABLE: "Ask for less, or have the backend offer machines that are large enough.",
    Reason.CONFIGURATION: "Correct the option that the backend names, and submit again.",
    Reason.HELD: "Ask whoever runs the backend to release it.",
    Reason.CANCELLED: "Submit it again if you did not mean it to end.",
    Reason.ENVIRONMENT: "Check the worker's python= option: jobs run it with -m batchport.runner.",
    Reason.RUNNER_CRASH: "Look at the evidence and at the backend's own log of the job.",
}

_SENTENCES = {
    Reason.OUT_OF_MEMORY: "was ended because it used more memory than its limit{memory}",
    Reason.TIMEOUT: "was ended because it ran longer than its time limit{time}",
    Reason.NODE_LOST: "ended because the machine that ran it went away",
    Reason.PREEMPTED: "was ended because the backend needed the machine for something else",
    Reason.IMAGE: "could not start: its image can't be pulled or run",
    Reason.UNSCHEDULABLE: "could not start: nothing at the backend can hold it",
    Reason.CONFIGURATION: "could not start: the backend can never run it as it is",
    Reason.HELD: "could not start: it is held at the backend",
    Reason.CANCELLED: "was cancelled at the backend, and not by its worker",
    Reason.ENVIRONMENT: "could not start batchport's runner",
    Reason.RUNNER_CRASH: "ended{code} and left no result",
}

_NO_BATCHPORT = "No module named batchport"
"""What Python says, about -m, where the package is not installed."""


def failure_of_exception(envelope: Envelope) -> Failure:
    """Return the failure of a task whose function raised, as the runner committed it."""
    return _from_runner(envelope, Reason.USER_ERROR)


def failure_of_evidence(element: Element, resources: Resources, envelope: Envelope) -> Failure:
    """Return the failure of a task that died without an answer, by the runner's evidence and the backend's word.

    The runner knows what it saw (a time limit, a damaged payload, an exit code); where it saw only a
    signal from outside, the backend's reason says what that was.
    """
    status = element.status
    said = status.reason if status is not None else None
    if status is not None and status.state is JobState.CANCELLED:
        said = said or Reason.CANCELLED
    backend = _backend_says(status, told=f"{envelope.fields['evidence']}\n{output_of(envelope)}\n")
    if envelope.fields.get("reason") is not None or said is None:
        return _from_runner(envelope, Reason.RUNNER_CRASH, backend)
    words = _from_runner(envelope, said)
    evidence = "\n".join(filter(None, (backend, words.message, words.evidence)))
    return Failure(said, _sentence(element, said, resources), evidence, _ADVICE.get(said, words.advice))


def failure_of_job(element: Element, verdict: Verdict, rules: Rules, resources: Resources, store: str) -> Failure:
    """Return the failure of a task whose job is over and left nothing about it."""
    status, backend = element.status, _backend_says(element.status)
    if verdict is Verdict.VANISHED:
        if status is not None:
            last = f"last reported as {status.state.value}"
        elif element.job.adopted:
            last = "it may have ended while no worker was there, and the backend have forgotten it since"
        else:
            last = "never reported since it was submitted"
        return Failure(
            Reason.LOST,
            f"{_job(element)} vanished: the backend no longer knows it, and it left no result.",
            f"{element.omissions} polls in a row did not mention it; {last}.\n{backend}".strip(),
            "Look for the job in the backend's own history; with retries=N the worker runs lost tasks again.",
        )
    if verdict is Verdict.NO_RESULT:
        return Failure(
            Reason.LOST,
            f"{_job(element)} succeeded by the backend's word, but left no result.",
            f"No result came within {rules.grace_s:g} s.\n{backend}".strip(),
            f"Check that {store} is the same store for jobs as for this process.",
        )
    if status is not None and status.exit_code == NO_STORE:
        return Failure(
            Reason.ENVIRONMENT,
            f"{_job(element)} could not use the store.",
            backend,
            f"Check that jobs can read and write {store} from where they run.",
        )
    reason = _reason(status)
    return Failure(reason, _sentence(element, reason, resources), backend, _ADVICE.get(reason, ""))


def cancelled(task_id: str) -> Failure:
    """Return the failure of a task whose host asked for it to end."""
    return Failure(Reason.CANCELLED, f"Task {task_id} was cancelled.")


def rejected(job: Job, error: Exception) -> Failure:
    """Return the failure of a task whose job the backend refused."""
    sentence = f"The backend refused job {job.name}."
    return Failure(Reason.CONFIGURATION, sentence, str(error), _ADVICE[Reason.CONFIGURATION])


def not_submitted(job: Job, error: Exception) -> Failure:
    """Return the failure of a task whose job is certainly not at the backend, however often it was submitted."""
    return Failure(
        Reason.CONFIGURATION,
        f"Job {job.name} could not be submitted: submit_job failed {job.failed_submits} times.",
        "".join(traceback.format_exception(error)),
        "Correct the adapter's submit_job, or have it raise one of batchport's errors that says what to do.",
    )


def unanswered(job: Job, why: object, grace_s: float) -> Failure:
    """Return the failure of a task whose submit had no clear answer, at a backend that can't be asked by name."""
    return Failure(
        Reason.LOST,
        f"Job {job.name} may or may not have been submitted: its submit had no clear answer.",
        f"{why}\nNo result came within {grace_s:g} s, and this adapter has no find_jobs to look the job up.",
        "Look for the job by its name at the backend before you run the task again: it may be running.",
    )


def unreadable(what: str, error: Exception) -> Failure:
    """Return the failure of a task whose function, argument or result can't be read."""
    return Failure(Reason.PAYLOAD, f"{what} can't be read.", str(error), "Run the task again.")


def _job(element: Element) -> str:
    return f"Job {element.name}" if element.name == element.id else f"Job {element.name} ({element.id})"


def _reason(status: JobStatus | None) -> Reason:
    """Return the backend's reason, or the one that follows from how the job ended."""
    if status is None:
        return Reason.RUNNER_CRASH
    if status.reason is not None:
        return status.reason
    if status.state is JobState.CANCELLED:
        return Reason.CANCELLED
    if status.exit_code in CANNOT_START or _NO_BATCHPORT in status.evidence:
        return Reason.ENVIRONMENT
    return Reason.RUNNER_CRASH


def _sentence(element: Element, reason: Reason, resources: Resources) -> str:
    code = element.status.exit_code if element.status is not None else None
    what = _SENTENCES[reason].format(
        memory=f" of {resources.memory_mib} MiB a task" if resources.memory_mib else "",
        time=f" of {resources.time_limit_s} s a task" if resources.time_limit_s else "",
        code="" if code is None else f" with exit code {code}{_signal(code)}",
    )
    return f"{_job(element)} {what}."


def _signal(code: int) -> str:
    """Return the name of the signal that an exit code stands for by the shells' rule, in brackets; "" for none."""
    names = {128 + each.value: each.name for each in signal.Signals}
    return f" ({names[code]})" if code in names else ""


def _from_runner(envelope: Envelope, otherwise: Reason, backend: str = "") -> Failure:
    fields = envelope.fields
    reason = Reason[fields["reason"]] if fields.get("reason") else otherwise
    evidence = "\n".join(filter(None, (str(fields["evidence"]).strip(), backend)))
    exception = envelope.parts[0] or None
    return Failure(reason, str(fields["message"]), evidence, str(fields["advice"]), exception)


def _backend_says(status: JobStatus | None, told: str = "") -> str:
    """Return the backend's word and evidence, without the lines, whole or cut off in front, that `told` has."""
    if status is None:
        return ""
    words = [status.state.value, status.reason.value if status.reason else ""]
    words.append(f"exit code {status.exit_code}" if status.exit_code is not None else "")
    lines = [line for line in status.evidence.strip().splitlines() if f"{line}\n" not in told]
    if told and lines and lines[-1].endswith(":"):
        lines.pop()  # it announced what is told already
    return "\n".join((f"the backend says: {', '.join(filter(None, words))}", *lines))


def output_of(envelope: Envelope) -> str:
    """Return what the task printed, from any of the runner's envelopes about it."""
    return envelope.parts[1].decode(errors="replace") if len(envelope.parts) > 1 else ""
