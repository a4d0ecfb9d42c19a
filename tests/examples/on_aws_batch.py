"""What tests on the simulated AWS share: the way there, the image that a scaffold's Dockerfile makes, and adapters."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from batchport_aws_batch.adapter import Adapter
from batchport_aws_batch.options import Options
from tests.lab import labs

from batchport import BatchExecutor, Failure, TaskFailedError
from batchport.testing.aws import AwsSimulator

__all__ = [
    "EXAMPLE",
    "SettlesIn",
    "built",
    "executor_on",
    "failure_of",
    "led_to",
    "options_of",
    "runner_image",
    "told",
    "until",
    "words",
]

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "generated_examples" / "aws_batch"


class SettlesIn(Adapter):
    """The same, but a job that is missing is believed to be gone sooner than AWS would allow."""

    def __init__(self, seconds: float, options: Options) -> None:
        super().__init__(options)
        self.limits = replace(Adapter.limits, settle_s=seconds)


@contextmanager
def led_to(env: Mapping[str, str]) -> Iterator[None]:
    """Have boto3 and stores of this process find the AWS that `env` leads to, and no other."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith("AWS_") and not each.startswith("AWS_UP_")]:
            patch.delenv(name)
        for name, value in env.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        yield


@contextmanager
def runner_image(folder: Path) -> Iterator[str]:
    """Build the image of the example's runner/Dockerfile on the standing engine, and yield its name; remove it then.

    Its requirements are this environment's versions: the lock that the Dockerfile's first lines make is a user's own.
    """
    context = folder / "runner"
    context.mkdir()
    shutil.copy(EXAMPLE / "runner" / "Dockerfile", context)
    pinned = (f"{name}=={version(name)}\n" for name in ("cloudpickle", "obstore"))
    (context / "requirements.txt").write_text("".join(pinned), encoding="utf-8")
    uv = (str(Path(sys.executable).parent / "uv"), "build", "--quiet", "--wheel", "--out-dir", str(context / "wheels"))
    _run(*uv, str(ROOT), env=dict(os.environ))
    with built(context) as tag:
        yield tag


@contextmanager
def built(context: Path) -> Iterator[str]:
    """Build the Dockerfile of a folder on the standing engine, and yield the image's name; remove it then."""
    env, tag = labs.engine(), f"test-{uuid4().hex}"
    _run("/usr/bin/docker", "build", "--network=host", "--tag", tag, str(context), env=env)
    try:
        yield tag
    finally:
        _run("/usr/bin/docker", "rmi", "--force", tag, env=env)


def _run(*argv: str, env: Mapping[str, str]) -> None:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def options_of(aws: AwsSimulator) -> Options:
    """Return the options for what a simulated AWS has from the start."""
    return Options(queue=aws.settings.queue, definition=aws.settings.definition)


def executor_on(
    aws: AwsSimulator, *, adapter: Adapter | None = None, store: str | None = None, **worker: Any
) -> BatchExecutor:
    """Return an executor on a simulated AWS that this process is led to, with a part of its bucket to itself."""
    quick: dict[str, Any] = {"poll_s": (0.3, 1), "results_s": 0.1, "grace_s": 2, **worker}
    quick.setdefault("python", "python" if aws.settings.executor == "docker" else sys.executable)
    return BatchExecutor(
        adapter or SettlesIn(3, options_of(aws)), store or f"{aws.store}/{secrets.token_hex(4)}", **quick
    )


def failure_of(future: Future[Any], seconds: float = 60) -> Failure:
    """Wait for a call that must fail, and return how it did."""
    error = future.exception(timeout=seconds)
    assert isinstance(error, TaskFailedError), f"it should have failed, and came to {error or future.result()!r}"
    return error.failure


def words(failure: Failure) -> str:
    """Return what is said, with what differs from run to run taken out."""
    return re.sub(r"^Job \S+( \([0-9a-f:-]+\))?", "Job NAME", failure.message)


def told(caplog: pytest.LogCaptureFixture, *parts: str) -> list[str]:
    """Return the warnings in which all these words are."""
    warnings = (each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
    return [message for message in warnings if all(part in message for part in parts)]


def until(what: str, look: Callable[[], T], seconds: float = 60) -> T:
    """Wait until something is there, and return it."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return seen
