"""What is known of a job and of each of its elements, and when that is enough for a verdict.

Called by the other parts of the worker. Pure: times come in as numbers, nothing is asked or sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from batchport.errors import Reason
from batchport.jobs import JobSpec, JobState, JobStatus
from batchport.store import NO_STORE
from batchport.tasks import Task

__all__ = ["CANNOT_START", "Element", "Entry", "Job", "Rules", "Verdict"]

CANNOT_START = (126, 127)
"""A shell's exit codes for a command that can't be run, and for one that is not there.
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html#tag_19_08_02"""

_ALL_COMMITTED = (0, 1)
"""The runner's exit codes that say: whatever became of the tasks is in the store."""
_NEVER_STARTED = (NO_STORE, *CANNOT_START)
_START_DEADLINE_S = 600.0
_CANCEL_AGAIN_S = 60.0
_LINGER_S = 60.0


@dataclass(slots=True, eq=False)
class Entry:
    """One task on its way.

    `attempts` counts jobs that started it, `unstarted` those that died before they did. `shared` are the
    keys of the blobs that it keeps in the store. `offered` is whether the host has given the task itself,
    and not only an earlier start of the worker its id. `held` is whether its outcome waits for that, and
    `answered` whether its result was seen meanwhile.
    """

    task: Task
    attempts: int = 0
    unstarted: int = 0
    cancelled: bool = False
    shared: tuple[str, ...] = ()
    offered: bool = True
    held: bool = False
    answered: bool = False


class Verdict(Enum):
    """Why an element is over although some of its tasks have no result."""

    ENDED = "ended"
    """The backend says that it is over."""
    NO_RESULT = "no result"
    """It ended well by the backend's word, and the grace passed without a result."""
    VANISHED = "vanished"
    """The backend no longer knows it."""
    BLOCKED = "blocked"
    """It lives, cannot start, and its start deadline has passed."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How long is long enough, in seconds. `start_deadline_s` None: 600 for IMAGE and CONFIGURATION, else never."""

    settle_s: float
    grace_s: float
    start_deadline_s: float | None

    def start_deadline(self, reason: Reason) -> float | None:
        """Return how long an element may be blocked for this reason; None for ever."""
        if self.start_deadline_s is not None or reason not in {Reason.IMAGE, Reason.CONFIGURATION}:
            return self.start_deadline_s
        return _START_DEADLINE_S


@dataclass(slots=True, eq=False)
class Job:
    """One job: a plain one of one element, or an array. `per_element` tasks are in each element but the last."""

    spec: JobSpec
    per_element: int
    id: str | None = None
    failed_submits: int = 0
    elements: list[Element] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    """The keys of all that must go from the store with the job."""
    adopted: bool = False
    """Whether an earlier start of the worker made it."""
    delivering: int = 0
    """How many of its tasks have an outcome that the host is just taking."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def entries(self) -> list[Entry]:
        """All tasks of the job that have no outcome."""
        return [entry for element in self.elements for entry in element.entries.values()]

    @property
    def is_settled(self) -> bool:
        """Whether every task of the job has its outcome, and the host has them all."""
        return not self.delivering and not any(element.entries for element in self.elements)

    @property
    def all_cancelled(self) -> bool:
        """Whether nobody wants any of the tasks that are left."""
        return all(element.all_cancelled for element in self.elements)

    @property
    def may_end(self) -> bool:
        """Whether nothing is left to be done about the job: settled, and not at the backend any more."""
        return self.is_settled and not any(element.lingers for element in self.elements)

    def element_of(self, place: int) -> Element | None:
        """Return the element that runs a place; None if there is no such place."""
        index = place // self.per_element
        return self.elements[index] if index < len(self.elements) else None


@dataclass(slots=True, eq=False)
class Element:
    """One element. `entries` holds its tasks without an outcome, by place; when it is empty it is settled."""

    job: Job
    index: int
    entries: dict[int, Entry]
    id: str | None = None
    status: JobStatus | None = None
    seen_at: float | None = None
    omissions: int = 0
    omitted_since: float = 0.0
    final_since: float = 0.0
    blocked_since: float | None = None
    settled_at: float | None = None
    cancel_sent_at: float | None = None
    cancel_wanted: bool = False
    evidence: dict[int, list[str]] = field(default_factory=dict)
    """How tasks died, by place: keys of what the runner left about it."""
    blame: tuple[Verdict, set[int]] | None = None
    """Whom the last verdict was about: it is given once, and tasks that are held then may learn of it much later."""

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.job.name}[{self.index}]" if self.job.spec.size > 1 else self.job.name

    @property
    def is_over(self) -> bool:
        """Whether the backend says that it has ended."""
        return self.status is not None and self.status.state.is_final

    @property
    def all_cancelled(self) -> bool:
        """Whether nobody wants any of the tasks that are left."""
        return all(entry.cancelled for entry in self.entries.values())

    @property
    def lingers(self) -> bool:
        """Whether it is at the backend, as far as is known, and has not ended."""
        return self.id is not None and not self.is_over and self.omissions == 0

    def blamed(self, verdict: Verdict, width: int) -> set[int]:
        """Return the places of the tasks that a bad ending is about; the others never started.

        A runner takes its tasks in order, so without evidence the first `width` that are left have run. Asked again
        about the same ending, it gives the same answer, for then the first ones that are left are others.
        """
        if self.blame is None or self.blame[0] is not verdict:
            self.blame = verdict, self._blamed(verdict, width)
        return self.blame[1] & self.entries.keys()

    def _blamed(self, verdict: Verdict, width: int) -> set[int]:
        places = {place for place, entry in self.entries.items() if not entry.answered}
        status = self.status
        everyone = verdict in {Verdict.NO_RESULT, Verdict.BLOCKED} or (
            status is not None and (status.state is JobState.CANCELLED or status.exit_code in _NEVER_STARTED)
        )
        return places if everyone else (places & self.evidence.keys() or set(sorted(places)[:width]))

    def saw(self, status: JobStatus, now: float) -> bool:
        """Take in what a poll said, and return whether it is news. A final state is never taken back."""
        self.omissions, self.seen_at = 0, now
        if self.is_over:
            return False
        is_news = self.status is None or (status.state, status.reason) != (self.status.state, self.status.reason)
        self.status = status
        if status.state.is_final:
            self.final_since, self.blocked_since = now, None
        elif status.reason is None:
            self.blocked_since = None
        elif self.blocked_since is None or is_news:
            self.blocked_since = now
        return is_news

    def was_omitted(self, now: float) -> None:
        """Note a successful poll that did not mention it."""
        if self.omissions == 0:
            self.omitted_since = now
        self.omissions += 1

    def verdict(self, now: float, rules: Rules) -> Verdict | None:
        """Return why it is over, None while it may still bring results. Never guesses success."""
        if self.status is not None and self.is_over:
            ended_well = self.status.state is JobState.SUCCEEDED
            nothing_to_come = self.all_cancelled or self.evidence.keys() >= self.entries.keys()
            may_have_results = ended_well or self.status.exit_code in _ALL_COMMITTED
            if may_have_results and not nothing_to_come and now - self.final_since < rules.grace_s:
                return None
            return Verdict.NO_RESULT if ended_well and not nothing_to_come else Verdict.ENDED
        if self._is_absent(now, rules.settle_s):
            return Verdict.VANISHED
        if self.blocked_since is not None and self.status is not None and self.status.reason is not None:
            deadline = rules.start_deadline(self.status.reason)
            if deadline is not None and now - self.blocked_since >= deadline:
                return Verdict.BLOCKED
        return None

    def _is_absent(self, now: float, settle_s: float) -> bool:
        if self.omissions == 0:
            return False
        if self.cancel_sent_at is not None and self.seen_at is not None:
            return True  # it was listed, its cancel was accepted, and now it is gone
        return self.omissions > 1 and now - self.omitted_since >= settle_s

    def wants_cancel(self, now: float) -> bool:
        """Return whether a cancel should be sent now: nobody wants it, or it outlives its last outcome."""
        if self.id is None or self.is_over:
            return False
        if self.settled_at is not None and now - self.settled_at >= _LINGER_S:
            self.cancel_wanted = True
        if not self.cancel_wanted:
            return False
        return self.cancel_sent_at is None or now - self.cancel_sent_at >= _CANCEL_AGAIN_S

    def wants_poll(self, now: float) -> bool:
        """Return whether the backend is the one to ask: no result yet, or ending takes suspiciously long."""
        if self.id is None or self.is_over:
            return self.id is not None and any(not entry.held for entry in self.entries.values())
        return self.settled_at is None or now - self.settled_at >= _LINGER_S
