"""Runs one competitor on the Slurm that answers here: in a process of its own, its commands counted, its jobs ended.

Imported by slurm.py and slurm_faults.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from _environments import MissingPeerError, python_with
from _slurm_peers import COMPETITORS, PINS, Place

__all__ = [
    "NoSlurmError",
    "Run",
    "SkippedError",
    "example",
    "out",
    "place",
    "python_for",
    "running",
    "said",
    "sentence",
    "sinfo",
]

EXAMPLES = Path(__file__).resolve().parents[1] / "generated_examples" / "slurm" / "src"
COUNTED = ("sbatch", "srun", "salloc", "squeue", "sacct", "scancel", "sinfo", "scontrol", "sdiag", "sacctmgr")
"""All of Slurm's commands that ask its daemons for something."""
ENDING_S = 60.0
_installing = Lock()


class NoSlurmError(Exception):
    """No Slurm can be used here; the text says why."""


class SkippedError(Exception):
    """A competitor can't be run here; the text says why."""


def out(*command: str, check: bool = True) -> str:
    """Run a command of Slurm's, uncounted, and return what it printed."""
    return subprocess.run(command, check=check, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def sinfo() -> Place:
    """Return the cluster that answers here: its default partition.

    Raises NoSlurmError.
    """
    if missing := [name for name in ("sbatch", "squeue", "scontrol") if shutil.which(name) is None]:
        raise NoSlurmError(f"there is no {missing[0]} on PATH")
    try:
        listed = out("sinfo", "--noheader", "--format=%P %D %c")
        config = out("scontrol", "show", "config")
    except subprocess.SubprocessError as error:
        raise NoSlurmError(f"Slurm does not answer: {error}") from error
    name, nodes, cpus = next(line.split() for line in listed.splitlines() if line.split()[0].endswith("*"))
    controller = next(line for line in config.splitlines() if line.startswith("SlurmctldHost"))
    loopback = "(127.0.0.1)" in controller
    return Place("", "", name.rstrip("*"), int(nodes), int(cpus.rstrip("+")), loopback, 0)


def example() -> str:
    """Return the folder of the slurm adapter's package.

    Raises SkippedError.
    """
    found = sorted(EXAMPLES.glob("*/adapter.py"))
    if not found:
        raise SkippedError("there is no generated_examples/slurm")
    return str(found[0].parent)


def python_for(peer: str | None) -> str:
    """Return the Python that has this peer and no batchport; made once in the temporary folder, by uv.

    Raises SkippedError, in words, where that can't be done.
    """
    if peer is None:
        return sys.executable
    pins = PINS[peer]
    version = pins[0].partition("==")[2]
    with _installing:
        try:
            return python_with(f"{peer}-{version}", *pins)
        except MissingPeerError as missing:
            raise SkippedError(str(missing)) from missing


@contextmanager
def place(cluster: Place, calls: int, package: str = "") -> Iterator[Place]:
    """Give the place for one run, whose folder is new and goes at the end."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-", ignore_cleanup_errors=True) as folder:
        yield Place(folder, package, cluster.partition, cluster.nodes, cluster.cpus, cluster.loopback, calls)


@dataclass
class Run:
    """A competitor's process, and what it has asked of Slurm so far."""

    process: subprocess.Popen[bytes]
    where: Place

    def report(self) -> dict[str, Any] | None:
        """Return what it has left, None before there is something."""
        try:
            left: dict[str, Any] = json.loads(Path(self.where.folder, "report.json").read_bytes())
        except FileNotFoundError:
            return None
        return left

    def wait(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Wait until something holds or the process has ended; return False if neither comes in time."""
        end = time.monotonic() + seconds
        while not until():
            if self.process.poll() is not None:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def last_words(self) -> str:
        """Return the last line that it printed."""
        return said(Path(self.where.folder, "driver.log").read_text("utf-8", "replace"), -1)

    def commands(self) -> tuple[Counter[str], Counter[str]]:
        """Return how often it has run each of Slurm's commands: itself, and from within jobs."""
        itself: Counter[str] = Counter()
        in_jobs: Counter[str] = Counter()
        log = Path(self.where.folder, "commands")
        for line in log.read_text("utf-8").splitlines() if log.exists() else ():
            name, *job = line.split()
            (in_jobs if job else itself)[name] += 1
        return itself, in_jobs

    def living_jobs(self) -> list[str]:
        """Return the ids of its jobs that have not ended; elements by their array's."""
        noted = Path(self.where.folder, "jobs")
        mine = noted.read_text("utf-8").split() if noted.exists() else []
        living = set(out("squeue", "--noheader", "--me", "--format=%F").split())
        return [job for job in mine if job in living]


def said(text: str, line: int = 0) -> str:
    """Return one line of what somebody said, the empty ones not counted."""
    lines = [each.strip() for each in text.splitlines() if each.strip()]
    return lines[line] if lines else "no words"


@contextmanager
def running(name: str, where: Place) -> Iterator[Run]:
    """Start a competitor and give its run; at the end its process goes, and its jobs.

    Raises SkippedError.
    """
    python = python_for(COMPETITORS[name].peer)
    folder = Path(where.folder)
    # HOME, or what this user has set for a peer would count, and the peers would leave files there.
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    bin_folder = str(Path(python).parent)
    env |= {"HOME": where.folder, "PATH": f"{counting(folder)}{os.pathsep}{bin_folder}{os.pathsep}{env['PATH']}"}
    script = str(Path(__file__).with_name("_slurm_peers.py"))
    with (folder / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            (python, script, name, json.dumps(asdict(where))),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    run = Run(process, where)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if jobs := run.living_jobs():
            out("scancel", *jobs, check=False)
            ends = time.monotonic() + ENDING_S
            while run.living_jobs() and time.monotonic() < ends:
                time.sleep(0.5)


def counting(folder: Path) -> Path:
    """Return a folder for the front of PATH, whose commands note that they were called and run the real ones."""
    made = folder / "counting"
    made.mkdir()
    for name in COUNTED:
        if (real := shutil.which(name)) is None:
            continue
        note = f'#!/bin/sh\necho "{name}${{SLURM_JOB_ID:+ in-job}}" >>{folder}/commands\n'
        call = f'exec {real} "$@"\n'
        if name == "sbatch":  # what it submits is noted, to be ended
            call = (
                f'answer=$({real} "$@")\nfailed=$?\n[ -z "$answer" ] || printf "%s\\n" "$answer"\n'
                f'id=${{answer##* }}\n[ $failed != 0 ] || echo "${{id%%;*}}" >>{folder}/jobs\nexit $failed\n'
            )
        (made / name).write_text(note + call, "utf-8")
        (made / name).chmod(0o755)
    return made


def sentence(counts: Mapping[str, int]) -> str:
    """Return commands and how often each was run, in words."""
    order: Sequence[str] = sorted(counts, key=lambda name: (name not in COUNTED, COUNTED.index(name)))
    return ", ".join(f"{name} {counts[name]}" for name in order)
