"""Marks: what a job leaves behind to show that it was there, seen without asking the adapter.

Written by the probe and by the suite's functions inside jobs, read by the suite. No pytest here: jobs
import this.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from batchport.processes import start_of
from batchport.store import open_store

__all__ = ["BEAT_S", "Mark", "Marks", "here"]

BEAT_S = 0.5
"""How often, in seconds, a process that waits renews its beat."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One process was here: which (`pid`, its start, the host), when, and with what words and variables.

    `attempt` is new for each process, so two marks of one label are two runs. `env` holds only the
    variables whose names begin with PROBE_.
    """

    label: str
    attempt: str
    pid: int
    started: str | None
    host: str
    time: float = field(default_factory=time.time)
    words: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)


class Marks:
    """The marks of one job, in the folder marks/KEY of a store. `url` may be any that jobs can reach."""

    def __init__(self, url: str, key: str) -> None:
        self.key = key
        self._store = open_store(url)
        self.url = self._store.url
        self._attempt = secrets.token_hex(4)

    def leave(self, label: str) -> None:
        """Leave a mark for this process."""
        env = {name: value for name, value in os.environ.items() if name.startswith("PROBE_")}
        mark = Mark(label, self._attempt, os.getpid(), start_of(os.getpid()), here(), words=sys.argv[1:], env=env)
        self._put(f"{label}.{self._attempt}", json.dumps(asdict(mark)))

    def read(self, label: str) -> list[Mark]:
        """Return all marks of this label, the oldest first."""
        names = [name for name in self._store.names(self._folder) if name.partition(".")[0] == label]
        texts = [self._store.get(f"{self._folder}/{name}") for name in names]
        marks = [Mark(**json.loads(text)) for text in texts if text]
        return sorted(marks, key=lambda mark: mark.time)

    def hold(self, seconds: float, gate: str = "go") -> bool:
        """Wait until the gate is open, at most so long; beat meanwhile. Return whether it was opened.

        Gives up at once if the marks are cleared: the suite is over, and nobody will open any gate.
        """
        end, beat = time.monotonic() + seconds, f"beat.{self._attempt}"
        last = 0.0
        while time.monotonic() < end:
            if self._store.exists(f"{self._folder}/{gate}"):
                return True
            if time.monotonic() - last > BEAT_S:
                if last and self.beat(self._attempt) is None:
                    return False
                last = time.monotonic()
                self._put(beat, str(last))
            time.sleep(0.05)
        return False

    def release(self, gate: str = "go") -> None:
        """Open the gate for all processes that hold at it, or ever will."""
        self._put(gate, "")

    def beat(self, attempt: str) -> bytes | None:
        """Return that process's last beat; one that no longer changes belongs to a process that is gone."""
        return self._store.get(f"{self._folder}/beat.{attempt}")

    def clear(self) -> None:
        """Remove all of this job's marks."""
        self._store.delete([f"{self._folder}/{name}" for name in self._store.names(self._folder)])

    @property
    def _folder(self) -> str:
        return f"marks/{self.key}"

    def _put(self, name: str, text: str) -> None:
        self._store.put(f"{self._folder}/{name}", text.encode())


def here() -> str:
    """Return what tells this host and, on Linux, this set of process ids from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
