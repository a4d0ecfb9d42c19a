"""What the worker costs by itself: on a backend that does nothing, and beside upstream's TaskManager.

`nox -s bench -- engine`. Every row is a process of its own. The worker has a folder store and one task a
job; the jobs' results are made while it runs, by a second process that writes what a runner would leave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from _environments import MissingPeerError
from _report import Budget, at_least, at_most, cpu_s, finish, in_a_process_of_its_own, peak_mib, start, table
from _upstream import VERSION, python_of_upstream

from batchport import BatchWorker, BatchWorkerAdapterBase, Blob, JobSpec, JobState, JobStatus, Limits, Outcome, Task
from batchport.envelope import Envelope
from batchport.store import Keys, OutKey, open_store

WORKER = "bench"
MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder is made in it
"""Where the store is if it can be, so that the worker is measured and not the disk: an ext4 without a journal,
for one, makes a file the slower the more were removed lately (recently_deleted in
https://github.com/torvalds/linux/blob/master/fs/ext4/ialloc.c)."""
CONCURRENCIES = (100, 1_000)
"""Jobs at the backend at once: as many as upstream's AWS manager has by default, and as many as the worker has."""
LARGEST = 10_000
"""Elements of an array, as many as AWS Batch takes (https://docs.aws.amazon.com/batch/latest/userguide/array_jobs.html)."""
SHORT = 10_000
CAP_S = 120.0
IDLE_S = 30.0
RESULT = pickle.dumps(None)


class NothingAdapter(BatchWorkerAdapterBase):
    """Hands each job's name to the process that makes results; a job has ended once its result is there."""

    def __init__(self, jobs: int, done: mmap.mmap, array_size: int = 1) -> None:
        self._jobs, self._done, self._submitted = jobs, done, 0
        self.limits = Limits(name_length=64, inline_bytes=64 << 10, array_size=array_size, array_index="INDEX")

    def submit_job(self, job: JobSpec) -> str:
        os.write(self._jobs, f"{job.name} {job.size}\n".encode())
        self._submitted += 1
        return str(self._submitted)

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        (done,) = struct.unpack_from("q", self._done)
        ended, living = JobState.SUCCEEDED, JobState.RUNNING
        return [JobStatus(each, ended if int(each) <= done else living) for each in job_ids]

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}:{index}"

    def cancel_job(self, job_id: str) -> None:
        """Do nothing; no job of this backend needs ending."""


def make_results(url: str, done_file: str) -> None:
    """Leave a result for each job that is named on stdin; run in a process of its own."""
    store, keys, made = open_store(url), Keys(WORKER), 0
    with Path(done_file).open("r+b") as file, mmap.mmap(file.fileno(), 8) as done:
        for line in sys.stdin:
            name, size = line.split()
            result = Envelope("result", name, parts=(RESULT, b""), fields={"nonce": "00000000"})
            for place in range(int(size)):
                store.put(keys.left(OutKey(name, place, "result")), result.to_bytes(), create=True)
            made += 1
            struct.pack_into("q", done, 0, made)


@contextmanager
def backend(folder: str, array_size: int = 1, *, with_results: bool = True) -> Iterator[tuple[NothingAdapter, str]]:
    """Give a backend that does nothing, and the URL of a new store in `folder`, which goes at the end."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-", dir=folder) as made:
        url, done_file = Path(made, "store").as_uri(), Path(made, "done")
        done_file.write_bytes(bytes(8))
        command = (sys.executable, __file__, "--results", url, str(done_file)) if with_results else ("cat",)
        with (
            done_file.open("r+b") as file,
            mmap.mmap(file.fileno(), 8) as done,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as maker,
        ):
            assert maker.stdin is not None
            yield NothingAdapter(maker.stdin.fileno(), done, array_size), url
            maker.stdin.close()


async def deliver(outcome: Outcome) -> None:
    """Take an outcome, as a host does."""
    assert outcome.failure is None, outcome.failure


async def run(adapter: NothingAdapter, url: str, count: int, concurrency: int) -> dict[str, Any]:
    """Run `count` tasks and return what that took, from the first one offered until the worker has left."""
    function = Blob.of(pickle.dumps(len))
    async with BatchWorker(adapter, url, WORKER, deliver, max_jobs=concurrency) as engine:
        began, cpu = time.monotonic(), cpu_s()
        for number in range(count):
            await engine.submit(Task(f"task-{number}", function, (Blob.of(pickle.dumps(number)),), label="nothing"))
        await engine.drain()
        took, counts = time.monotonic() - began, engine.counts
    assert counts.done == count, counts
    return {
        "tasks": count,
        "concurrency": concurrency,
        "tasks_per_s": count / took,
        "cpu_ms_per_task": 1000 * (cpu_s() - cpu) / count,
        "peak_mib": peak_mib(),
        "store_calls": dict(counts.store_calls),
        "backend_calls": dict(counts.backend_calls),
    }


async def idle(adapter: NothingAdapter, url: str, seconds: float, jobs: int) -> dict[str, Any]:
    """Return what a worker costs that has `jobs` jobs running and nothing else to do."""
    async with BatchWorker(adapter, url, WORKER, deliver) as engine:
        for number in range(jobs):
            await engine.submit(Task(f"task-{number}", Blob.of(pickle.dumps(len))))
        await asyncio.sleep(1)
        cpu = cpu_s()
        await asyncio.sleep(seconds)
        return {"jobs": jobs, "cpu_percent": 100 * (cpu_s() - cpu) / seconds}


def own(*words: object) -> dict[str, Any]:
    """Run this script again with these words, in a process of its own."""
    return in_a_process_of_its_own(sys.executable, __file__, *map(str, words))


def per_task(calls: dict[str, int], count: int) -> str:
    """Return calls by method, in words."""
    return ", ".join(f"{name} {number / count:.2f}" for name, number in sorted(calls.items()))


def of_three(folder: str, size: int, concurrency: int, array_size: int = 1) -> dict[str, Any]:
    """Run one size, a short one three times, and return the run whose cost is the middle one."""
    words = ("--folder", folder, "--one", size, concurrency, array_size)
    runs = [own(*words) for _ in range(3 if size <= SHORT else 1)]
    return sorted(runs, key=lambda each: each["cpu_ms_per_task"])[len(runs) // 2]


def show_sizes(folder: str, sizes: Sequence[int], concurrency: int) -> tuple[list[dict[str, Any]], list[Budget]]:
    """Run each size, and print what it cost."""
    runs = [of_three(folder, size, concurrency) for size in sizes]
    print(f"On a backend that does nothing, {concurrency:,} jobs at once, one task a job, store in {folder};")
    print(f"calls are per task, and up to {SHORT:,} tasks it is the middle one of three runs")
    table(
        ("tasks", "tasks/s", "CPU ms a task", "peak MiB", "store calls", "backend calls"),
        [
            (
                each["tasks"],
                round(each["tasks_per_s"]),
                round(each["cpu_ms_per_task"], 3),
                round(each["peak_mib"]),
                per_task(each["store_calls"], each["tasks"]),
                per_task(each["backend_calls"], each["tasks"]),
            )
            for each in runs
        ],
    )
    costs = [each["cpu_ms_per_task"] for each in runs]
    what = f"cost per task, the dearest size against the cheapest, {concurrency:,} at once"
    return runs, [at_most(what, max(costs) / min(costs), 1.3)]


def show_idle(folder: str, seconds: float) -> tuple[list[dict[str, Any]], list[Budget]]:
    """Print what a worker costs that has nothing to do, and one that waits for a long job."""
    runs = [own("--folder", folder, "--idle-one", seconds, jobs) for jobs in (0, 1)]
    print(f"With nothing to do, over {seconds:g} s")
    words = ("no job", "one long job")
    table(("", "CPU %"), [(what, round(each["cpu_percent"], 2)) for what, each in zip(words, runs, strict=True)])
    return runs, [at_most("idle CPU, percent", runs[0]["cpu_percent"], 1)]


def show_peer(folder: str, tasks: int, concurrencies: Sequence[int]) -> tuple[list[dict[str, Any]], list[Budget]]:
    """Run the same number of tasks here and through upstream's TaskManager, and print both."""
    what = f"tasks/s against opengris-scaler {VERSION}, arrays on both sides"
    try:
        python = python_of_upstream()
    except MissingPeerError as missing:
        print(f"opengris-scaler {VERSION} is not here to compare with: {missing}\n")
        return [], [Budget(what, None, 10, ok=False)]
    peer = Path(__file__).with_name("_upstream.py")
    runs: list[dict[str, Any]] = []
    for at_once in concurrencies:
        theirs = in_a_process_of_its_own(python, str(peer), str(tasks), str(at_once), str(CAP_S), timeout_s=2 * CAP_S)
        ours = {"a job each": of_three(folder, tasks, at_once), "arrays": of_three(folder, tasks, at_once, LARGEST)}
        times = {how: each["tasks_per_s"] / theirs["tasks_per_s"] for how, each in ours.items()}
        runs.append({"concurrency": at_once, "upstream": theirs, "batchport": ours, "times": times})
    print(f"{tasks:,} tasks, beside opengris-scaler {VERSION}: its TaskManager and AWS backend, whose S3 and Batch are")
    print("tables in memory that answer at once, and to which it sends what has come together as one array; ended")
    print(f"after {CAP_S:g} s. The worker here has its folder store")
    table(
        ("jobs at once", "", "tasks done", "tasks/s", "against upstream", "CPU ms a task", "peak MiB"),
        [
            (
                pair["concurrency"],
                name,
                each.get("done", each["tasks"]),
                round(each["tasks_per_s"]),
                f"{each['tasks_per_s'] / pair['upstream']['tasks_per_s']:.1f}x",
                round(each["cpu_ms_per_task"], 3),
                round(each["peak_mib"]),
            )
            for pair in runs
            for name, each in (
                ("upstream", pair["upstream"]),
                *((f"batchport, {how}", each) for how, each in pair["batchport"].items()),
            )
        ],
    )
    return runs, [at_least(f"{what}, {pair['concurrency']:,} at once", pair["times"]["arrays"], 10) for pair in runs]


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--idle", type=float, default=IDLE_S, metavar="SECONDS")
    options.add_argument("--peer", type=int, default=1_000, metavar="TASKS", help="0 leaves the comparison out")
    options.add_argument("--folder", default=str(MEMORY) if MEMORY.is_dir() else tempfile.gettempdir())
    for what, words in (("--one", ("TASKS", "CONCURRENCY", "ARRAY_SIZE")), ("--idle-one", ("SECONDS", "JOBS"))):
        options.add_argument(what, nargs=len(words), metavar=words, help=argparse.SUPPRESS)
    options.add_argument("--results", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.results:
        make_results(*chosen.results)
        return 0
    if chosen.one:
        count, concurrency, array_size = map(int, chosen.one)
        with backend(chosen.folder, array_size) as (adapter, url):
            print(json.dumps(asyncio.run(run(adapter, url, count, concurrency))))
        return 0
    if chosen.idle_one:
        seconds, jobs = chosen.idle_one
        with backend(chosen.folder, with_results=False) as (adapter, url):
            print(json.dumps(asyncio.run(idle(adapter, url, float(seconds), int(jobs)))))
        return 0
    start("engine: what the worker costs by itself")
    sizes, flat = zip(*(show_sizes(chosen.folder, chosen.sizes, each) for each in CONCURRENCIES), strict=True)
    idling, quiet = show_idle(chosen.folder, chosen.idle)
    peer, faster = show_peer(chosen.folder, chosen.peer, CONCURRENCIES) if chosen.peer else ([], [])
    budgets = [*chain.from_iterable(flat), *quiet, *faster]
    return finish("engine", {"sizes": sizes, "idle": idling, "peer": peer}, budgets)


if __name__ == "__main__":
    sys.exit(main())
