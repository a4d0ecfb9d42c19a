"""What tests of bad days on the real Slurm share: executors, Slurm's own word, and commands that misbehave."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from batchport_slurm.adapter import Adapter
from batchport_slurm.options import Options

from batchport import BatchExecutor, Failure, TaskFailedError

__all__ = [
    "Env",
    "SettlesIn",
    "calls",
    "executor_on",
    "failure_of",
    "in_front_of",
    "jobs_called",
    "said",
    "until",
    "words",
]

Env = Mapping[str, str]
T = TypeVar("T")


class SettlesIn(Adapter):
    """The same, but a job that is missing is believed to be gone sooner than a busy cluster would allow."""

    def __init__(self, seconds: float, options: Options) -> None:
        super().__init__(options)
        self.seconds = seconds

    async def open(self, worker: str) -> None:
        await super().open(worker)
        self.limits = replace(self.limits, settle_s=self.seconds)


def executor_on(
    folder: Path, *, settle_s: float = 60, options: Mapping[str, str] = {}, store: Path | None = None, **worker: Any
) -> BatchExecutor:
    """Return an executor on the cluster that SLURM_CONF names, with its files in a folder that jobs see."""
    adapter = SettlesIn(settle_s, Options(logs=str(folder / "logs"), **options))
    quick: dict[str, Any] = {"poll_s": (0.5, 2), "results_s": 0.1, "grace_s": 2, **worker}
    return BatchExecutor(adapter, store or folder / "store", **quick)


def failure_of(future: Future[Any], seconds: float = 30) -> Failure:
    """Wait for a call that must fail, and return how it did."""
    error = future.exception(timeout=seconds)
    assert isinstance(error, TaskFailedError), f"it should have failed, and came to {error or future.result()!r}"
    return error.failure


def words(failure: Failure) -> str:
    """Return what is said, with what differs from run to run taken out."""
    text = re.sub(r"[a-z-]+-[a-z0-9]{8}-\w+-\w+", "NAME", failure.message)
    return re.sub(r"\(\d+(_\d+)?\)", "(ID)", text)


def until(what: str, look: Callable[[], T], seconds: float = 60) -> T:
    """Wait until something is there, and return it."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return seen


def said(env: Env, *command: str) -> str:
    """Return what one of Slurm's commands prints, which may fail."""
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.strip()


def jobs_called(label: str, env: Env) -> list[str]:
    """Return the ids of all jobs of the call with this label, one for an array, that squeue lists."""
    listed = (line.split() for line in said(env, "squeue", "-h", "-t", "all", "-o", "%F %j").splitlines())
    return sorted({job_id for job_id, name in listed if label in name})


def in_front_of(command: str, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a script that is found before one of Slurm's commands, and return its folder, for switches.

    It finds the real one in $real, that folder in $here, and each call adds a line to the file $here/COMMAND.calls.
    """
    here = folder / "bin"
    here.mkdir(exist_ok=True)
    head = f"#!/bin/bash\nreal={shutil.which(command)}\nhere={here}\necho called >>$here/{command}.calls\n"
    (here / command).write_text(head + script, encoding="utf-8")
    (here / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    return here


def calls(command: str, here: Path) -> int:
    """Return how often a command was called that has a script in front of it."""
    counted = here / f"{command}.calls"
    return len(counted.read_text(encoding="utf-8").splitlines()) if counted.exists() else 0
