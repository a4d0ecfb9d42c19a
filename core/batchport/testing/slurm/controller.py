"""The process that runs the simulated cluster's jobs: `main(folder)`.

A command starts it when there is something to run (`State.wake`), and it ends when there is nothing left. All
it knows is in the state; besides, it remembers only its children. Commands change the state and wake it by SIGUSR1.
"""

# ruff: noqa: PTH123 - pathlib is not needed

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from .administration import lose_node
from .job import Job
from .launch import Launch, adopt_orphans
from .processes import birth, family, kib, signal_all
from .scheduling import next_start, startable
from .state import FOLDER, State
from .words import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main"]

SAMPLE_S = 0.1
"""How often the memory of jobs with a limit is looked at, at most."""
WHY = {
    "TIMEOUT": " DUE TO TIME LIMIT",
    "REQUEUE": " DUE TO JOB REQUEUE",
    "PREEMPTED": " DUE TO PREEMPTION",
    "PREEMPT_REQUEUE": " DUE TO PREEMPTION",
    "NODE_FAIL": " DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS",
    "NODE_REQUEUE": " DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS",
}
"""What slurmstepd writes into a job's output after CANCELLED AT and the time, by `Job.ending`."""


class Controller:
    """Runs what can run, ends what must end, and notes how each ended."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.state = State(folder)
        self.children: dict[int, int] = {}
        """Of the batch scripts that run, by process: the job's serial."""
        self.ended: dict[int, int] = {}
        """Wait status of those that have ended, by serial."""
        self.asked: dict[int, float] = {}
        """When the processes of a job were asked to end, by serial."""
        self.stop = False
        self.adopts = adopt_orphans()
        self.sampled = 0.0
        self.pause = SAMPLE_S
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))

    def run(self) -> None:
        """Go on until there is nothing to run, or until SIGTERM: all jobs are then killed."""
        with self.state as state:
            for job in state.jobs:  # of an earlier controller that was killed, and its jobs with it
                if job.pid:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        if birth(job.pid) == job.born:
                            os.killpg(job.pid, signal.SIGKILL)
                    if not job.ending:
                        lose_node([job])
                    self.ended[job.serial] = 0
        while not self.stop:
            self._reap()
            with self.state:
                until = self._look()
                if until is None:
                    self.state.controller = None
                    return
            if select.select([self.reader], [], [], max(until - time.time(), 0))[0]:
                os.read(self.reader, 4096)
        self._kill_all()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] in self.children:
                    self.ended[self.children.pop(ended[0])] = ended[1]

    def _look(self) -> float | None:
        """Bring the state up to date; return until when there is nothing to do, None if for ever."""
        now = time.time()
        running = [job for job in self.state.jobs if job.pid]
        for job in running:
            if not job.ending and job.serial not in self.ended and now >= self._limit(job):
                job.state, job.reason, job.end, job.ending = "TIMEOUT", "TimeLimit", now, "TIMEOUT"
        self._watch_memory([job for job in running if job.memory_mib and not job.ending])
        self._end([job for job in running if job.ending and job.serial not in self.ended])
        left = self._leave([job for job in running if job.serial in self.ended])
        for job in running:
            if job.serial in self.ended and job.serial not in left:
                self._finish(job, self.ended.pop(job.serial))
        for job in self.state.jobs:
            if job.ending and not job.pid:  # ended before it had a process
                self._finish(job, 0)
        self._start()
        return min(self._moments(left), default=None)

    def _limit(self, job: Job) -> float:
        never = job.minutes is None or job.start is None
        return float("inf") if never else (job.start or 0) + (job.minutes or 0) * self.state.settings["minute_s"]

    def _moments(self, left: set[int]) -> Iterator[float]:
        """Yield when it must look again at the latest."""
        for job in self.state.jobs:
            if job.pid:
                yield min(self._limit(job), time.time() + 3600)
                if job.memory_mib:
                    yield self.sampled + self.pause
                if job.serial in self.asked:
                    yield max(self.asked[job.serial] + self.state.settings["kill_wait_s"], time.time() + 0.02)
        if left:
            yield time.time() + 0.01
        for job in self.state.jobs:
            if job.state == "PENDING" and job.reason == "BeginTime":
                yield job.begin
        if any(True for _ in startable(self.state)):
            yield time.time() + 3600

    def _strays(self) -> dict[int, int]:
        """Return the processes that left their job's session and lost their parent, with the job's own process."""
        if not self.adopts:
            return {}
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            found = [int(pid) for pid in file.read().split()]
            return {pid: _leader(pid) for pid in found if pid not in self.children}
        return {}

    def _watch_memory(self, jobs: list[Job]) -> None:
        began = time.time()
        if not jobs or began < self.sampled + self.pause:
            return
        families = family([job.pid for job in jobs], self._strays())
        for job in jobs:
            members = families[job.pid]
            if sum(each.kib for each in members.values()) <= job.memory_mib * 1024:
                continue
            used = {pid: kib(pid, each) for pid, each in members.items()}
            if sum(used.values()) > job.memory_mib * 1024:
                job.ooms += 1
                signal_all(signal.SIGKILL, [max(used, key=lambda pid: used[pid])])  # as the kernel does: the largest
        self.sampled = time.time()
        self.pause = max(SAMPLE_S, 10 * (self.sampled - began))

    def _end(self, jobs: list[Job]) -> None:
        """Ask the processes of these jobs to end, and kill them when they have not done so within KillWait."""
        now = time.time()
        new = [job for job in jobs if job.serial not in self.asked]
        late = [
            job for job in jobs if job.serial in self.asked and now >= self.asked[job.serial] + self._kill_wait(job)
        ]
        members = family([job.pid for job in new + late], self._strays()) if new or late else {}
        for job in new:
            self.asked[job.serial] = now
            what = (
                f"JOB {job.id} ON {job.nodes[0][0]} CANCELLED AT {timestamp(job.end or now)}{WHY.get(job.ending, '')}"
            )
            _say(job, f"*** {what} ***")
            signal_all(signal.SIGTERM, list(members[job.pid]))
            signal_all(signal.SIGCONT, list(members[job.pid]))
        for job in late:
            signal_all(signal.SIGKILL, list(members[job.pid]))

    def _kill_wait(self, job: Job) -> float:
        return 0 if job.forgotten else float(self.state.settings["kill_wait_s"])

    def _leave(self, jobs: list[Job]) -> set[int]:
        """Kill what the scripts of these jobs left behind; return the serials of those that are not gone yet."""
        left = set()
        strays = self._strays() if jobs else {}
        for job in jobs:
            alive = False
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, signal.SIGKILL)
                alive = not self.adopts  # where orphans come to this process, they are reaped and seen below
            mine = [pid for pid, leader in strays.items() if leader == job.pid]
            signal_all(signal.SIGKILL, mine)
            if mine or alive:
                left.add(job.serial)
        return left

    def _finish(self, job: Job, status: int) -> None:
        """Note how a job ended of which nothing runs any more."""
        ending, job.ending, job.pid = job.ending, "", 0
        self.asked.pop(job.serial, None)
        if os.WIFSIGNALED(status):
            status = os.WTERMSIG(status)
        job.status = status
        if job.ooms:
            events = f"Detected {job.ooms} oom-kill event(s) in StepId={job.id}.batch."
            _say(job, f"{events} Some of your processes may have been killed by the cgroup out-of-memory handler.")
        if ending.endswith("REQUEUE"):
            now = time.time()
            job.state, job.start, job.end, job.nodes, job.status, job.ooms = "PENDING", None, None, [], 0, 0
            job.submit, job.begin, job.restarts = now, now + self.state.settings["requeue_wait_s"], job.restarts + 1
            if not job.held:
                job.wait_for("BeginTime")
        elif not ending:
            job.end = time.time()
            _judge(job)

    def _start(self) -> None:
        while job := next_start(self.state):
            launch = Launch(job, self.folder)
            job.state, job.reason, job.start = "RUNNING", "None", time.time()
            pid = launch.start()
            if pid:
                self.children[pid] = job.serial
                job.pid, job.born = pid, birth(pid)
            else:  # 0:53 and 4021: the launch failed, and so the exit code is Slurm's own
                job.state, job.reason, job.end = "FAILED", "JobLaunchFailure", job.start
                job.status, job.told = 4021, "0:53"

    def _kill_all(self) -> None:
        deadline = time.time() + 20
        while time.time() < deadline:
            self._reap()
            for pid in self.children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            strays = self._strays()
            signal_all(signal.SIGKILL, list(strays))
            if not self.children and not strays:
                break
            time.sleep(0.01)
        with self.state as state:
            state.controller = None


def _judge(job: Job) -> None:
    """Say what a job came to whose script ended by itself."""
    code, number = job.status >> 8, job.status & 127
    # Accounting masks exit codes: 137 is told as 9:0, and 200 as 72:0.
    job.state, job.reason, job.told = "COMPLETED", "None", f"{code & 127}:{number}"
    if job.ooms:
        job.state, job.reason, job.status, job.told = "OUT_OF_MEMORY", "OutOfMemory", 253, "0:125"
    elif number:
        job.state, job.reason = "FAILED", "JobLaunchFailure"
    elif code:
        job.state, job.reason = "FAILED", "NonZeroExitCode"


def _say(job: Job, words: str) -> None:
    """Write into the job's output what slurmstepd does."""
    with contextlib.suppress(OSError), open(job.err or job.out, "a", encoding="utf-8") as file:
        file.write(f"slurmstepd-{job.nodes[0][0]}: error: {words}\n")


def _leader(stray: int) -> int:
    """Return the process of the job that a stray belongs to: its session's, else the one named in its environment."""
    with contextlib.suppress(OSError):
        leader = os.getsid(stray)
        if leader != stray:
            return leader
        with open(f"/proc/{stray}/environ", "rb") as file:
            words = dict(each.split(b"=", 1) for each in file.read().split(b"\0") if b"=" in each)
        return int(words.get(b"SLURM_TASK_PID", b"0"))
    return 0


def main(arguments: list[str]) -> None:
    """Run the cluster in this folder."""
    os.environ[FOLDER] = arguments[0]
    Controller(arguments[0]).run()
