"""Job: what the simulated controller knows of one job, or of the elements of an array that have not started yet.

As in Slurm an array is one record until its elements start; each then gets a record with a job id of its own, but
for the last, which keeps the array's: https://slurm.schedmd.com/job_array.html
"""

from __future__ import annotations

import time

from .job_ids import ranges

__all__ = ["COMPACT", "ENDED", "Job"]

COMPACT = {
    "CANCELLED": "CA",
    "COMPLETED": "CD",
    "COMPLETING": "CG",
    "FAILED": "F",
    "NODE_FAIL": "NF",
    "OUT_OF_MEMORY": "OOM",
    "PENDING": "PD",
    "PREEMPTED": "PR",
    "RUNNING": "R",
    "TIMEOUT": "TO",
}
"""The states that there are here, and their codes: https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES."""
ENDED = COMPACT.keys() - {"PENDING", "RUNNING", "COMPLETING"}


class Job:
    """One record. Kept as the JSON of its attributes; one that has its default takes no space."""

    id: int
    serial: int
    """Names the job's folder: ids may be given out again, this never."""
    name: str
    submit: float
    folder: str
    partition: str
    out: str
    err: str = ""
    workdir: str
    account: str = "(null)"
    qos: str = "normal"
    cpus: int = 1
    cpus_given: bool = False
    tasks: int = 1
    tasks_given: bool = False
    memory_mib: int = 0
    minutes: int | None = None
    requeue: bool = True
    nodes: list[tuple[str, int]] = []  # noqa: RUF012 - replaced, never changed
    comment: str = ""
    export: str = ""
    wanted_nodes: str = ""
    dependency: str = ""

    array: int | None = None
    index: int | None = None
    waiting: list[int] | None = None
    """The indexes that this record still stands for; of one element that has started, None."""
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    """The array's number of elements, first and last index, and step."""
    at_once: int = 0

    state: str = "PENDING"
    reason: str = "None"
    told_reason: str = "None"
    """What accounting was told, which only hears of some reasons and keeps the last."""
    held: str = ""
    """Who holds it: User, Admin, or nobody."""
    begin: float = 0
    """Not before then does it start."""
    start: float | None = None
    end: float | None = None
    ending: str = ""
    """Its processes are being ended for this reason; empty once they are gone."""
    by: int | None = None
    """The user who cancelled it."""
    status: int = 0
    """The batch script's wait status, as the controller knows it."""
    told: str = "0:0"
    """The exit code that accounting was told."""
    ooms: int = 0
    restarts: int = 0
    pid: int = 0
    born: str = ""
    forgotten: bool = False
    """The controller has lost it, and only accounting knows it."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)

    @property
    def display_id(self) -> str:
        """What squeue's %i shows: 12, 12_3, or 12_[4-5] for elements that have not started."""
        if self.array is None or (self.waiting is None and self.index is None):
            return str(self.id)
        return f"{self.array}_{self.task}"

    @property
    def task(self) -> str:
        """What stands after the array's number: 3 or [4-5]."""
        if self.waiting is None:
            return str(self.index)
        if len(self.waiting) == 1:
            return str(self.waiting[0])
        return f"[{ranges(self.waiting)}{f'%{self.at_once}' if self.at_once else ''}]"

    @property
    def queue_state(self) -> str:
        """What squeue shows: its state, or COMPLETING until its processes have gone."""
        return "COMPLETING" if self.ending else self.state

    @property
    def is_over(self) -> bool:
        """Return whether it will not run again, and nothing of it runs."""
        return self.state in ENDED and not self.ending

    @property
    def needed(self) -> int:
        """How many CPUs it takes."""
        return self.cpus * self.tasks

    @property
    def node_list(self) -> str:
        """Where it runs or ran."""
        return ",".join(node for node, _ in self.nodes)

    @property
    def exit_code(self) -> str:
        """What scontrol shows: the exit code and the signal."""
        number = self.status & 127
        return f"0:{number}" if number else f"{self.status >> 8}:0"

    @property
    def run_time(self) -> float:
        """For how long it has run."""
        return max((self.end or time.time()) - self.start, 0) if self.start else 0

    def belongs(self, number: int, indexes: list[int] | None) -> bool:
        """Return whether `number`, or those elements of it, is this record or has a part in it."""
        if number not in {self.id, self.array}:
            return False
        if indexes is None:
            return True
        return bool(set(indexes) & set([self.index] if self.waiting is None else self.waiting))

    def elements(self) -> list[Job]:
        """Return a record for each element that this one stands for, as `squeue --array` shows them."""
        if self.waiting is None:
            return [self]
        return [Job(**{**vars(self), "waiting": None, "index": index}) for index in self.waiting]

    def wait_for(self, reason: str) -> None:
        """Note why it does not start; accounting hears of it unless it only waits for its turn."""
        self.reason = reason
        if reason not in {"None", "Priority", "Resources"}:
            self.told_reason = "JobHeldUser" if reason.startswith("job requeued") else reason
