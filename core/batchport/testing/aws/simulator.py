"""AwsSimulator: a simulated AWS in a process of its own, where clients find it, and its misbehaviour."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from batchport.testing.aws.settings import HOST, Settings, environment

__all__ = ["AwsSimulator"]

NEEDED = ("boto3", "flask_cors", "moto", "docker")
END_S = 30


class AwsSimulator:
    """AWS Batch, S3 and CloudWatch Logs at an endpoint on this machine; jobs are processes here, or containers.

    `env` is the environment in which boto3 and a store s3:// find it: for os.environ, or a command's own. What is
    there from the start is named by `settings`: a queue, a job definition and a bucket. Leaving the `with` block ends
    all jobs; nothing is kept.

    settings: those of `batchport.testing.aws.settings.Settings`, as in max_running=2. executor="docker" needs an
        engine at DOCKER_HOST, whose containers share this machine's network.
    """

    def __init__(self, **settings: Any) -> None:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f"no {missing[0]}: the AWS simulator needs batchport[testing-aws]")
        self.settings = Settings(**settings)
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        self.env = environment(port)
        """The variables with which AWS's clients find it."""
        self.endpoint = self.env["AWS_ENDPOINT_URL"]
        words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        # It ends when its standard input does: a test run that is killed leaves no server.
        self._server = subprocess.Popen(
            (sys.executable, "-m", "batchport.testing.aws.server", f"--port={port}", *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("the AWS simulator did not start; what it said is on standard error")

    @property
    def store(self) -> str:
        """The URL of the bucket that is there from the start."""
        return f"s3://{self.settings.bucket}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all jobs and the server. Raises TimeoutError, with its id, if it does not end."""
        for pipe in (self._server.stdin, self._server.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._server.wait(END_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            raise TimeoutError(
                f"the AWS simulator, process {self._server.pid}, did not end; jobs of its may be left"
            ) from None

    def lose_hosts(self) -> None:
        """Take the host of every running job away, as when a Spot instance is: statusReason "Host EC2 ..."."""
        self._server.send_signal(signal.SIGUSR1)
