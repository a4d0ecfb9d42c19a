"""The scheduler: first in, first out, so many at a time. Called by the server; jobs come to it by themselves."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping

from batchport.testing.aws.attempts import Attempt
from batchport.testing.aws.jobs import DONE, LOCK, BatchJob
from batchport.testing.aws.rules import DEPENDENCY, MISFIT, TOO_LONG
from batchport.testing.aws.settings import Settings

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)

LOOK_S = 0.1
END_S = 10


class Scheduler(threading.Thread):
    """Runs jobs as places become free; `job_env` are variables for every job."""

    def __init__(self, settings: Settings, job_env: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self.settings, self.job_env = settings, job_env
        self.places = settings.max_running
        self._wake = threading.Event()
        self._waiting: list[BatchJob] = []
        self._runnable: deque[BatchJob] = deque()
        self._running: set[BatchJob] = set()

    def add(self, job: BatchJob) -> None:
        """Take over a job."""
        with LOCK:
            self._waiting.append(job)
        self._wake.set()

    def lose_hosts(self, *_: object) -> None:
        """Take every host away, as Amazon takes Spot instances."""
        for job in list(self._running):
            job.host_gone = True

    def end(self) -> None:
        """Start nothing more, end what runs, and wait for it."""
        self.places = 0
        self.lose_hosts()
        deadline = time.monotonic() + END_S
        while self._running and time.monotonic() < deadline:
            self.lose_hosts()  # one may have been just about to start
            time.sleep(0.05)

    def run(self) -> None:
        while True:
            self._wake.wait(LOOK_S)
            self._wake.clear()
            try:
                with LOCK:
                    self._admit()
                    self._place()
            except Exception:  # noqa: BLE001 - the next look may work
                _log.exception("the scheduler of jobs failed")

    def _admit(self) -> None:
        """See https://docs.aws.amazon.com/batch/latest/userguide/job_states.html."""
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            verdict = _dependencies(job)
            if job.status in DONE:
                continue
            if job.stop:
                job.finish("FAILED", job.job_stopped_reason)
            elif verdict == "fail":
                job.finish("FAILED", DEPENDENCY)
            elif verdict == "wait":
                job.status = "PENDING"
                self._waiting.append(job)
            elif job.overrides_too_long():
                job.finish("FAILED", TOO_LONG)
            else:
                job.status = "RUNNABLE"
                if job.resource("MEMORY", 0) > self.settings.max_memory_mib:
                    job.job_stopped_reason = MISFIT
                else:
                    self._runnable.append(job)

    def _place(self) -> None:
        while self._runnable and len(self._running) < self.places:
            job = self._runnable[0]
            young = time.time() - job.job_created_at.timestamp() < self.settings.start_delay_s
            if young and job.status not in DONE:
                return
            self._runnable.popleft()
            if job.status in DONE:
                continue
            job.status = "STARTING"
            self._running.add(job)
            threading.Thread(target=self._run, args=(job,), daemon=True).start()

    def _run(self, job: BatchJob) -> None:
        again = False
        try:
            again = Attempt(job, self.job_env).run()
        except Exception as error:  # noqa: BLE001 - a fault of the simulator: to be seen, and no hang
            _log.exception("an attempt failed")
            job.finish("FAILED", f"the simulator failed: {error!r}")
        finally:
            with LOCK:
                self._running.discard(job)
                if again:
                    self._waiting.append(job)
            self._wake.set()


def _dependencies(job: BatchJob) -> str:
    """Return wait, go or fail. https://docs.aws.amazon.com/batch/latest/APIReference/API_JobDependency.html."""
    verdict = "go"
    for item in job.depends_on or ():
        other = item.get("jobId", job.job_id.partition(":")[0])
        if item.get("type") == "N_TO_N" and job.index is not None:
            other = f"{other}:{job.index}"
        if item.get("type") == "SEQUENTIAL":
            if not job.index:
                continue
            other = f"{other}:{job.index - 1}"
        state = job.all_jobs[other].status if other in job.all_jobs else "SUCCEEDED"
        if state == "FAILED":
            return "fail"
        if state != "SUCCEEDED":
            verdict = "wait"
    return verdict
