"""A Scaler cluster's tasks through our worker, beside upstream's own workers, and its AWS manager on a stub.

Called by `scaler.py`. Each row is a real client, a real scheduler, a real object storage server and one kind of worker,
all new, each in processes of their own on loopback.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import cloudpickle
from _report import Budget, at_most, finish, start, table
from _upstream import VERSION
from scaler import Client

__all__ = ["main"]

TASKS = 500
SHARING = 100
SHARED = 5_000_000
SLACK = 1.02
"""How much more than the argument itself may be stored: 5.1 MB for 5."""
LONG_S = 10.0
SHORT_S = 0.1
SLOTS = 2
"""Tasks that run at once, everywhere: as many as upstream's native manager starts workers by default."""
JOBS = 100
"""Jobs at a backend at once: as many as upstream's AWS manager has by default (max_concurrent_jobs)."""
PACK = 50
CHEAP_S = 5.0
"""What took less is done three times, and the middle one counts."""
START_S = 60.0
PATIENCE_S = 300.0
LOGGED = ("--logging-paths", "/dev/stdout")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs get functions, and have no such module


def echo(number: int) -> int:
    """Return the number: the trivial task."""
    return number


def size_of(data: bytes) -> int:
    """Return how long the shared argument is."""
    return len(data)


def long_task(started: str, told: str, seconds: float) -> None:
    """Say that it runs, and last until told to end, so long at most."""
    Path(started).touch()
    deadline = time.monotonic() + seconds
    while not os.path.exists(told) and time.monotonic() < deadline:  # noqa: PTH110 - as little as can be
        time.sleep(0.05)


def short_task(seconds: float) -> float:
    """Return when it ended."""
    time.sleep(seconds)
    return time.time()


@dataclass(frozen=True, slots=True)
class Contender:
    """One kind of worker: how it is started for a scheduler, with its files in a folder; what is not real about it."""

    name: str
    command: Callable[[str, str], Sequence[str]]
    notes: str
    runs_tasks: bool = True
    """Otherwise the result of each is None."""


def ours(backend: str, tasks_per_job: int = 1) -> Callable[[str, str], Sequence[str]]:
    """Return the command of our worker on a backend."""
    script = str(Path(__file__).with_name("_scaler_worker.py"))
    numbers = [str(each) for each in (SLOTS, JOBS, tasks_per_job)]
    return lambda scheduler, folder: (sys.executable, script, scheduler, folder, backend, *numbers)


def upstreams_aws(backend: str) -> Callable[[str, str], Sequence[str]]:
    """Return the command of upstream's AWS worker on a stand-in for AWS."""
    script = str(Path(__file__).with_name("_upstream_aws.py"))
    return lambda scheduler, folder: (sys.executable, script, scheduler, folder, backend, str(SLOTS), str(JOBS))


def upstreams(*words: str) -> Callable[[str, str], Sequence[str]]:
    """Return the command of one of upstream's worker managers."""
    program = str(Path(sys.executable).with_name("scaler_worker_manager"))
    return lambda scheduler, _folder: (program, words[0], scheduler, "-wmi", "bench", *LOGGED, *words[1:])


NATIVE = Contender(
    "upstream, native workers",
    upstreams("baremetal_native", "--mode", "fixed", "-mtc", str(SLOTS)),
    f"{SLOTS} worker processes, which live on from task to task",
)
RELEASED = Contender(
    "upstream, AWS manager as released",
    upstreams("aws_hpc", "-q", "queue", "-d", "definition", "--s3-bucket", "bucket"),
    "nothing is a stub: it does not come as far as to AWS",
)
AWS = Contender(
    "upstream, AWS worker",
    upstreams_aws("processes"),
    f"its worker without its manager; S3 is a folder; Batch runs its job_runner, {SLOTS} processes at once",
)
AWS_NOTHING = Contender(
    "upstream, AWS worker, jobs do nothing",
    upstreams_aws("nothing"),
    "the same, but S3 and Batch are tables in memory, and a job is done at once",
    runs_tasks=False,
)
LOCAL = Contender(
    "batchport, local", ours("local"), f"a runner's process for each task, {SLOTS} at once; store in a folder"
)
PACKED = Contender(
    f"batchport, local, packs of {PACK}", ours("local", PACK), f"a runner's process for a pack, {SLOTS} at once"
)
NOTHING = Contender(
    "batchport, jobs do nothing",
    ours("nothing"),
    "a folder store; a second process leaves the result of a job at once",
    runs_tasks=False,
)


def free_address() -> str:
    """Return an address on this machine where nothing listens."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def is_open(address: str) -> bool:
    """Return whether something listens at an address."""
    host, port = address.removeprefix("tcp://").split(":")
    with closing(socket.socket()) as sock:
        return sock.connect_ex((host, int(port))) == 0


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, whose words go to a file; it is told to end, and ended if it does not."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def until(holds: Callable[[], bool], seconds: float, words: Callable[[], str]) -> None:
    """Wait until something holds. Raises TimeoutError, in words."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(words())
        time.sleep(0.02)


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """Give the address of a scheduler that has an object storage server and no worker."""
    programs = Path(sys.executable).parent
    storage, address, monitor = free_address(), free_address(), free_address()
    logging = ("--logging-paths", "/dev/stdout")
    servers = (
        (storage, (str(programs / "scaler_object_storage_server"), storage, *logging)),
        (
            address,
            (str(programs / "scaler_scheduler"), address, "-osa", storage, "--monitor-address", monitor, *logging),
        ),
    )
    with running(servers[0][1], folder / "storage.log"):
        until(lambda: is_open(storage), START_S, (folder / "storage.log").read_text)
        with running(servers[1][1], folder / "scheduler.log"):
            until(lambda: is_open(address), START_S, (folder / "scheduler.log").read_text)
            yield address


@contextmanager
def cluster(contender: Contender) -> Iterator[tuple[Client, Path]]:
    """Give a client of a new cluster whose tasks this contender runs, once one has been run, and its folder."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-") as name, in_folder(contender, Path(name)) as client:
        yield client, Path(name)


@contextmanager
def in_folder(contender: Contender, folder: Path) -> Iterator[Client]:
    """Give a client of a new cluster that has its files in `folder`."""
    with (
        scheduler(folder) as address,
        running(contender.command(address, str(folder)), folder / "worker.log"),
        Client(address) as client,
    ):
        client.submit(echo, 0).result(START_S)
        yield client


def of_three(once: Callable[[], float], cheap_s: float = CHEAP_S) -> list[float]:
    """Return seconds, of three runs where one is cheap."""
    runs = [once()]
    if runs[0] < cheap_s:
        runs += [once(), once()]
    return runs


def rate(contender: Contender, tasks: int) -> dict[str, Any]:
    """Return how fast so many trivial tasks are done, from the first one offered to the last result at the client."""
    with cluster(contender) as (client, _):

        def once() -> float:
            began = time.monotonic()
            results = client.map(echo, range(tasks))
            took = time.monotonic() - began
            assert list(results) == (list(range(tasks)) if contender.runs_tasks else [None] * tasks), results
            return took

        seconds = of_three(once)
    return {"tasks": tasks, "seconds": seconds, "tasks_per_s": tasks / statistics.median(seconds)}


def latency(contender: Contender, long_s: float) -> dict[str, Any]:
    """Return the seconds from a short task's end to its result at the client, while a long task runs."""
    with cluster(contender) as (client, folder):
        numbers = count()

        def once() -> float:
            number = next(numbers)
            started, told = folder / f"started-{number}", folder / f"told-{number}"
            long = client.submit(long_task, str(started), str(told), long_s)
            until(started.exists, START_S, lambda: f"{contender.name}: the long task did not start")
            ended = client.submit(short_task, SHORT_S).result(PATIENCE_S)
            late: float = time.time() - ended
            told.touch()
            long.result(PATIENCE_S)
            return late

        return {"long_s": long_s, "seconds": of_three(once, 1)}


def stored(contender: Contender, tasks: int, size: int) -> dict[str, Any]:
    """Return the bytes that the worker puts into its store for tasks that share an argument, and how many failed."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-") as name:
        with in_folder(contender, Path(name)) as client:
            data = os.urandom(size)
            futures = [client.submit(size_of, data) for _ in range(tasks)]
            errors = [error for each in futures if (error := each.exception(PATIENCE_S)) is not None]
        put, log = int(Path(name, "put").read_text("utf-8")), Path(name, "failed")
        said = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    in_the_job = [line.partition(" failed: ")[2] for line in said if " failed: " in line][:1]
    words = [str(error) for error in errors[:1]] + in_the_job
    return {"tasks": tasks, "bytes": put, "failed": len(errors), "words": "; in the job: ".join(words)}


def why_not(contender: Contender) -> str:
    """Return in which words a contender ends, that ends; "" for one that lives."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-") as name:
        log = Path(name, "worker.log")
        with scheduler(Path(name)) as address, running(contender.command(address, name), log) as process:
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                return ""
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no words")


def numbers(seconds: Sequence[float], digits: int) -> str:
    """Return the middle one, and where there are more the smallest and the largest."""
    middle = f"{statistics.median(seconds):.{digits}f}"
    return middle if len(seconds) == 1 else f"{middle} ({min(seconds):.{digits}f} to {max(seconds):.{digits}f})"


def show_rates(contenders: Sequence[Contender], tasks: int) -> dict[str, Any]:
    """Run and print the first table."""
    runs = {each: rate(each, tasks) for each in contenders}
    rows: list[tuple[object, ...]] = [
        (each.name, round(run["tasks_per_s"]), numbers(run["seconds"], 2), each.notes) for each, run in runs.items()
    ]
    if AWS in contenders:
        rows.append((RELEASED.name, "-", "-", f"ends before it has a worker: {why_not(RELEASED) or 'it lives'}"))
    print(
        f"{tasks:,} trivial tasks by client.map, the worker being there; {SLOTS} run at once, and where there are jobs"
    )
    print(f"{JOBS} are at the backend at once. The middle one of three runs, where one takes less than {CHEAP_S:g} s")
    table(("", "tasks/s", "seconds", "notes"), rows)
    return {each.name: run for each, run in runs.items()}


def show_latencies(contenders: Sequence[Contender], long_s: float) -> tuple[dict[str, Any], list[Budget]]:
    """Run and print the second table."""
    runs = {each: latency(each, long_s) for each in contenders}
    print(f"Seconds from the end of a task of {SHORT_S:g} s to its result at the client, while one runs that lasts")
    print(f"until then, but {long_s:g} s at most; three times, where it is less than 1 s")
    table(("", "seconds"), [(each.name, numbers(run["seconds"], 2)) for each, run in runs.items()])
    worst = max(runs[LOCAL]["seconds"])
    what = "a short task's result while a long one runs, seconds after its end, the worst"
    return {each.name: run for each, run in runs.items()}, [Budget(what, round(worst, 4), 1, ok=worst < 1)]


def show_stored(contenders: Sequence[Contender], tasks: int, size: int) -> tuple[dict[str, Any], list[Budget]]:
    """Run and print the third table."""
    runs = {each: stored(each, tasks, size) for each in contenders}
    print(f"{tasks:,} tasks that share an argument of {size:,} bytes: what the worker puts into its store")
    table(
        ("", "MB", "tasks failed", "in words"),
        [(each.name, f"{run['bytes'] / 1e6:.3f}", run["failed"], run["words"]) for each, run in runs.items()],
    )
    most = round(SLACK * size / 1e6, 6)
    return {each.name: run for each, run in runs.items()}, [at_most("MB stored", runs[LOCAL]["bytes"] / 1e6, most)]


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--long", type=float, default=LONG_S, metavar="SECONDS")
    options.add_argument("--sharing", type=int, default=SHARING, metavar="TASKS")
    options.add_argument("--bytes", type=int, default=SHARED)
    options.add_argument("--no-peer", action="store_true", help="leave upstream's workers out")
    chosen = options.parse_args()
    found = version("opengris-scaler")
    if not chosen.no_peer and found != VERSION:
        options.error(f"upstream's workers are started as {VERSION} has them, and {found} is here; say --no-peer")
    start("scaler: a Scaler cluster's tasks")
    print(f"opengris-scaler {found} everywhere; for each row a scheduler, an object storage server")
    print("and a worker of its own\n")
    peers = not chosen.no_peer
    rates = show_rates(
        [NATIVE, AWS, LOCAL, PACKED, AWS_NOTHING, NOTHING] if peers else [LOCAL, PACKED, NOTHING], chosen.tasks
    )
    latencies, soon = show_latencies([NATIVE, AWS, LOCAL] if peers else [LOCAL], chosen.long)
    bytes_stored, small = show_stored([AWS, LOCAL] if peers else [LOCAL], chosen.sharing, chosen.bytes)
    return finish("scaler", {"rates": rates, "latencies": latencies, "stored": bytes_stored}, [*soon, *small])
