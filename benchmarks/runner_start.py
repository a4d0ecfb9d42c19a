"""What a job's own start costs: the runner with one trivial task, beside Python alone and upstream's runner.

`nox -s bench -- runner_start`. All commands take turns, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import pickle
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from _environments import MissingPeerError
from _report import at_most, finish, start, table
from _upstream import VERSION, python_of_upstream

from batchport import BatchWorker, BatchWorkerAdapterBase, Blob, JobSpec, JobState, JobStatus, Limits, Outcome, Task
from batchport.store import Keys, open_store

WORKER = "bench"
BUCKET = "bench"
REPEATS = 30
ALONE = "python -c pass"
CLOUDPICKLE = "python -c 'import cloudpickle'"
OURS = "batchport's runner, folder store"


@dataclass
class Timed:
    """A command, what it took each time, and what must be done before it can run again."""

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    again: Callable[[], None] = lambda: None
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def run(self) -> tuple[float, float]:
        """Run it once and return the milliseconds it took: by the clock, and of CPU. It must succeed."""
        self.again()
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            self.command, env={**env, **self.env}, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * wall, 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


class Catching(BatchWorkerAdapterBase):
    """Keeps the job that the worker submits, and runs nothing."""

    limits = Limits(name_length=64, inline_bytes=64 << 10)

    def __init__(self) -> None:
        self.caught: asyncio.Queue[JobSpec] = asyncio.Queue()

    async def submit_job(self, job: JobSpec) -> str:
        await self.caught.put(job)
        return job.name

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        return [JobStatus(each, JobState.RUNNING) for each in job_ids]

    def cancel_job(self, job_id: str) -> None:
        """Do nothing, as nothing runs."""


async def a_job(url: str) -> JobSpec:
    """Return a real job of one trivial task, whose manifest is in the store."""

    async def deliver(outcome: Outcome) -> None:
        raise AssertionError(outcome)

    adapter = Catching()
    async with BatchWorker(adapter, url, WORKER, deliver) as worker:
        await worker.submit(Task("task", Blob.of(pickle.dumps(len)), (Blob.of(pickle.dumps([])),), label="len"))
        return await adapter.caught.get()


def our_runner(url: str) -> Timed:
    """Return the runner's command for a job on the store at `url`."""
    job, store, keys = asyncio.run(a_job(url)), open_store(url), Keys(WORKER)

    def forget_the_result() -> None:
        names = store.names(keys.out)
        assert len(names) in {0, 1}, names
        store.delete(f"{keys.out}/{name}" for name in names)

    return Timed(job.command, job.env, forget_the_result)


def upstreams_runner(python: str, env: Mapping[str, str]) -> Timed:
    """Return the command of upstream's runner, its payload inline and its result in S3, run as the script it is."""
    (where,) = Path(python).parents[1].glob("lib/python*/site-packages/scaler")
    script = where / "worker_manager/proxy/aws_batch/remote/job_runner.py"
    payload = pickle.dumps({"task_id": "task", "source": "bench", "function": len, "arguments": [[]]})
    options = {"task_id": "task", "s3_bucket": BUCKET, "payload": base64.b64encode(payload).decode()}
    return Timed([python, str(script), *(f"--{name}={value}" for name, value in options.items())], env)


@contextmanager
def loopback_s3(python: str) -> Iterator[dict[str, str]]:
    """Run moto's S3 with one bucket on this machine; gives the variables by which boto3 finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [python, "-c", "from moto.server import main; main()", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                try:
                    request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")  # noqa: S310 - loopback
                    urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - loopback
                    break
                except OSError:
                    assert server.poll() is None, "moto's server ended"
                    time.sleep(0.1)
            yield {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.terminate()


def measure(timed: Mapping[str, Timed], repeats: int) -> None:
    """Run all commands in turn, `repeats` times, after once for the bytecode and the file cache."""
    for each in timed.values():
        each.run()
    for _ in range(repeats):
        for each in timed.values():
            wall, cpu = each.run()
            each.wall_ms.append(wall)
            each.cpu_ms.append(cpu)


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=REPEATS)
    options.add_argument("--no-peer", action="store_true", help="leave upstream's runner out")
    chosen = options.parse_args()
    start("runner_start: what a job's own start costs")
    with tempfile.TemporaryDirectory(prefix="batchport-bench-") as folder:
        timed = {
            ALONE: Timed([sys.executable, "-c", "pass"]),
            CLOUDPICKLE: Timed([sys.executable, "-c", "import cloudpickle"]),
            OURS: our_runner(Path(folder).as_uri()),
        }
        missing, python = "left out by --no-peer", None
        if not chosen.no_peer:
            try:
                python = python_of_upstream()
            except MissingPeerError as error:
                missing = str(error)
        if python is None:
            measure(timed, chosen.repeats)
        else:
            with loopback_s3(python) as env:
                timed[f"opengris-scaler {VERSION}'s job_runner, loopback S3"] = upstreams_runner(python, env)
                measure(timed, chosen.repeats)
    if python is None:
        print(f"opengris-scaler {VERSION} is not here to compare with: {missing}\n")
    return report(timed)


def report(timed: Mapping[str, Timed]) -> int:
    """Print what each command took, and return the exit code."""
    base = median(timed[CLOUDPICKLE].wall_ms)
    figures: dict[str, Any] = {
        what: {
            "wall_ms": median(each.wall_ms),
            "fastest_ms": min(each.wall_ms),
            "cpu_ms": median(each.cpu_ms),
            "times": median(each.wall_ms) / base,
        }
        for what, each in timed.items()
    }
    print(f"One process each, in turn; medians of {len(timed[OURS].wall_ms)}, bytecode warm")
    rows = [
        (what, *(f"{each[name]:.1f}" for name in ("wall_ms", "fastest_ms", "cpu_ms"))) for what, each in figures.items()
    ]
    ratios = [f"{each['times']:.2f}x" for each in figures.values()]
    columns = ("process", "wall ms", "fastest ms", "CPU ms", "against import cloudpickle")
    table(columns, [(*row, ratio) for row, ratio in zip(rows, ratios, strict=True)])
    what = "runner with one trivial task, wall, against import cloudpickle"
    return finish("runner_start", figures, [at_most(what, figures[OURS]["times"], 1.5)])


if __name__ == "__main__":
    sys.exit(main())
