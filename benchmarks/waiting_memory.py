"""What waiting calls cost in memory: 10,000 and 100,000 calls of 10 KB each, on a backend that never runs anything.

Run by `nox -s bench -- waiting_memory`. Each number of calls has a process of its own, since memory that a
process had once is not always given back.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import _report

from batchport import BatchExecutor, BatchWorkerAdapterBase, JobSpec, JobState, JobStatus, Limits

FEW, MANY = 10_000, 100_000
SIZE = 10_000
MOST_BYTES_PER_CALL = 900


class Queued(BatchWorkerAdapterBase):
    """Accepts jobs and holds them queued for ever."""

    limits = Limits(name_length=60, inline_bytes=0)

    def submit_job(self, job: JobSpec) -> str:
        return job.name

    def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        return [JobStatus(job_id, JobState.QUEUED) for job_id in job_ids]

    def cancel_job(self, job_id: str) -> None:
        pass


def submit(count: int, store: Path) -> None:
    """Submit so many calls, print what that took, and leave."""
    executor = BatchExecutor(Queued(), store, max_jobs=10)
    idle, began = _report.peak_mib(), time.perf_counter()
    futures = [executor.submit(len, os.urandom(SIZE)) for _ in range(count)]
    seconds = time.perf_counter() - began
    in_store = sum(each.stat().st_size for each in store.glob("*/waiting/*")) / (1 << 20)
    figures = {"calls": len(futures), "idle_mib": idle, "in_store_mib": in_store, "seconds": seconds}
    print(json.dumps(figures | {"peak_mib": _report.peak_mib()}), flush=True)
    os._exit(0)  # the jobs never end, and the interpreter would wait for them


def in_a_process_of_its_own(count: int) -> dict[str, Any]:
    """Have so many calls submitted in a new process, and return what it printed."""
    with tempfile.TemporaryDirectory(prefix="batchport-bench-") as store:
        return _report.in_a_process_of_its_own(sys.executable, __file__, "--submit", str(count), store)


def main(few_calls: int, many_calls: int) -> int:
    """Print the table and the line of JSON; return the exit code."""
    _report.start(f"Memory for waiting calls of {SIZE:,} bytes, on a backend that holds every job queued")
    few, many = map(in_a_process_of_its_own, (few_calls, many_calls))
    columns = ("calls", "peak_mib", "idle_mib", "in_store_mib", "seconds")
    _report.table(columns, [[each["calls"], *(f"{each[name]:.1f}" for name in columns[1:])] for each in (few, many)])
    per_call = (many["peak_mib"] - few["peak_mib"]) * (1 << 20) / (many_calls - few_calls)
    what = f"bytes of memory for each further call beyond {few_calls:,}"
    budget = _report.at_most(what, per_call, MOST_BYTES_PER_CALL)
    return _report.finish("waiting_memory", {str(each["calls"]): each for each in (few, many)}, [budget])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, nargs=2, default=[FEW, MANY], metavar=("FEW", "MANY"))
    options.add_argument("--submit", nargs=2, metavar=("COUNT", "STORE"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.submit:
        submit(int(given.submit[0]), Path(given.submit[1]))
    sys.exit(main(*given.calls))
