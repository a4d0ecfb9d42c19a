"""State: what the commands and the controller share, in one folder, changed by one at a time.

The file is replaced as a whole, so whoever only looks needs no lock; whoever changes it holds the lock from
reading to writing, so no change is lost.
"""

# ruff: noqa: PTH100, PTH105, PTH110, PTH120, PTH123 - pathlib takes longer to import than a command may take

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time

from .job import Job
from .processes import birth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

__all__ = ["FOLDER", "START", "State", "folder_of_environment"]

FOLDER = "BATCHPORT_SLURM_SIMULATOR"
"""The variable that names the folder in which all is kept."""
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from slurm.{0} import main; sys.exit(main(sys.argv[1:]))"
"""Starts a module of this package, whose parent's folder is its first argument, without any of batchport."""
PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def folder_of_environment() -> str:
    """Return the simulator's folder; the commands are of no use without."""
    folder = os.environ.get(FOLDER, "")
    if not os.path.exists(f"{folder}/state"):
        sys.exit(f"the simulator of Slurm needs {FOLDER}, which SlurmSimulator(...).env sets; it is {folder!r}")
    return folder


class State:
    """All that the simulated cluster knows. In a `with` block it is locked, and written at its end.

    `settings` are the constructor arguments of SlurmSimulator, `faults` what it has been told to do wrong.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._read()

    def _read(self) -> None:
        with open(f"{self.folder}/state", encoding="utf-8") as file:
            everything: dict[str, Any] = json.load(file)
        self.settings: dict[str, Any] = everything["settings"]
        self.faults: dict[str, Any] = everything["faults"]
        self.next_id: int = everything["next_id"]
        self.serial: int = everything["serial"]
        self.down: list[str] = everything["down"]
        self.controller: tuple[int, str] | None = everything["controller"]
        self.closed: bool = everything["closed"]
        self.jobs = [Job(**fields) for fields in everything["jobs"]]

    @staticmethod
    def create(folder: str, settings: dict[str, Any]) -> None:
        """Make the folder's first state."""
        state = State.__new__(State)
        state.folder, state.settings, state.faults, state.serial = folder, settings, {}, 0
        state.next_id = settings["first_job_id"]
        state.down, state.controller, state.closed, state.jobs = [], None, False, []
        state._write()  # noqa: SLF001 - of this class

    def _write(self) -> None:
        everything = {name: each for name, each in vars(self).items() if name not in {"folder", "jobs", "_lock"}}
        with open(f"{self.folder}/state.{os.getpid()}", "w", encoding="utf-8") as file:
            json.dump(everything | {"jobs": [vars(job) for job in self.jobs]}, file)
        os.replace(file.name, f"{self.folder}/state")

    def __enter__(self) -> Self:
        self._lock = open(f"{self.folder}/lock", "w", encoding="utf-8")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._read()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write()
        self._lock.close()

    def known(self) -> Iterator[Job]:
        """Yield the jobs that the controller still knows: it forgets one MinJobAge after its end."""
        oldest = time.time() - self.settings["min_job_age_s"]
        for job in self.jobs:
            if not (job.forgotten or (job.is_over and (job.end or 0) < oldest)):
                yield job

    def named(self, number: int, indexes: list[int] | None = None) -> list[Job]:
        """Return the known records of this job, or of these elements of it."""
        return [job for job in self.known() if job.belongs(number, indexes)]

    def new_id(self) -> int:
        """Give out the next job id."""
        self.next_id += 1
        return self.next_id - 1

    def wake(self) -> None:
        """Have the controller look at the state, and start one if there is none; the state is locked."""
        if self.closed:
            return
        if self.controller and birth(self.controller[0]) == self.controller[1]:
            os.kill(self.controller[0], signal.SIGUSR1)
            return
        pid = os.fork()
        if pid == 0:
            try:
                self._become_controller()
            finally:
                os._exit(127)
        self.controller = pid, birth(pid)

    def _become_controller(self) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until it has its own handler: it looks at the state anyway
        os.setsid()
        null, log = (
            os.open(os.devnull, os.O_RDWR),
            os.open(f"{self.folder}/controller.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        )
        for target, source in enumerate((null, log, log)):
            os.dup2(source, target)
        os.closerange(3, 256)  # the lock among them
        argv = [sys.executable, "-IS", "-c", START.format("controller"), PACKAGES, self.folder]
        os.execv(sys.executable, argv)  # noqa: S606 - itself

    def see_to_controller(self) -> bool:
        """Start a controller if jobs need one and the last was killed; return whether so. The state is not locked."""
        active = self.controller and not self.closed
        if not active or (self.controller and birth(self.controller[0]) == self.controller[1]):
            return False
        with self:
            self.wake()
        return True
