"""The server's process: `python -m batchport.testing.aws.server --port 5900`.

Called by the simulator and by tests/lab/aws-up.

Says "ready" once it is. SIGTERM ends its jobs and itself; so does the end of its standard input, unless it began with
none. SIGUSR1 takes every running job's host away.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import fields
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from batchport.testing.aws import api, objects
from batchport.testing.aws.scheduler import Scheduler
from batchport.testing.aws.settings import HOST, KEY, REGION, Settings, environment

__all__: list[str] = []


def _furnish(settings: Settings, endpoint: str) -> None:
    """Make what is there from the start."""
    known = {"aws_access_key_id": KEY, "aws_secret_access_key": KEY, "region_name": REGION, "endpoint_url": endpoint}
    batch, iam, s3 = (boto3.client(service, **known) for service in ("batch", "iam", "s3"))
    role = iam.create_role(RoleName="lab", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    batch.create_compute_environment(computeEnvironmentName=settings.queue, type="UNMANAGED", serviceRole=role)
    batch.create_job_queue(
        jobQueueName=settings.queue,
        state="ENABLED",
        priority=1,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": settings.queue}],
    )
    resources = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "512"}]
    batch.register_job_definition(
        jobDefinitionName=settings.definition,
        type="container",
        containerProperties={"image": settings.image, "command": ["true"], "resourceRequirements": resources},
    )
    s3.create_bucket(Bucket=settings.bucket)


def _settings() -> tuple[int, Settings]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    return given.pop("port"), Settings(**given)


def _until_eof(end: threading.Event) -> None:
    sys.stdin.buffer.read()
    end.set()


def _main() -> None:
    port, settings = _settings()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as probe:  # moto's server does not tell when the port is taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
    scheduler = Scheduler(settings, environment(port))
    api.install(settings, scheduler)
    objects.install()
    scheduler.start()
    server = ThreadedMotoServer(ip_address=HOST, port=port, verbose=False)
    server.start()
    _furnish(settings, environment(port)["AWS_ENDPOINT_URL"])
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    signal.signal(signal.SIGUSR1, scheduler.lose_hosts)
    if not os.path.samestat(os.fstat(0), Path(os.devnull).stat()):
        threading.Thread(target=_until_eof, args=(end,), daemon=True).start()
    print("ready", flush=True)  # noqa: T201 - whoever started it waits for that
    while not end.wait(1):  # without a time-out signals would not be seen
        pass
    scheduler.end()
    os._exit(0)  # threads that wait for containers would be waited for


if __name__ == "__main__":
    _main()
