"""What waiting calls cost in memory: 10,000 and 100,000 calls of 10 KB each, on a backend that never runs anything.

Run by `nox -s bench -- waiting_memory`. Each number of calls has a process of its own, since memory that a
process had once is not always given back.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def submit(count: int) -> None:
    """Submit so many calls, print what that took, and leave."""
    with tempfile.TemporaryDirectory() as store:
        executor = BatchExecutor(Queued(), store, max_jobs=10)
        idle, began = _report.peak_mib(), time.perf_counter()
        futures = [executor.submit(len, os.urandom(SIZE)) for _ in range(count)]
        seconds = time.perf_counter() - began
        waiting = next(Path(store).iterdir()) / "waiting"
        in_store = sum(each.stat().st_size for each in waiting.iterdir()) / (1 << 20)
        figures = {"calls": len(futures), "idle_mib": idle, "in_store_mib": in_store, "seconds": seconds}
        print(json.dumps(figures | {"peak_mib": _report.peak_mib()}), flush=True)
    os._exit(0)  # the jobs never end, and the interpreter would wait for them


def main() -> int:
    """Print the table and the line of JSON; return the exit code."""
    _report.start(f"Memory for waiting calls of {SIZE:,} bytes, on a backend that holds every job queued")
    few, many = (_report.in_a_process_of_its_own(sys.executable, __file__, str(count)) for count in (FEW, MANY))
    columns = ("calls", "peak_mib", "idle_mib", "in_store_mib", "seconds")
    _report.table(columns, [[each["calls"], *(f"{each[name]:.1f}" for name in columns[1:])] for each in (few, many)])
    per_call = (many["peak_mib"] - few["peak_mib"]) * (1 << 20) / (MANY - FEW)
    budget = _report.at_most(f"bytes of memory for each further call beyond {FEW:,}", per_call, MOST_BYTES_PER_CALL)
    return _report.finish("waiting_memory", {str(each["calls"]): each for each in (few, many)}, [budget])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        submit(int(sys.argv[1]))
    sys.exit(main())
