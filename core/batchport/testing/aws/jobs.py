"""A job: what it is, what becomes of it, and what DescribeJobs and ListJobs show of it.

Called by the api, the scheduler and attempts. It takes the place of moto's job, which knows neither arrays' indexes nor
reasons, and runs nothing itself. The account of AWS: https://docs.aws.amazon.com/batch/latest/APIReference/API_JobDetail.html
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from moto.batch import models

from batchport.testing.aws.rules import OVERRIDES
from batchport.testing.aws.settings import Settings

__all__ = ["BEFORE_START", "DONE", "LOCK", "BatchJob", "now_ms"]

DONE = ("SUCCEEDED", "FAILED")
BEFORE_START = ("SUBMITTED", "PENDING", "RUNNABLE")
STATES = (*BEFORE_START, "STARTING", "RUNNING", *DONE)
LOCK = threading.RLock()
"""Held where a job that has not started yet is started or stopped, and while an array is made."""


def now_ms() -> int:
    """Return the time as AWS's answers have it."""
    return int(time.time() * 1000)


class BatchJob(models.Job):
    """A job, the parent of an array, or one of its children."""

    __module__ = "moto.batch.models"  # moto reads the service's name from here

    settings: ClassVar[Settings]
    hand_over: ClassVar[Callable[[BatchJob], None]]
    """Gives a job to the scheduler."""
    submitted_retry: ClassVar[Mapping[str, Any] | None] = None
    """The retry strategy of the SubmitJob that is being carried out, under LOCK: moto drops it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html: it overrides the definition's
        self.retry = self.submitted_retry or self.job_definition.retry_strategy or {}
        self.attempt = 0
        self.reason: str | None = None
        self.began_ms: int | None = None
        self.cancelled = self.terminated = self.host_gone = False

    # What it is

    @property
    def index(self) -> int | None:
        """The place in its array of a child."""
        return self.array_properties.get("index")

    @property
    def children(self) -> list[BatchJob]:
        """The children of an array's parent."""
        return self._child_jobs or []  # type: ignore[return-value]  # moto made them of this class

    @property
    def status(self) -> str:
        """A parent is PENDING from its first RUNNABLE child until all have ended.

        https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html
        https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html
        """
        if not self.children:
            return self._status or "SUBMITTED"
        states = {child.status for child in self.children}
        if states <= {"SUBMITTED"}:
            return "SUBMITTED"
        if states <= set(DONE):
            return "FAILED" if "FAILED" in states else "SUCCEEDED"
        return "PENDING"

    @status.setter
    def status(self, value: str) -> None:
        self._status = str(value)

    @property
    def forgotten(self) -> bool:
        """Whether it is over for so long that AWS does not know it any more."""
        return self.job_stopped and time.time() - self.job_stopped_at.timestamp() > self.settings.forget_after_s

    @property
    def properties(self) -> Mapping[str, Any]:
        """The definition's containerProperties."""
        return self.job_definition.container_properties or {}

    @property
    def command(self) -> list[str]:
        """The command, with its parameters in their places."""
        return self._add_parameters_to_command(self._overridden("command", []))

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the definition, of the overrides, and Batch's own."""
        return {item["name"]: item["value"] for item in self._get_container_property("environment", [])}

    def resource(self, kind: str, default: float) -> float:
        """Return how much MEMORY or VCPU it asks for."""
        for source in (self.container_overrides, self.properties):
            for item in source.get("resourceRequirements", ()):
                if item["type"] == kind:
                    return float(item["value"])
            if older := source.get({"MEMORY": "memory", "VCPU": "vcpus"}[kind]):
                return float(older)
        return default

    def overrides_too_long(self) -> bool:
        """Return whether Amazon ECS will not take its overrides, to which Batch adds its own variables."""
        sent = {key: value for key, value in self.container_overrides.items() if key in {"command", "environment"}}
        own = [{"name": name, "value": value} for name, value in self._batch_variables().items()]
        sent["environment"] = sent.get("environment", []) + own
        if "command" in sent:
            sent["command"] = self._add_parameters_to_command(sent["command"])
        whole = {"containerOverrides": [sent | {"name": "default"}]}
        return len(json.dumps(whole, separators=(",", ":"))) > OVERRIDES

    def _overridden(self, key: str, default: Any = None) -> Any:
        return self.container_overrides.get(key) or self.properties.get(key) or default

    def _batch_variables(self) -> dict[str, str]:
        """See https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html."""
        own = {
            "AWS_BATCH_JOB_ID": self.job_id,
            "AWS_BATCH_JOB_ATTEMPT": str(max(1, self.attempt)),
            "AWS_BATCH_JQ_NAME": self.job_queue.name,
            "AWS_BATCH_CE_NAME": self.job_queue.environments[0].name,
        }
        if self.index is not None:
            parent = self.all_jobs[self.job_id.partition(":")[0]]
            own["AWS_BATCH_JOB_ARRAY_INDEX"] = str(self.index)
            own["AWS_BATCH_JOB_ARRAY_SIZE"] = str(len(parent._child_jobs or ()))  # noqa: SLF001 - its own class
        return own

    def _get_container_property(self, p: str, default: Any) -> Any:
        if p != "environment":
            return super()._get_container_property(p, default)
        # moto's own adds to the caller's list at each call.
        sources = (self.properties, self.container_overrides)
        env = {item["name"]: item["value"] for source in sources for item in source.get("environment", ())}
        return [{"name": name, "value": value} for name, value in (env | self._batch_variables()).items()]

    # What becomes of it

    def start(self) -> None:
        """Give it to the scheduler; moto would start a thread for each job."""
        type(self).hand_over(self)

    def finish(self, status: str, status_reason: str | None) -> None:
        """End it for good."""
        self.job_stopped_at, self.job_stopped_reason = datetime.now(), status_reason  # noqa: DTZ005 - as moto's are
        self.job_stopped, self.status = True, status

    def cancel(self, reason: str) -> None:
        """Have no effect, and no error, from STARTING on.

        https://docs.aws.amazon.com/batch/latest/APIReference/API_CancelJob.html
        """
        for job in self.children or [self]:
            if job._stop_before_start(reason):  # noqa: SLF001 - its own class
                job.cancelled = self.cancelled = True

    def terminate(self, reason: str) -> None:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJob.html."""
        if self.children and self.status not in DONE:
            self.job_stopped_reason = reason
        for job in self.children or [self]:
            if job.status not in DONE:
                job.terminated = self.terminated = True
                if not job._stop_before_start(reason):  # noqa: SLF001 - its own class
                    job.job_stopped_reason, job.stop = reason, True

    def _stop_before_start(self, reason: str) -> bool:
        with LOCK:
            if self.status not in BEFORE_START:
                return False
            self.stop = True
            self.finish("FAILED", reason)
            return True

    # What is shown of it

    def describe_short(self) -> dict[str, Any]:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_JobSummary.html."""
        shown = super().describe_short()
        shown.pop("startedAt", None)
        if self.began_ms:
            shown["startedAt"] = self.began_ms
        if self.children:
            shown["arrayProperties"] = self._array_summary()
            if self.status in DONE:
                shown["stoppedAt"] = max(int(child.job_stopped_at.timestamp() * 1000) for child in self.children)
                if self.status == "FAILED" and not self.terminated:
                    shown["statusReason"] = "Array Child Job failed"  # (seen)
        elif self.index is not None:
            shown["arrayProperties"] = {"index": self.index}
        container = {"exitCode": self.exit_code, "reason": self.reason}
        shown["container"] = {key: value for key, value in container.items() if value is not None}
        flags = {"isCancelled": self.cancelled, "isTerminated": self.terminated}
        return shown | {key: True for key, value in flags.items() if value}

    def describe(self) -> dict[str, Any]:
        short = self.describe_short()
        shown = super().describe() | {key: value for key, value in short.items() if key != "container"}
        container = shown.setdefault("container", {})
        container |= short["container"]
        if not self.began_ms:  # it comes with RUNNING
            container.pop("logStreamName", None)
        container["image"] = self.properties.get("image")
        container["resourceRequirements"] = self._overridden("resourceRequirements", [])
        return shown | {"isCancelled": self.cancelled, "isTerminated": self.terminated, "retryStrategy": self.retry}

    def _array_summary(self) -> dict[str, Any]:
        counts = Counter(child.status for child in self.children)
        return {"statusSummary": {state: counts[state] for state in STATES}, "size": len(self.children)}
