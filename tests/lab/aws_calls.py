"""Calls to a simulated AWS through boto3, as the tests of the lab and of what runs on it make them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import boto3
from botocore.config import Config

__all__ = ["Calls"]

OVER = ("SUCCEEDED", "FAILED")


class Calls:
    """Clients for the AWS that `env` leads to; `endpoint` is another way there, as through a proxy."""

    def __init__(
        self, env: Mapping[str, str], *, endpoint: str | None = None, attempts: int = 1, **config: Any
    ) -> None:
        self.queue, self.definition = env.get("AWS_UP_QUEUE", "lab"), env.get("AWS_UP_DEFINITION", "lab")
        self.bucket = env.get("AWS_UP_BUCKET", "lab")
        self._known = {
            "endpoint_url": endpoint or env["AWS_ENDPOINT_URL"],
            "region_name": env["AWS_DEFAULT_REGION"],
            "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
            "config": Config(retries={"total_max_attempts": attempts}, **config),
        }
        self.batch = self.client("batch")
        self.logs = self.client("logs")

    def client(self, service: str) -> Any:
        """Return boto3's client of another service."""
        return boto3.client(service, **self._known)

    def submit(self, *command: str, name: str = "job", env: Mapping[str, str] | None = None, **more: Any) -> str:
        """Submit a job and return its id; `more` are SubmitJob's own parameters."""
        overrides: dict[str, Any] = more.pop("containerOverrides", {})
        if command:
            overrides["command"] = list(command)
        if env:
            overrides["environment"] = [{"name": key, "value": value} for key, value in env.items()]
        asked = {"jobName": name, "jobQueue": self.queue, "jobDefinition": self.definition} | more
        return str(self.batch.submit_job(containerOverrides=overrides, **asked)["jobId"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return what DescribeJobs says of one job."""
        (found,) = self.batch.describe_jobs(jobs=[job_id])["jobs"]
        return dict(found)

    def wait(self, job_id: str, *states: str, seconds: float = 30) -> dict[str, Any]:
        """Wait until a job is in one of these states, or over, and return what DescribeJobs says of it."""
        deadline = time.monotonic() + seconds
        while (seen := self.job(job_id))["status"] not in (states or OVER):
            assert time.monotonic() < deadline, f"{job_id} is {seen['status']} after {seconds} s"
            time.sleep(0.03)
        return seen

    def run(self, *command: str, **more: Any) -> dict[str, Any]:
        """Submit a job, wait for its end and return what DescribeJobs says of it."""
        return self.wait(self.submit(*command, **more))

    def log(self, job: Mapping[str, Any]) -> list[str]:
        """Return the lines of a job's log."""
        stream = job["container"]["logStreamName"]
        events = self.logs.get_log_events(logGroupName="/aws/batch/job", logStreamName=stream, startFromHead=True)
        return [event["message"] for event in events["events"]]

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the jobs of this name, from all pages, the newest first."""
        wanted = [{"name": "JOB_NAME", "values": [name]}]
        pages = self.batch.get_paginator("list_jobs").paginate(jobQueue=self.queue, filters=wanted)
        return [job for page in pages for job in page["jobSummaryList"]]

    def define(self, name: str, *command: str, image: str = "python:3.11-slim", **more: Any) -> str:
        """Register a job definition of 128 MiB and return its ARN; `more` are RegisterJobDefinition's parameters."""
        properties: dict[str, Any] = {
            "image": image,
            "command": list(command),
            "environment": [{"name": "FROM_DEFINITION", "value": "1"}],
            "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "128"}],
        }
        asked = {"jobDefinitionName": name, "type": "container", "containerProperties": properties} | more
        return str(self.batch.register_job_definition(**asked)["jobDefinitionArn"])


def end_of(job: Mapping[str, Any]) -> Sequence[Any]:
    """Return status, statusReason, exit code and container.reason of a job."""
    container = job["container"]
    return job["status"], job.get("statusReason"), container.get("exitCode"), container.get("reason")
