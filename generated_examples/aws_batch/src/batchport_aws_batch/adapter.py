"""The adapter: how a job gets on to AWS Batch, how it is seen there, and how it is ended.

By boto3: https://docs.aws.amazon.com/batch/latest/APIReference/API_SubmitJob.html, API_DescribeJobs.html,
API_ListJobs.html, API_TerminateJobs.html. The job definition is one of type container, with containerProperties.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import boto3
from batchport import (
    BackendUnusableError,
    BatchWorkerAdapterBase,
    Check,
    JobSpec,
    JobStatus,
    Limits,
    RejectedJobError,
    TransientBackendError,
)
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .check import checks, whose_fault
from .options import Options
from .states import children, meaning, status


class Adapter(BatchWorkerAdapterBase):
    """Puts jobs on AWS Batch. Ids in, statuses out: it keeps no table of jobs and never retries."""

    contract = 1
    options_type = Options
    limits = Limits(  # https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html
        name_length=128,
        inline_bytes=4096,  # Amazon ECS takes 8192 characters of overrides: all of their JSON, with base64 in it
        poll_batch=100,
        array_size=10_000,
        array_index="AWS_BATCH_JOB_ARRAY_INDEX",
        parallel_calls=4,
        settle_s=120,
        submits_per_second=50,
    )

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, worker: str) -> None:  # noqa: ARG002 - jobs are told apart by their names
        self.ask("batch", "describe_job_queues", jobQueues=[self.options.queue])  # is there a region, may we ask there?

    def submit_job(self, job: JobSpec) -> str:
        # After an unclear answer it would not be found by its name, and made twice.
        if own := job.resources.extra.keys() & {"jobName", "jobQueue"}:
            raise RejectedJobError(f"{min(own)} can't be in `extra`: jobs are found by name, in the option `queue`")
        try:
            return str(self.ask("batch", "submit_job", **self.request(job))["jobId"])
        except RejectedJobError as error:
            raise whose_fault(error, job.resources.extra, self.options, self.ask) from error

    def request(self, job: JobSpec) -> dict[str, Any]:
        """Return what SubmitJob is asked for; the user's `extra` has the last word, and None there removes it."""
        need: Any = job.resources
        return {
            name: value
            for name, value in {
                "jobName": job.name,
                "jobQueue": self.options.queue,
                "jobDefinition": self.options.definition,
                "arrayProperties": {"size": job.size} if job.size > 1 else None,
                "retryStrategy": {"attempts": 1},
                "timeout": {"attemptDurationSeconds": max(60, need.time_limit_s)} if need.time_limit_s else None,
                "shareIdentifier": self.options.share or None,
                "schedulingPriorityOverride": self.options.priority,
                "tags": dict(self.options.tags) or None,
                **need.extra,
                "containerOverrides": {
                    name: value
                    for name, value in {
                        "command": ["bash", "-c", job.script] if job.setup else list(job.command),
                        "environment": [{"name": key, "value": job.env[key]} for key in job.env if not job.setup],
                        "resourceRequirements": [
                            {"type": kind, "value": str(amount)}
                            for kind, amount in (("VCPU", need.cpus), ("MEMORY", need.memory_mib), ("GPU", need.gpus))
                            if amount
                        ],
                        **need.extra.get("containerOverrides", {}),
                    }.items()
                    if value is not None
                },
            }.items()
            if value is not None
        }

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        jobs = {job["jobId"]: job for job in self.describe(job_ids)}
        # Batch says of children what keeps an array from its start: while all wait, the first speaks for the array.
        jobs |= {
            (array := first["jobId"].partition(":")[0]): jobs[array] | {"statusReason": first.get("statusReason")}
            for first in self.describe([f"{each}:0" for each in jobs if children(jobs[each]) == {"RUNNABLE"}])
        }
        # An array speaks for its children, but not for those that failed, nor, once it has failed, for the others:
        # their sum may be older than its own state. A listing leaves out the timeout, which is the array's.
        apart = (
            {"timeout": job.get("timeout", {}), **child}
            for each, job in jobs.items()
            for state in ({"FAILED", "SUCCEEDED"} if job["status"] == "FAILED" else {"FAILED"} & children(job))
            if children(job)
            for child in self.ask("batch", "list_jobs", arrayJobId=each, jobStatus=state)["jobSummaryList"]
        )
        return [status(job) for job in chain(jobs.values(), apart)]

    def cancel_job(self, job_id: str) -> None:
        self.cancel_jobs([job_id])

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        # CancelJobs would leave alone what is STARTING or RUNNING. A job that can't be ended must not keep the others.
        if errors := [
            error
            for some in (list(job_ids[start : start + 50]) for start in range(0, len(job_ids), 50))
            for error in self.ask("batch", "terminate_jobs", jobs=some, reason="cancelled by batchport")["errors"]
        ]:
            raise TransientBackendError(f"AWS Batch did not terminate {errors}")

    def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        return [
            (job["jobName"], job["jobId"])
            for wanted in ([{"name": "JOB_NAME", "values": [name]}] for name in names)
            for job in self.ask("batch", "list_jobs", jobQueue=self.options.queue, filters=wanted)["jobSummaryList"]
        ]

    def inspect_job(self, job_id: str) -> JobStatus | None:
        for job, box in ((each, each["container"]) for each in self.describe([job_id])):
            log = "logStreamName" in box and self.ask(
                "logs",
                "get_log_events",
                logGroupName=box.get("logConfiguration", {}).get("options", {}).get("awslogs-group", "/aws/batch/job"),
                logStreamName=box["logStreamName"],
                limit=50,
            )
            return status(job, log["events"] if log else ())
        return None

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}:{index}"

    def check(self) -> Iterable[Check]:
        return checks(self.options, self.ask, self.clients["batch"].meta.region_name)

    def close(self) -> None:
        vars(self).pop("clients", None)  # their connections go with them

    def describe(self, job_ids: Sequence[str]) -> list[Any]:
        """Return what Batch shows of these jobs, at most 100."""
        return list(self.ask("batch", "describe_jobs", jobs=list(job_ids))["jobs"]) if job_ids else []

    def ask(self, service: str, operation: str, **asked: object) -> dict[str, Any]:
        """Call AWS, page by page where an answer has pages. Errors come as the contract's, in AWS's words."""
        try:
            return dict(
                client.get_paginator(operation).paginate(**asked).build_full_result()
                if (client := self.clients[service]).can_paginate(operation)
                else getattr(client, operation)(**asked)
            )
        except (BotoCoreError, ClientError) as error:
            if isinstance(means := meaning(error, operation), BackendUnusableError):
                self.close()  # boto3 reads credentials once: the next call shall see new ones
            raise means from error

    @cached_property
    def clients(self) -> dict[str, Any]:
        """Clients that ask once: asked again by botocore, SubmitJob would make second jobs. The worker asks again."""
        return {
            service: boto3.Session(
                profile_name=self.options.profile or None, region_name=self.options.region or None
            ).client(service, config=Config(connect_timeout=10, retries={"total_max_attempts": 1}))
            for service in ("batch", "logs", "sts")
        }
