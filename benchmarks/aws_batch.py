"""What 10,000 tasks ask of AWS: calls by action, and bytes stored, beside upstream's adapter on the same server.

`nox -s bench -- aws_batch`. The AWS is the tests' simulator, made for this run: Batch and S3 answer as theirs do, and
every call is counted. Jobs only pretend (`_aws_server.py`): what is measured is what a worker asks, and not how fast
jobs are. Each row is a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import ceil
from pathlib import Path
from typing import Any

from _environments import MissingPeerError
from _report import Budget, at_most, finish, in_a_process_of_its_own, start, table
from _upstream import VERSION, python_of_upstream

from batchport import BatchWorker, Blob, Outcome, Task

sys.path.append(str(Path(__file__).resolve().parents[1] / "generated_examples" / "aws_batch" / "src"))

from batchport_aws_batch.adapter import Adapter
from batchport_aws_batch.options import Options

TASKS = 10_000
PACK = 50
PLACES = 1_000
SECONDS = 5.0
CAP_S = 600.0
IDS = 100
"""How many jobs a DescribeJobs takes (https://docs.aws.amazon.com/batch/latest/APIReference/API_DescribeJobs.html)."""
MORE_A_ROUND = 1
"""What a round of polls may ask beside that: of arrays that wait as a whole, their first elements."""
LAB = "lab"
"""What the simulator's queue, job definition and bucket are called."""
ACTIONS = ("SubmitJob", "DescribeJobs", "ListJobs", "PutObject", "GetObject", "ListObjectsV2")
POLLS = ("DescribeJobs", "ListJobs")


async def deliver(outcome: Outcome) -> None:
    """Take an outcome, as a host does."""
    assert outcome.failure is None, outcome.failure


async def ours(tasks: int, pack: int) -> dict[str, Any]:
    """Run so many tasks here, and return what that took and how often jobs were asked about."""
    function, adapter = Blob.of(pickle.dumps(len)), Adapter(Options(queue=LAB, definition=LAB))
    began = time.monotonic()
    worker = BatchWorker(adapter, f"s3://{LAB}/bench", f"pack-{pack}", deliver, max_jobs=tasks, tasks_per_job=pack)
    async with worker as engine:
        for number in range(tasks):
            await engine.submit(Task(f"task-{number}", function, (Blob.of(pickle.dumps([number])),), label="nothing"))
        await engine.drain()
    assert engine.counts.done == tasks, engine.counts
    return {"done": tasks, "seconds": time.monotonic() - began, "polls": engine.counts.backend_calls["poll_jobs"]}


@contextmanager
def simulated_aws(places: int, seconds: float) -> Iterator[str]:
    """Run the server, have the clients of this process's children find it, and yield its address."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (sys.executable, str(Path(__file__).with_name("_aws_server.py")), str(port), str(places), str(seconds))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            if server.stdout.readline() != "ready\n":
                raise RuntimeError("the simulated AWS did not start; what it said is above")
            for name in [each for each in os.environ if each.startswith("AWS_")]:
                del os.environ[name]
            url = f"http://127.0.0.1:{port}"
            known = {"AWS_ACCESS_KEY_ID": LAB, "AWS_SECRET_ACCESS_KEY": LAB, "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ.update(known, AWS_ENDPOINT_URL=url)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)


def counted(url: str) -> dict[str, Any]:
    """Return what the server was asked since the last time."""
    with urllib.request.urlopen(f"{url}/counted") as said:  # noqa: S310 - of this run's own server
        return dict(json.load(said))


def measure(url: str, *command: str) -> dict[str, Any]:
    """Run a row, and return what it says with what the server was asked meanwhile."""
    counted(url)
    said = in_a_process_of_its_own(*command)
    return said | counted(url)


def cells(name: str, row: dict[str, Any], notes: str) -> tuple[object, ...]:
    """Return a row of the table."""
    calls = row["calls"]
    deletes = calls.get("DeleteObjects", 0) + calls.get("DeleteObject", 0)
    asked = (*(calls.get(action, 0) for action in ACTIONS), deletes, sum(calls.values()))
    return (name, row["done"], *asked, round(row["put_bytes"] / 1e6, 2), round(row["seconds"]), notes)


def polls_a_round(row: dict[str, Any]) -> float:
    """Return how many calls it took on average to ask once about all jobs; up to IDS jobs each poll_jobs is a round."""
    asked: int = sum(row["calls"].get(action, 0) for action in POLLS)
    rounds: int = row["polls"]
    return asked / max(1, rounds)


def budgets(rows: dict[str, dict[str, Any]], tasks: int) -> list[Budget]:
    """Return what was promised."""
    promised = []
    for name, row in rows.items():
        jobs = row["calls"]["SubmitJob"]
        promised.append(at_most(f"SubmitJob for {tasks:,} tasks, {name}", jobs, 10))
        limit = ceil(jobs / IDS) + MORE_A_ROUND
        promised.append(at_most(f"DescribeJobs and ListJobs a round of polls, {name}", polls_a_round(row), limit))
    return promised


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--pack", type=int, default=PACK)
    options.add_argument("--places", type=int, default=PLACES, help="jobs that the simulated AWS runs at once")
    options.add_argument("--seconds", type=float, default=SECONDS, help="what a job takes there")
    options.add_argument("--no-peer", action="store_true")
    options.add_argument("--ours", nargs=2, type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.ours:
        print(json.dumps(asyncio.run(ours(*chosen.ours))))
        return 0
    start(f"aws_batch: what {chosen.tasks:,} tasks ask of AWS")
    theirs = None if chosen.no_peer else peer()
    tasks = str(chosen.tasks)
    with simulated_aws(chosen.places, chosen.seconds) as url:
        rows = {
            name: measure(url, sys.executable, __file__, "--ours", tasks, str(pack))
            for name, pack in (("arrays", 1), (f"packs of {chosen.pack}", chosen.pack))
        }
        figures = dict(rows)
        shown = [cells(f"batchport, {name}", row, f"rounds of polls: {row['polls']}") for name, row in rows.items()]
        if theirs:
            script = str(Path(__file__).with_name("_upstream.py"))
            row = measure(url, theirs, script, tasks, tasks, str(CAP_S), LAB)
            shown.append(cells("upstream", row, f"opengris-scaler {VERSION}: its TaskManager and AWS backend"))
            figures["upstream"] = row
    print(f"Simulated: Batch and S3, on this machine. {chosen.places:,} elements run at once; each pretends for")
    print(f"{chosen.seconds:g} s, whatever it holds, and then its results are in S3. Calls and bytes are the worker's,")
    print(f"not those of jobs. max_jobs and base_concurrency are {chosen.tasks:,}; all else is default")
    table(("", "tasks done", *ACTIONS, "deletes", "calls in all", "MB put", "seconds", "notes"), shown)
    return finish("aws_batch", figures, budgets(rows, chosen.tasks))


def peer() -> str | None:
    """Return the Python that has upstream, None where it can't be had."""
    try:
        return python_of_upstream()
    except MissingPeerError as missing:
        print(f"opengris-scaler {VERSION} is not here to compare with: {missing}\n")
        return None


if __name__ == "__main__":
    sys.exit(main())
