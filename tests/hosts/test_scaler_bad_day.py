"""A Scaler cluster on a bad day: our worker is killed or told to end, its scheduler or object storage goes away."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import pytest
from tests.hosts.scaler_cluster import NAME, Client, new_scheduler

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Eventually = Callable[..., None]


def mark(folder: str, number: int, seconds: float) -> int:
    """Leave a line in a file of its own, and take some time."""
    with Path(folder, f"ran-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return number


def hold(folder: str, number: int) -> int:
    """Leave a line, and wait until there is a file called go."""
    with Path(folder, f"ran-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return number


def runs(folder: Path) -> dict[str, int]:
    return {each.name: len(each.read_text().splitlines()) for each in folder.glob("ran-*")}


SERVE = """
import asyncio, sys
from batchport.backends.local import LocalAdapter, Options
from batchport.hosts.scaler import ScalerWorker
scheduler, folder, name = sys.argv[1:]
adapter = LocalAdapter(Options(folder=folder + "/jobs", slots=4))
quick = {"poll_s": (0.1, 1), "results_s": 0.05, "grace_s": 2}
asyncio.run(ScalerWorker(scheduler, adapter, folder + "/store", name, max_jobs=8, **quick).run())
"""


@contextmanager
def process(scheduler: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker in a process of its own, which is killed at the end."""
    with subprocess.Popen((sys.executable, "-c", SERVE, scheduler, str(folder), NAME)) as worker:
        try:
            yield worker
        finally:
            worker.kill()


@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_under_load_loses_nothing_and_runs_nothing_twice(
    tmp_path: Path, eventually: Eventually
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    random_s = random.Random(seed).uniform
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        futures = [client.submit(mark, str(tmp_path), number, 0.05) for number in range(100)]
        done = 0
        for _ in range(5):
            with process(scheduler, tmp_path) as worker:
                eventually(lambda: len(runs(tmp_path)) > done, seconds=30)  # noqa: B023 - called at once
                time.sleep(random_s(0, 0.7))  # at any instant of what it does under load
                assert worker.poll() is None
            done = len(runs(tmp_path))
        assert done < 100, "it was under load each time"
        with process(scheduler, tmp_path):
            assert [future.result(60) for future in futures] == list(range(100))

    assert set(runs(tmp_path).values()) == {1}
    assert len(runs(tmp_path)) == 100
