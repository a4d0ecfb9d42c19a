"""The calls of AWS Batch that are not as moto has them. Called by moto's server, once `install` has been.

https://docs.aws.amazon.com/batch/latest/APIReference/API_Operations.html
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from moto.batch import models
from moto.batch.responses import BatchResponse
from moto.batch.urls import url_paths

from batchport.testing.aws import rules
from batchport.testing.aws.jobs import LOCK, BatchJob
from batchport.testing.aws.scheduler import Scheduler
from batchport.testing.aws.settings import Settings

__all__ = ["install"]


class BatchCalls(BatchResponse):
    """One call. Method names are moto's way to find them."""

    settings: ClassVar[Settings]
    submits: ClassVar[deque[float]] = deque()
    """When SubmitJob was called within the last second."""
    submitting: ClassVar[threading.Lock] = threading.Lock()

    @property
    def _jobs(self) -> dict[str, BatchJob]:
        return self.batch_backend._jobs  # type: ignore[return-value]  # noqa: SLF001 - moto has no other door

    @property
    def _asked(self) -> dict[str, Any]:
        return json.loads(self.body or "{}")  # type: ignore[no-any-return]

    @property
    def _size(self) -> int:
        return len(self.body.encode() if isinstance(self.body, str) else self.body)

    def registerjobdefinition(self) -> str:
        rules.check_definition(self._asked, self._size, self.settings)
        return super().registerjobdefinition()

    def submitjob(self) -> str:
        asked = self._asked
        with self.submitting:
            self._throttle()
            queue = self.batch_backend.get_job_queue(asked.get("jobQueue") or "")
            definition = self.batch_backend.get_job_definition(asked.get("jobDefinition") or "")
            rules.check_submission(asked, self._size, queue, definition, self.settings)
            with LOCK:  # or children would start before their parent knows them
                BatchJob.submitted_retry = asked.get("retryStrategy")
                try:
                    return super().submitjob()
                finally:
                    BatchJob.submitted_retry = None

    def _throttle(self) -> None:
        now = time.monotonic()
        while self.submits and self.submits[0] < now - 1:
            self.submits.popleft()
        if len(self.submits) >= self.settings.submits_per_second:
            raise rules.TooManyRequestsError("Too Many Requests")  # (seen)
        self.submits.append(now)

    def describejobs(self) -> str:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_DescribeJobs.html."""
        ids = [each.rpartition("job/")[2] for each in self._asked.get("jobs") or ()]
        rules.check_ids(ids, 100)
        found = [self._jobs[each] for each in ids if each in self._jobs]  # one that is not known is left out
        return json.dumps({"jobs": [job.describe() for job in found if not job.forgotten]})

    def listjobs(self) -> str:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_ListJobs.html."""
        asked = self._asked
        filters = asked.get("filters") or []
        rules.check_listing(asked, filters)
        jobs = [job for job in self._candidates(asked) if not job.forgotten]
        if filters and not asked.get("arrayJobId"):  # a jobStatus is ignored then, and children are not filtered
            jobs = [job for job in jobs if _passes(job, filters[0])]
        else:  # without a status: RUNNING only
            jobs = [job for job in jobs if job.status == asked.get("jobStatus", "RUNNING")]
        most = 100 if filters else 1000
        count, first = min(int(asked.get("maxResults") or most), most), int(asked.get("nextToken") or 0)
        shown: dict[str, Any] = {"jobSummaryList": [job.describe_short() for job in jobs[first : first + count]]}
        if first + count < len(jobs):
            shown["nextToken"] = str(first + count)
        return json.dumps(shown)

    def _candidates(self, asked: dict[str, Any]) -> list[BatchJob]:
        """Return the children of an array, or a queue's jobs without children, the most recent first."""
        if array := asked.get("arrayJobId"):
            return self._jobs[array].children if array in self._jobs else []
        queue = self.batch_backend.get_job_queue(asked.get("jobQueue") or "")
        if queue is None:
            raise rules.no_queue(asked.get("jobQueue") or "")
        return [job for job in reversed(queue.jobs) if isinstance(job, BatchJob) and job.index is None]

    def canceljob(self) -> str:
        self._stop([self._asked.get("jobId", "")], BatchJob.cancel)
        return "{}"

    def terminatejob(self) -> str:
        self._stop([self._asked.get("jobId", "")], BatchJob.terminate)
        return "{}"

    def canceljobs(self) -> str:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_CancelJobs.html."""
        return self._stop_many(BatchJob.cancel)

    def terminatejobs(self) -> str:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJobs.html."""
        return self._stop_many(BatchJob.terminate)

    def _stop_many(self, how: Callable[[BatchJob, str], None]) -> str:
        ids = self._asked.get("jobs") or []
        rules.check_ids(ids, 50)
        self._stop(ids, how)
        return json.dumps({"successful": ids, "errors": []})

    def _stop(self, ids: list[str], how: Callable[[BatchJob, str], None]) -> None:
        reason = self._asked.get("reason") or ""
        rules.check_reason(reason)
        for each in ids:
            if each in self._jobs:  # one that can't be found counts as done
                how(self._jobs[each], reason)


def _passes(job: BatchJob, wanted: dict[str, Any]) -> bool:
    kind, values = wanted["name"], wanted["values"]
    if kind in {"JOB_NAME", "JOB_DEFINITION"}:  # an asterisk at the end is any ending
        text = job.job_name if kind == "JOB_NAME" else job.job_definition.name
        if kind == "JOB_NAME":  # whatever the case
            text, values = text.lower(), [value.lower() for value in values]
        return any(text.startswith(value[:-1]) if value.endswith("*") else text == value for value in values)
    created, limit = job.job_created_at.timestamp() * 1000, int(values[0])
    return created > limit if kind == "AFTER_CREATED_AT" else created < limit


def install(settings: Settings, scheduler: Scheduler) -> None:
    """Put this Batch in the place of moto's, in this process."""
    BatchCalls.settings = BatchJob.settings = settings
    BatchJob.hand_over = scheduler.add
    models.Job = BatchJob  # type: ignore[misc]
    models.JOB_NAME_REGEX = re.compile("")  # it refuses names of one character; the rules know better
    for path in (*url_paths, "{0}/v1/canceljobs$", "{0}/v1/terminatejobs$"):
        url_paths[path] = BatchCalls.dispatch
