"""SlurmSimulator: a simulated cluster in one folder, the environment that its commands need, and its misbehaviour."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from batchport.testing.slurm.administration import fail_node, hold, preempt, requeue
from batchport.testing.slurm.job import Job
from batchport.testing.slurm.job_ids import job_id
from batchport.testing.slurm.processes import birth
from batchport.testing.slurm.state import FOLDER, PACKAGES, START, State

__all__ = ["SlurmSimulator"]

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sdiag")
GONE_S = 30
"""How long leaving waits for processes to go that were killed, before it says that they stay."""


class SlurmSimulator:
    """Slurm's commands for tests: `env` is the environment with which they are found, and run jobs on this machine.

    Jobs are processes of this user, in sessions of their own. Leaving the `with` block ends them all. The state
    stays in `folder`, which must be new. The defaults are Slurm's own, but for quickness where it makes you wait.

    folder: where everything is kept; made if absent.
    nodes, cpus, memory_mib: how many nodes there are, named n1 and so on, and what each has.
    partitions: the longest time limit of each in minutes, None for any. The first is the default.
    default_minutes: the time limit of a job that asks for none.
    minute_s: how long a minute of a time limit lasts, in seconds: tests shorten it.
    accounting: whether sacct answers.
    accounts, qos: those that may be used, None for any; a QOS with its MaxSubmitJobsPerUser, None for no such limit.
    features: those that --constraint may ask for.
    first_job_id: FirstJobId.
    max_array_size: MaxArraySize; indexes are below it.
    min_job_age_s: MinJobAge: how long the controller knows a job that is over.
    kill_wait_s: KillWait: how long after SIGTERM comes SIGKILL.
    requeue_wait_s: how long a requeued job waits before it may start again.
    """

    def __init__(  # noqa: PLR0913 - slurm.conf has hundreds
        self,
        folder: str | os.PathLike[str],
        *,
        nodes: int = 1,
        cpus: int = 4,
        memory_mib: int = 16384,
        partitions: Mapping[str, int | None] | None = None,
        default_minutes: int = 60,
        minute_s: float = 60,
        accounting: bool = True,
        accounts: Sequence[str] | None = None,
        qos: Mapping[str, int | None] | None = None,
        features: Sequence[str] = (),
        first_job_id: int = 1,
        max_array_size: int = 1001,
        min_job_age_s: float = 300,
        kill_wait_s: float = 2,
        requeue_wait_s: float = 1,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_commands()
        settings = {
            "nodes": nodes,
            "cpus": cpus,
            "memory_mib": memory_mib,
            "partitions": dict(partitions or {"main": None}),
            "default_minutes": default_minutes,
            "minute_s": minute_s,
            "accounting": accounting,
            "accounts": None if accounts is None else list(accounts),
            "qos": None if qos is None else dict(qos),
            "features": list(features),
            "first_job_id": first_job_id,
            "max_array_size": max_array_size,
            "min_job_age_s": min_job_age_s,
            "kill_wait_s": kill_wait_s,
            "requeue_wait_s": requeue_wait_s,
        }
        State.create(str(self.folder), settings)

    def _write_commands(self) -> None:
        """Write the executables: by way of sh, since the path of a Python may be too long for a #! line."""
        (self.folder / "bin").mkdir()
        for name in COMMANDS:
            words = shlex.join((sys.executable, "-IS", "-c", START.format(name), PACKAGES))
            path = self.folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
            path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        """The variables with which commands are found and find the cluster: for os.environ, or a command's own."""
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            FOLDER: str(self.folder),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all jobs and the controller, by the processes that were noted; the commands then find it down.

        Raises TimeoutError, with their ids, if processes stay that were killed.
        """
        with State(str(self.folder)) as state:
            state.closed = True
            controller = state.controller
        if controller and birth(controller[0]) == controller[1]:
            os.kill(controller[0], signal.SIGTERM)
            self._wait_for([controller])
        with State(str(self.folder)) as state:
            noted = [(job.pid, job.born) for job in state.jobs if job.pid]
        left = [each for each in [controller, *noted] if each and birth(each[0]) == each[1]]
        for pid, _ in left:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        if stuck := self._wait_for(left):
            raise TimeoutError(f"processes of {self.folder} that were killed are still there: {stuck}")

    def _wait_for(self, processes: Sequence[tuple[int, str]]) -> list[int]:
        """Wait until these have gone, and return those that have not."""
        deadline = time.monotonic() + GONE_S
        while left := [pid for pid, born in processes if birth(pid) == born]:
            if time.monotonic() > deadline:
                return left
            time.sleep(0.01)
        return []

    # What Slurm does to jobs

    def hold(self, job: str) -> None:
        """Hold a job as its user does: JobHeldUser."""
        with State(str(self.folder)) as state:
            hold(self._records(state, job), "User")
            state.wake()

    def requeue(self, job: str) -> None:
        """Requeue a job, as an administrator does."""
        with State(str(self.folder)) as state:
            requeue(self._records(state, job))
            state.wake()

    def preempt(self, job: str) -> None:
        """Have a running job make way: PREEMPTED, or requeued unless it was submitted with --no-requeue."""
        with State(str(self.folder)) as state:
            preempt(self._records(state, job))
            state.wake()

    def fail_node(self, node: str) -> None:
        """Have a node fail: its jobs are NODE_FAIL, or requeued unless they were submitted with --no-requeue."""
        with State(str(self.folder)) as state:
            fail_node(state, node)
            state.wake()

    def mend_node(self, node: str) -> None:
        """Have a node that failed take jobs again."""
        with State(str(self.folder)) as state:
            state.down = [each for each in state.down if each != node]
            state.wake()

    # What Slurm does wrong

    def stop_controller(self) -> None:
        """Have every command that needs the controller fail, at once where the real one takes a minute; jobs go on."""
        self._set("controller_down", True)

    def start_controller(self) -> None:
        """Have the controller answer again."""
        self._set("controller_down", None)

    def fail_sbatch(self, *, submitted: bool, times: int = 1) -> None:
        """Have the next sbatch time out, its job being `submitted` or not."""
        with State(str(self.folder)) as state:
            state.faults.setdefault("sbatch", []).extend(["after" if submitted else "before"] * times)

    def delay_sbatch(self, seconds: float, *, submitted: bool) -> None:
        """Have sbatch hang for so long, its job being `submitted` by then or not; 0 ends it."""
        self._set(f"sbatch_{'after' if submitted else 'before'}_s", seconds)

    def forget_last_job(self) -> None:
        """Have the controller lose the last submitted job, as a crash does, and give its id to the next.

        Its processes are killed. Accounting keeps what it was told last.
        """
        with State(str(self.folder)) as state:
            last = max((job.array or job.id for job in state.known()), default=None)
            lost = [job for job in state.known() if last in {job.array, job.id}]
            if last is None:
                raise LookupError("no job is known that could be forgotten")
            for job in lost:
                job.forgotten = True
                job.ending = "CANCELLED" if job.pid else ""
            state.next_id = last
            state.wake()

    def fail_sacct(self, *, failing: bool = True) -> None:
        """Have sacct find no database."""
        self._set("sacct_fails", failing)

    def delay_sacct(self, seconds: float) -> None:
        """Have accounting hear of everything so much later."""
        self._set("sacct_late_s", seconds)

    def name_cluster(self, name: str) -> None:
        """Have `sbatch --parsable` print `id;name`, as on sites with several clusters; "" ends it."""
        self._set("cluster", name)

    def _set(self, fault: str, value: object) -> None:
        with State(str(self.folder)) as state:
            state.faults[fault] = value

    def _records(self, state: State, job: str) -> list[Job]:
        records = state.named(*job_id(job))
        if not records:
            raise LookupError(f"no job {job} is known here")
        return records
