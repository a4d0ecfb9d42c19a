"""A job as the worker makes it, run by the real runner: the door that every test here goes through."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import cloudpickle
import pytest

from batchport.envelope import Envelope
from batchport.processes import start_of
from batchport.store import FolderStore, Keys, OutKey

ROW = struct.Struct(">QQ")


def _tasks(first: int, calls: Iterable[Any]) -> tuple[list[dict[str, Any]], tuple[bytes, ...]]:
    """Return a payload's tasks and parts, for calls at places from `first` on."""
    parts: list[bytes] = []
    tasks: list[dict[str, Any]] = []
    for place, call in enumerate(calls, first):
        each = call if isinstance(call, tuple) else (call,)
        refs = range(len(parts), len(parts) + len(each))
        parts += [item if isinstance(item, bytes) else cloudpickle.dumps(item) for item in each]
        task = {"id": f"task-{place}", "function": refs[0], "args": list(refs[1:]), "kwargs": {}}
        tasks.append({**task, "time_limit_s": None})
    return tasks, tuple(parts)


class Job:
    """One job in a folder store, its runner, and what the runner left."""

    def __init__(self, root: Path) -> None:
        self.store = FolderStore(root)
        self.keys = Keys("ann")
        self.name = "square-7"
        self.env = {
            "BATCHPORT_STORE": self.store.url,
            "BATCHPORT_WORKER": "ann",
            "BATCHPORT_JOB": self.name,
        }
        self.command = [sys.executable, "-m", "batchport.runner"]
        self._started: list[subprocess.Popen[str]] = []

    def offer(  # noqa: PLR0913 - each by its name, and few at a time
        self,
        *calls: Any,
        inline: bool = True,
        time_limit_s: int | None = None,
        path: Sequence[str] = (),
        fields: Mapping[str, Any] | None = None,
        width: int | None = None,
        code: Sequence[str] | None = None,
        **header: Any,
    ) -> None:
        """Write the manifest of a job that makes these calls: a function, or (function, arg, ...), or pickled bytes.

        `fields` changes the first task's fields; `header` the payload's header.
        """
        tasks, parts = _tasks(0, calls)
        tasks = [{**task, "time_limit_s": time_limit_s} for task in tasks]
        tasks[0].update(fields or {})
        ids = [task["id"] for task in tasks]
        optional = {name: value for name, value in (("width", width), ("code", code)) if value is not None}
        payload = {"tasks": tasks, "path": list(path), **optional}
        header = {"job": self.name, "cloudpickle": cloudpickle.__version__, "parts": parts, **header}
        if inline:
            manifest = Envelope("manifest", self.name, fields={"tasks": ids, "inline": True})
            data = Envelope("payload", fields=payload, **header).to_bytes()
            self.env["BATCHPORT_PAYLOAD"] = base64.b64encode(data).decode()
        else:
            manifest = Envelope("manifest", fields={"tasks": ids, "inline": False, "payload": payload}, **header)
        self.store.put(self.keys.manifest(self.name), manifest.to_bytes())

    def offer_array(self, *packs: Sequence[Any], width: int = 1, **header: Any) -> None:
        """Write the manifest and the payloads of an array, one element a pack; calls are as those of `offer`."""
        header = {"job": self.name, "cloudpickle": cloudpickle.__version__, **header}
        payloads, first = [], 0
        for pack in packs:
            tasks, parts = _tasks(first, pack)
            fields = {"tasks": tasks, "path": [], "first": first, "width": width}
            payloads.append(Envelope("payload", parts=parts, fields=fields, **header).to_bytes())
            first += len(pack)
        rows, start = b"", ROW.size * len(payloads)
        for payload in payloads:
            rows += ROW.pack(start, len(payload))
            start += len(payload)
        self.store.put(self.keys.array(self.name), rows + b"".join(payloads))
        # What else is in it is the worker's business.
        self.store.put(self.keys.manifest(self.name), b"a manifest")

    def element(self, index: int, base: int = 0) -> None:
        """Make this job the element `index` of its array, as a backend does that counts from `base`."""
        self.env["BATCHPORT_INDEX"] = f"ELEMENT:{base}"
        self.env["ELEMENT"] = str(index + base)

    def zip(self, files: Mapping[str, str]) -> str:
        """Store a zip of these files (their texts by name); return its blob's key, for `code`."""
        data = BytesIO()
        with ZipFile(data, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        self.store.put(self.keys.blob(digest), data.getvalue())
        return digest

    def first(self, statements: str) -> None:
        """Have these statements run in the runner's process before it: a fault that a test cannot make outside."""
        main = "from batchport.runner import memory, pack; from batchport.store import FolderStore"
        self.command = [sys.executable, "-c", f"{main}\n{statements}\nraise SystemExit(pack.main())"]

    def start(self) -> subprocess.Popen[str]:
        """Start the runner."""
        runner = subprocess.Popen(
            self.command,
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._started.append(runner)
        return runner

    def run(self) -> tuple[int, str, str]:
        """Run the runner to its end; return exit code, stdout and stderr."""
        runner = self.start()
        out, err = runner.communicate(timeout=50)
        return runner.returncode, out, err

    def close(self) -> None:
        """Kill what a failed test left."""
        for runner in self._started:
            if runner.poll() is None:
                runner.kill()
            runner.communicate()

    def left(self) -> list[tuple[int, str]]:
        """Return what is in the store's `out`: (place, kind), sorted."""
        outs = [OutKey.parse(name) for name in self.store.names(self.keys.out)]
        return sorted((out.place, out.kind) for out in outs if out)

    def read(self, kind: str, place: int = 0) -> Envelope:
        """Read one object of `out`, of whichever attempt."""
        for name in self.store.names(self.keys.out):
            out = OutKey.parse(name)
            if out and (out.place, out.kind) == (place, kind):
                data = self.store.get(self.keys.left(out))
                assert data is not None
                return Envelope.from_bytes(data, ("result", "exception", "evidence", "stopped", "second"))
        raise AssertionError(f"no {kind} of place {place}, only {self.left()}")

    def result(self, place: int = 0) -> Any:
        """Return what a call returned."""
        envelope = self.read("result", place)
        assert envelope.kind == "result", dict(envelope.fields)
        return cloudpickle.loads(envelope.parts[0])

    def fields(self, kind: str, place: int = 0) -> dict[str, Any]:
        """Return an envelope's fields, after a look at its kind."""
        envelope = self.read("result" if kind in {"result", "exception"} else kind, place)
        assert envelope.kind == kind, dict(envelope.fields)
        return dict(envelope.fields)

    def output(self, place: int = 0) -> str:
        """Return what a task printed, from the envelope that ended it."""
        kind = "result" if (place, "result") in self.left() else "evidence"
        return self.read(kind, place).parts[1].decode()

    def stop(self, place: int = 0) -> None:
        """Write a stop marker."""
        self.store.put(self.keys.stop(self.name, place), b"")


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path / "the store")
    yield job
    job.close()


def wait_until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds; fail if it does not in that time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{holds} did not come true within {seconds} s"
        time.sleep(0.01)


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[[Callable[[], object]], None]:
    return wait_until


def is_alive(pid: int) -> bool:
    """Return whether there is such a process, and not only its zombie."""
    return start_of(pid) is not None
