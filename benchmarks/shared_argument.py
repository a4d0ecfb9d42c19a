"""What tasks leave in the store: bytes for 100 tasks that share one argument of 5 MB, and files per task.

`nox -s bench -- shared_argument`. On the embedded backend, by the executor, as a user runs it: once as it
is, where the tasks are an array, and once with a job for each task.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _report import Budget, at_most, finish, start, table

from batchport import BatchExecutor
from batchport.backends.local import LocalAdapter, Options

TASKS = 100
SHARED = 5_000_000
SLACK = 1.02
"""How much more than the argument itself may be stored: 5.1 MB for 5."""
OF_THE_WORKER = {"birth", "epochs", "run"}
"""What a worker has in its folder however many tasks there are."""


class PlainAdapter(LocalAdapter):
    """The same backend without its arrays."""

    limits = replace(LocalAdapter.limits, array_size=1)


def size_once_told(data: bytes, told: str) -> int:
    """Wait until the file `told` is there, and return the size of the argument: the task that is run."""
    while not os.path.exists(told):  # noqa: PTH110 - as little as can be in the task's own process
        time.sleep(0.05)
    return len(data)


def stored(store: Path) -> list[Path]:
    """Return the files in the store that are there because of tasks."""
    files = [each for each in store.glob("*/**/*") if each.is_file()]
    return [each for each in files if each.relative_to(store).parts[1] not in OF_THE_WORKER]


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, so long at most, and return whether it does."""
    deadline = time.monotonic() + seconds
    while not (there := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return there


def run(adapter: type[LocalAdapter], tasks: int, size: int) -> dict[str, Any]:
    """Run the tasks; return what was in the store while all of them were at the backend, and at the end."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-") as name:
        folder, data = Path(name), os.urandom(size)
        store, told = folder / "store", folder / "told"
        with BatchExecutor(adapter(Options(folder=str(folder / "jobs"))), str(store)) as executor:
            futures = [executor.submit(size_once_told, data, str(told)) for _ in range(tasks)]

            def all_noted() -> bool:
                counts = executor.counts
                return counts.sent == tasks and len(list(store.glob("*/ids/*"))) == counts.jobs

            assert until(all_noted, 120), executor.counts
            in_flight = stored(store)
            shared = [each for each in in_flight if each.parent.name == "blobs"]
            figures = {
                "tasks": tasks,
                "jobs": executor.counts.jobs,
                "stored_mb": sum(each.stat().st_size for each in in_flight) / 1e6,
                "shared_files": len(shared),
                "files_in_flight": (len(in_flight) - len(shared)) / tasks,
            }
            told.touch()
            assert [future.result(300) for future in futures] == [size] * tasks
            until(lambda: not stored(store), 10)
            return {**figures, "files_after": len(stored(store)) / tasks}


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--bytes", type=int, default=SHARED)
    chosen = options.parse_args()
    start("shared_argument: what tasks leave in the store")
    runs = {
        "one array": run(LocalAdapter, chosen.tasks, chosen.bytes),
        "plain jobs": run(PlainAdapter, chosen.tasks, chosen.bytes),
    }
    print(
        f"{chosen.tasks:,} tasks that share an argument of {chosen.bytes:,} bytes, on LocalAdapter and a folder store"
    )
    table(
        ("", "jobs", "MB stored", "shared files", "others a task, in flight", "after delivery"),
        [
            (
                what,
                each["jobs"],
                f"{each['stored_mb']:.3f}",
                each["shared_files"],
                f"{each['files_in_flight']:.2f}",
                f"{each['files_after']:.2f}",
            )
            for what, each in runs.items()
        ],
    )
    budgets: list[Budget] = []
    for what, each in runs.items():
        budgets += [
            at_most(f"MB stored, {what}", each["stored_mb"], round(SLACK * chosen.bytes / 1e6, 6)),
            at_most(f"files a task in flight, {what}", each["files_in_flight"], 2),
            at_most(f"files a task after delivery, {what}", each["files_after"], 0),
        ]
    return finish("shared_argument", runs, budgets)


if __name__ == "__main__":
    sys.exit(main())
