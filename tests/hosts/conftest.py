"""Executors on the local backend, with jobs' folders and slots of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchport import BatchExecutor

FAST: dict[str, Any] = {"poll_s": (0.1, 1), "results_s": 0.05, "grace_s": 2}


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchExecutor]:
    """One executor for all tests of a module that leave it as it is."""
    options = {"folder": str(tmp_path_factory.mktemp("jobs")), "slots": 4}
    with BatchExecutor("local", options=options, **FAST) as executor:
        yield executor


@pytest.fixture
def fast(tmp_path: Path) -> dict[str, Any]:
    """Options of an executor on the local backend, with which nothing takes long."""
    return {"options": {"folder": str(tmp_path / "jobs"), "slots": 4}, **FAST}


@pytest.fixture
def make_executor(tmp_path: Path) -> Iterator[Callable[..., BatchExecutor]]:
    """Make executors; what is left of them after the test is cancelled, and must then be gone."""
    before, made = set(threading.enumerate()), list[BatchExecutor]()

    def make(backend: Any = "local", slots: int = 4, **options: Any) -> BatchExecutor:
        if backend == "local":
            options = {"options": {"folder": str(tmp_path / "jobs"), "slots": slots}, **options}
        made.append(BatchExecutor(backend, **(FAST | options)))
        return made[-1]

    yield make
    for each in made:
        each.shutdown(wait=False)
        each._loop.cancel_all()  # whether or not they run, which shutdown leaves to the user
        each.shutdown()
    eventually(lambda: not set(threading.enumerate()) - before)


def eventually(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., None]:
    return eventually
