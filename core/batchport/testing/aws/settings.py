"""Settings: how long, how many, how big. AWS's own numbers, but for quickness where they make a test wait."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACCOUNT", "HOST", "KEY", "REGION", "Settings", "environment"]

HOST = "127.0.0.1"

ACCOUNT, REGION, KEY = "123456789012", "us-east-1", "simulated"
"""moto's account; where everything is; and both parts of the credentials, which nobody checks."""


def environment(port: int) -> dict[str, str]:
    """Return the variables with which AWS's clients find the server at this port, those of its jobs too."""
    return {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": REGION,
    }


@dataclass(frozen=True)
class Settings:
    """What the server is like. Names with _s are seconds, with _mib mebibytes."""

    executor: str = "process"
    """process, for child processes of the server, or docker, for containers of the engine at DOCKER_HOST."""
    queue: str = "lab"
    """The job queue that is there from the start, enabled and with a compute environment of the same name."""
    definition: str = "lab"
    """The job definition that is there from the start: one vCPU, 512 MiB."""
    image: str = "python:3.11-slim"
    """The image in it. Processes ignore images."""
    bucket: str = "lab"
    """The bucket of S3 that is there from the start."""
    max_running: int = 4
    """The size of the compute environment, in jobs."""
    max_memory_mib: int = 16384
    """The biggest host: a job that asks for more stays RUNNABLE for ever."""
    start_delay_s: float = 0
    """How long each job is RUNNABLE at least."""
    stop_grace_s: float = 2
    """From SIGTERM to SIGKILL; AWS: 30. https://docs.aws.amazon.com/batch/latest/userguide/job_timeouts.html"""
    min_timeout_s: int = 60
    """https://docs.aws.amazon.com/batch/latest/APIReference/API_JobTimeout.html"""
    submits_per_second: int = 50
    """https://docs.aws.amazon.com/batch/latest/userguide/service_limits.html"""
    forget_after_s: float = 7 * 86400
    """How long a job that is over is known. https://docs.aws.amazon.com/batch/latest/userguide/job_states.html"""
