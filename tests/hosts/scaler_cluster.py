"""What the tests of the Scaler host share: a real scheduler and object storage, and a worker of ours beside them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from batchport.adapter import BatchWorkerAdapterBase
from batchport.backends.local import LocalAdapter, Options

if find_spec("scaler") is None:
    missing = "opengris-scaler is not installed: uv sync --all-groups --all-extras, or pip install 'batchport[scaler]'"
    if os.environ.get("CI") == "true":  # what is not tested in CI is not tested anywhere
        pytest.fail(missing)
    pytest.skip(missing, allow_module_level=True)

from scaler import Client, Serializer

from batchport.hosts.scaler import ScalerWorker

__all__ = ["NAME", "Client", "Serializer", "Worker", "free_address", "hold", "new_scheduler", "running"]

NAME = "from-scaler"

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs have no `tests`


def hold(folder: str, number: int, data: bytes = b"") -> int:
    """Leave a line with this process's id in a file of its own, and wait until there is a file called go."""
    with Path(folder, f"ran-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return number + len(data)


def free_address() -> str:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def is_open(address: str) -> bool:
    host, port = address.removeprefix("tcp://").split(":")
    with closing(socket.socket()) as sock:
        return sock.connect_ex((host, int(port))) == 0


@contextmanager
def running(command: str, address: str, *options: str, log: Path) -> Iterator[None]:
    """Run one of upstream's servers, by the command that upstream gives it."""
    argv = (str(Path(sys.executable).parent / command), address, *options, "--logging-paths", "/dev/stdout")
    with log.open("wb") as file, subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 20
            while not is_open(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def new_scheduler(logs: Path, *more: str) -> Iterator[str]:
    """Give the address of a scheduler that has an object storage server and no worker."""
    storage, scheduler = free_address(), free_address()
    options = ("--object-storage-address", storage, "--monitor-address", free_address(), *more)
    with (
        running("scaler_object_storage_server", storage, log=logs / "storage"),
        running("scaler_scheduler", scheduler, *options, log=logs / "scheduler"),
    ):
        yield scheduler


class Worker:
    """Our worker, in a thread with a loop of its own; on an adapter, or on this machine."""

    def __init__(
        self,
        scheduler: str,
        folder: Path,
        adapter: BatchWorkerAdapterBase | None = None,
        name: str = NAME,
        store: str | None = None,
        **options: Any,
    ) -> None:
        self.store, self._scheduler, self._name = store or str(folder / "store"), scheduler, name
        self._adapter = adapter or LocalAdapter(Options(folder=str(folder / "jobs"), slots=4))
        self._options = {"max_jobs": 4, "poll_s": (0.1, 1), "results_s": 0.05, "grace_s": 2, **options}
        self.ended: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)  # a test that fails must not wait for it
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except asyncio.CancelledError:
                self.ended.set_result(None)
            except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
                self.ended.set_exception(error)
            else:
                self.ended.set_result(None)

    async def _serve(self) -> None:
        self._task = asyncio.current_task()
        self.host = ScalerWorker(self._scheduler, self._adapter, self.store, self._name, **self._options)
        await self.host.run()

    def drain(self) -> None:
        self._loop.call_soon_threadsafe(self.host.drain)

    def stop(self) -> None:
        assert self._task is not None
        if not self.ended.done():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
