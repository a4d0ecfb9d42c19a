"""The competitors on Slurm: how each is installed, started, and given calls, as its own documentation has it.

Imported by `_slurm_runs.py`, for the names and the pins. Run by a competitor's own Python, without batchport, as
`_slurm_peers.py COMPETITOR PLACE`, it makes the calls and leaves a report; PLACE is JSON, the fields of `Place`.

Nothing of a peer is changed. What is set beside its defaults is in its `Competitor.notes`, with the reason.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ALLOCATED", "COMPETITORS", "PINS", "Competitor", "Place"]

PINS: dict[str, tuple[str, ...]] = {
    "submitit": ("submitit==1.5.4",),
    "executorlib": ("executorlib[cluster]==1.11.0",),
    "dask-jobqueue": ("dask-jobqueue==0.9.0", "distributed==2026.8.0"),
    "parsl": ("parsl==2026.10.26",),
    "psij-python": ("psij-python==0.9.11",),
}
"""What is installed for each peer, from PyPI."""
LOOPBACK = "127.0.0.1"
ALLOCATED = "executorlib, in an allocation"


@dataclass(frozen=True)
class Place:
    """Where and on what a competitor runs."""

    folder: str
    """A new folder that the jobs reach too; also the working folder, and HOME."""
    example: str
    """The folder of the slurm adapter's package, for batchport."""
    partition: str
    nodes: int
    cpus: int
    """Of each node."""
    loopback: bool
    """Whether all nodes are this machine, so that what listens shall listen on 127.0.0.1 only."""
    calls: int
    """How many trivial calls to make; 0: one call that does not end by itself, see `stay`."""
    since: float | None = None
    """When the clock started, if the competitor had to be started anew inside an allocation."""


Map = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Make one call for each argument, and return all results, in any order; raise what the competitor raises."""


@contextmanager
def batchport(place: Place, tasks_per_job: int = 1, width: int = 1) -> Iterator[Map]:
    """BatchExecutor with the slurm adapter of the generated example."""
    executor = importlib.import_module("batchport").BatchExecutor
    store = Path(place.folder, "store")
    with executor(slurm_adapter(place), store, tasks_per_job=tasks_per_job, width=width) as started:
        yield lambda function, arguments: list(started.map(function, arguments))


def slurm_adapter(place: Place) -> Any:
    """Return the adapter that the slurm starter gives its users."""
    source = Path(place.example)
    sys.path.insert(0, str(source.parent))
    options = importlib.import_module(f"{source.name}.options").Options
    logs = Path(place.folder, "logs")
    logs.mkdir()
    return importlib.import_module(f"{source.name}.adapter").Adapter(options(partition=place.partition, logs=str(logs)))


@contextmanager
def batchport_packed(place: Place) -> Iterator[Map]:
    """As many elements as the cluster has CPUs."""
    with batchport(place, max(1, -(-place.calls // (place.nodes * place.cpus)))) as calls:
        yield calls


@contextmanager
def batchport_by_node(place: Place) -> Iterator[Map]:
    """As many elements as the cluster has nodes, each as wide as a node."""
    with batchport(place, max(1, -(-place.calls // place.nodes)), place.cpus) as calls:
        yield calls


@contextmanager
def submitit(place: Place) -> Iterator[Map]:
    """SlurmExecutor.map_array, as https://github.com/facebookincubator/submitit shows it."""
    executor = importlib.import_module("submitit").SlurmExecutor(folder=place.folder)
    executor.update_parameters(partition=place.partition)
    yield lambda function, arguments: [job.result() for job in executor.map_array(function, arguments)]


def _futures(executor: Any) -> Map:
    def calls(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        futures = [executor.submit(function, argument) for argument in arguments]
        return [future.result() for future in futures]

    return calls


@contextmanager
def executorlib_jobs(place: Place) -> Iterator[Map]:
    """SlurmClusterExecutor: each call is a job, and goes through a file."""
    module = importlib.import_module("executorlib")
    with module.SlurmClusterExecutor(resource_dict={"partition": place.partition}) as executor:
        yield _futures(executor)


@contextmanager
def executorlib_blocks(place: Place) -> Iterator[Map]:
    """SlurmClusterExecutor(block_allocation=True): each worker is a job."""
    module = importlib.import_module("executorlib")
    with module.SlurmClusterExecutor(
        resource_dict={"partition": place.partition},
        block_allocation=True,
        max_workers=place.nodes * place.cpus if place.calls else 1,
        hostname_localhost=place.loopback or None,
    ) as executor:
        yield _futures(executor)


@contextmanager
def executorlib_allocated(place: Place) -> Iterator[Map]:
    """SlurmJobExecutor(block_allocation=True), inside the allocation that `salloc` made: a worker is a step."""
    module = importlib.import_module("executorlib")
    with module.SlurmJobExecutor(
        block_allocation=True,
        max_workers=place.nodes * place.cpus,
        # Else the first step takes all of the allocation, and the others wait for it:
        # https://slurm.schedmd.com/srun.html#OPT_exact
        resource_dict={"exclusive": True, "num_nodes": 1, "slurm_cmd_args": ["--mem-per-cpu=100"]},
        hostname_localhost=place.loopback or None,
    ) as executor:
        yield _futures(executor)


@contextmanager
def dask_jobqueue(place: Place, processes: int | None = None) -> Iterator[Map]:
    """SLURMCluster, a job for each node, and a Client's map."""
    cluster_type = importlib.import_module("dask_jobqueue").SLURMCluster
    client_type = importlib.import_module("distributed").Client
    quiet = {"interface": "lo", "worker_extra_args": ["--dashboard-address", f"{LOOPBACK}:0"]}
    jobs, cores = (place.nodes, place.cpus) if place.calls else (1, 1)
    with cluster_type(
        queue=place.partition,
        cores=cores,
        memory=f"{cores} GB",
        **({} if processes is None else {"processes": processes}),  # it compares a None, as if it were a number
        scheduler_options={"dashboard_address": f"{LOOPBACK}:0" if place.loopback else ":0"},
        **(quiet if place.loopback else {}),
    ) as cluster:
        cluster.scale(jobs=jobs)
        with client_type(cluster) as client:
            yield lambda function, arguments: list(client.gather(client.map(function, arguments)))


@contextmanager
def dask_jobqueue_threads(place: Place) -> Iterator[Map]:
    """Give it one process in each job, so that fewer have to start."""
    with dask_jobqueue(place, processes=1) as calls:
        yield calls


@contextmanager
def parsl(place: Place) -> Iterator[Map]:
    """HighThroughputExecutor with SlurmProvider, a block for each node."""
    module = importlib.import_module("parsl")
    provider = importlib.import_module("parsl.providers").SlurmProvider
    executor = importlib.import_module("parsl.executors").HighThroughputExecutor
    blocks = place.nodes if place.calls else 1
    config = module.Config(
        executors=[
            executor(
                address=LOOPBACK if place.loopback else None,
                max_workers_per_node=place.cpus,
                provider=provider(
                    partition=place.partition, cores_per_node=place.cpus, init_blocks=blocks, max_blocks=blocks
                ),
            )
        ],
        run_dir=str(Path(place.folder, "runinfo")),
    )

    def calls(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        app = module.python_app(function)
        futures = [app(argument) for argument in arguments]
        return [future.result() for future in futures]

    with module.load(config):
        yield calls


@contextmanager
def psij(place: Place) -> Iterator[Map]:
    """JobExecutor of the kind slurm: each call is a job, and a program of its own, for PSI/J knows no functions."""
    module = importlib.import_module("psij")
    slurm = importlib.import_module("psij.executors.batch.slurm")
    polling = {"queue_polling_interval": 1} if place.calls else {}
    executor = module.JobExecutor.get_instance("slurm", config=slurm.SlurmExecutorConfig(**polling))

    def calls(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        jobs = []
        for number, argument in enumerate(arguments):
            source = f"import {function.__module__} as module; print(module.{function.__qualname__}({argument!r}))"
            output = Path(place.folder, f"{number}.out")
            spec = module.JobSpec(
                executable=sys.executable,
                arguments=["-c", source],
                stdout_path=output,
                attributes=module.JobAttributes(queue_name=place.partition),
            )
            job = module.Job(spec)
            executor.submit(job)
            jobs.append((job, output))
        results = []
        for job, output in jobs:
            status = job.wait()
            if status.state != module.JobState.COMPLETED:
                raise RuntimeError(f"{status.state.name}, {status.message}, exit code {status.exit_code}")
            said = output.read_text() if output.exists() else ""
            results.append(ast.literal_eval(said) if said.strip() else f"{status.state.name}, without output")
        return results

    yield calls


@dataclass(frozen=True)
class Competitor:
    """One way to run calls on Slurm."""

    start: Callable[[Place], Any]
    """Returns the context manager that starts it and gives its `Map`."""
    peer: str | None
    """The key of PINS; None: this project's own environment."""
    notes: str
    """What is set, and why; or what to know of it."""
    few: bool = False
    """Whether it is too slow for the full number of calls."""


COMPETITORS = {
    "batchport, one element each": Competitor(batchport, None, "one array"),
    "batchport, packed": Competitor(batchport_packed, None, "an element per CPU of the cluster"),
    "batchport, packed by node": Competitor(batchport_by_node, None, "an element per node, as wide as its CPUs"),
    "submitit, map_array": Competitor(submitit, "submitit", "each element starts an srun"),
    "executorlib, a job per call": Competitor(executorlib_jobs, "executorlib", "through HDF5 files"),
    "executorlib, a job per worker": Competitor(executorlib_blocks, "executorlib", "a worker per CPU"),
    ALLOCATED: Competitor(executorlib_allocated, "executorlib", "a step per CPU, --exact and 100 MB each"),
    "dask-jobqueue": Competitor(dask_jobqueue, "dask-jobqueue", "a job per node, a process per CPU, its default"),
    "dask-jobqueue, threads": Competitor(dask_jobqueue_threads, "dask-jobqueue", "a job per node, processes=1"),
    "Parsl HTEX": Competitor(parsl, "parsl", "a block per node, a worker per CPU"),
    "PSI/J": Competitor(psij, "psij-python", "polls each 1 s (default 30 s)", few=True),
}


def main() -> None:
    """Make the calls that the command line asks for, and leave report.json in the folder."""
    name, place = sys.argv[1], Place(**json.loads(sys.argv[2]))
    inside = name == ALLOCATED and "SLURM_JOB_ID" not in os.environ
    began = place.since or time.monotonic()
    if inside:
        again = json.dumps({**asdict(place), "since": began})
        cpus = f"--ntasks={place.nodes * place.cpus}"
        words = ("salloc", "--quiet", f"--partition={place.partition}", cpus, sys.executable, __file__, name, again)
        sys.exit(subprocess.run(words, check=False).returncode)
    competitor = COMPETITORS[name]
    if competitor.peer is not None:
        sys.path.pop(0)  # this folder: no module of it is a peer's
    with competitor.start(place) as calls:
        if place.calls:
            results = calls(abs, list(range(-place.calls, 0)))
            seconds = time.monotonic() - began
            assert sorted(results) == list(range(1, place.calls + 1)), results[:20]
            leave_report(place, seconds=seconds, peak_mib=peak_mib())
        else:
            leave_report(place, **end_of(lambda: calls(exec, [stay(place)])))


def stay(place: Place) -> str:
    """Return the source of a call that notes its process and its job, each time that it runs, and stays."""
    noted = str(Path(place.folder, "running"))
    return (
        f"import os, time\nwith open({noted!r}, 'a') as noted:\n"
        "    print(os.getpid(), os.environ['SLURM_JOB_ID'], file=noted)\ntime.sleep(900)"
    )


def end_of(call: Callable[[], Any]) -> dict[str, Any]:
    """Return how a call ended, and when, in the competitor's words."""
    try:
        returned = call()
    except BaseException as error:  # noqa: BLE001 - whatever it raises is what is wanted
        told = time.monotonic()
        return {"told": told, "raised": True, "words": "".join(traceback.format_exception_only(error)).strip()}
    return {"told": time.monotonic(), "raised": False, "words": f"no error; it returned {returned!r}"}


def leave_report(place: Place, **figures: Any) -> None:
    """Write the report so that it is there whole or not at all."""
    new = Path(place.folder, "report.new")
    new.write_text(json.dumps(figures))
    new.rename(Path(place.folder, "report.json"))


def peak_mib() -> float:
    """Return the most memory that this program has had, in MiB, and not what it was before it became this program."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
