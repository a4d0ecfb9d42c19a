"""An attempt: one run of a job, from STARTING to its exit code, and whether there will be another.

Called by the scheduler, in a thread of its own.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from batchport.testing.aws.jobs import BatchJob, now_ms
from batchport.testing.aws.processes import Processes
from batchport.testing.aws.rules import ESSENTIAL, NO_START, OUT_OF_MEMORY, TIMEOUT
from batchport.testing.aws.settings import ACCOUNT, REGION
from batchport.testing.aws.work import NotStartedError, Work

__all__ = ["Attempt"]

LOOK_S = 0.03
LOGS = threading.Lock()
"""moto's logs are for one thread at a time."""
REASON_CHARACTERS = 255
"""https://docs.aws.amazon.com/batch/latest/APIReference/API_ContainerDetail.html"""


class Attempt:
    """The next run of this job; `job_env` is what its job role would give it: an endpoint and credentials."""

    def __init__(self, job: BatchJob, job_env: Mapping[str, str]) -> None:
        self.job, self.job_env = job, job_env

    def run(self) -> bool:
        """Run it to its end, and return whether the job is to be run again."""
        job = self.job
        job.attempt += 1
        job.host_gone, job.reason, job.exit_code = False, None, None
        task, host = uuid.uuid4().hex, uuid.uuid4().hex
        # https://docs.aws.amazon.com/batch/latest/userguide/using_cloudwatch_logs.html
        stream = job.log_stream_name = f"{job.job_definition.name}/default/{task}"
        job.job_started_at, began = datetime.now(), now_ms()  # noqa: DTZ005 - as moto's are
        container: dict[str, Any] = {
            "containerInstanceArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:container-instance/lab/{host}",
            "taskArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/lab/{task}",
            "networkInterfaces": [],
        }
        try:
            work = self._start()
            job.began_ms = began = now_ms()
            container["logStreamName"] = stream
            job.status = "RUNNING"
            why = self._watch(work)
        except NotStartedError as error:
            job.reason, why = str(error)[:REASON_CHARACTERS], NO_START
        if job.exit_code is not None:
            container["exitCode"] = job.exit_code
        if job.reason:
            container["reason"] = job.reason
        job.attempts.append({"container": container, "startedAt": began, "stoppedAt": now_ms(), "statusReason": why})
        if job.exit_code == 0 and why == ESSENTIAL:
            job.finish("SUCCEEDED", why)
            return False
        # One that was terminated or timed out is not run again:
        # https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html
        if job.stop or why == TIMEOUT or not self._again(why):
            job.finish("FAILED", why)
            return False
        job.job_stopped_reason = why
        return True

    def _start(self) -> Work:
        job = self.job
        name = f"{job.job_name[:60]}-{job.job_id.replace(':', '-')}-{job.attempt}"
        env = {**self.job_env, **job.environment}
        memory = int(job.resource("MEMORY", 2048))
        if job.settings.executor == "process":
            return Processes(name, job.command, env, memory)
        from batchport.testing.aws.containers import Container

        return Container(name, job.properties.get("image", ""), job.command, env, memory, job.resource("VCPU", 1))

    def _watch(self, work: Work) -> str:
        """Wait for its end, or bring it about, and return the statusReason."""
        job = self.job
        reader = threading.Thread(target=self._log, args=(work.output(),), daemon=True)
        reader.start()
        limit, why, kill_at = job._get_attempt_duration() or float("inf"), ESSENTIAL, float("inf")  # noqa: SLF001
        end = time.monotonic() + limit
        while (code := work.exit_code()) is None:
            now = time.monotonic()
            if job.host_gone or now > kill_at:
                work.kill()
                kill_at = float("inf")
            elif why == ESSENTIAL and (job.stop or now > end):
                why = (job.job_stopped_reason or "terminated") if job.stop else TIMEOUT
                work.terminate()
                kill_at = now + job.settings.stop_grace_s
            time.sleep(LOOK_S)
        work.kill()  # what its first process left
        reader.join(5)
        if job.host_gone:
            # "Host EC2*": https://docs.aws.amazon.com/batch/latest/userguide/job_retries.html
            why = f"Host EC2 (instance i-{uuid.uuid4().hex[:17]}) terminated."
        else:
            if work.out_of_memory():
                job.reason = OUT_OF_MEMORY
            job.exit_code = code
        work.remove()
        return why

    def _log(self, chunks: Iterator[bytes]) -> None:
        logs, group, stream = self.job._log_backend, self.job._log_group, self.job.log_stream_name  # noqa: SLF001
        assert stream is not None
        with LOGS:
            logs.ensure_log_group(group)
            logs.ensure_log_stream(group, stream)

        def put(lines: list[bytes]) -> None:
            events = [{"timestamp": now_ms(), "message": line.decode("utf-8", "replace")} for line in lines if line]
            if events:
                with LOGS:
                    logs.put_log_events(group, stream, events)

        rest = b""
        for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            put(lines)
        put([rest])

    def _again(self, status_reason: str) -> bool:
        """See https://docs.aws.amazon.com/batch/latest/APIReference/API_EvaluateOnExit.html."""
        job = self.job
        if job.attempt >= int(job.retry.get("attempts", 1)):
            return False
        told = {"onStatusReason": status_reason, "onReason": job.reason or "", "onExitCode": str(job.exit_code)}
        rules: Any = job.retry.get("evaluateOnExit", [])
        for rule in rules:
            if all(_matches(rule[key], text) for key, text in told.items() if key in rule):
                return bool(rule["action"].upper() == "RETRY")
        return True  # no rule matches


def _matches(pattern: str, text: str) -> bool:
    """Return whether a pattern that may end in an asterisk matches, whatever the case."""
    begin, star = pattern.removesuffix("*"), pattern.endswith("*")
    return re.fullmatch(re.escape(begin) + ".*" * star, text, re.IGNORECASE | re.DOTALL) is not None
