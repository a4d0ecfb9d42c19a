"""What batchport and its peers say of a job that Slurm ended, and how long after: on a real Slurm, one call each.

`nox -s bench -- slurm_faults`. Each competitor runs a call that does not end by itself, and its job is then
cancelled, or reaches its time limit, or loses a process. The clock starts when the process of the call is gone,
and stops when the competitor tells its caller. Since processes are killed and watched, the nodes must be this
machine, as with tests/lab/slurm-up. All faults of one competitor are made at once, each on a job of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from _report import Budget, finish, start, table
from _slurm_peers import ALLOCATED, COMPETITORS, Place
from _slurm_runs import NoSlurmError, Run, SkippedError, example, out, place, running, said, sinfo

CAP_S = 60.0
START_S = 120.0
STEADY_S = 10.0
"""How long a call runs before its fault: just after a start some look more often than later."""
LIMIT_S = 90.0
"""Slurm looks at time limits each 30 s, and the process has KillWait to end: https://slurm.schedmd.com/slurm.conf.html."""
OURS = "batchport, one element each"
NOT_HERE = ("batchport, packed", "batchport, packed by node", ALLOCATED, "dask-jobqueue, threads")
"""They would meet the same faults as others that are here, or have no job that is theirs."""
NAMES = tuple(name for name in COMPETITORS if name not in NOT_HERE)
SHOWN = 150


@dataclass(frozen=True)
class Call:
    """A call that runs: its process, and its job."""

    process: int
    job: str


def cancel(call: Call) -> None:
    """Have somebody else cancel the job."""
    out("scancel", call.job)


def end_time(call: Call) -> None:
    """Have the job's time limit be over in a second."""
    soon = datetime.now().astimezone() + timedelta(seconds=1)
    out("scontrol", "update", f"jobid={call.job}", f"EndTime={soon:%Y-%m-%dT%H:%M:%S}")


def kill_call(call: Call) -> None:
    """Kill the process that runs the call, as the kernel does when memory is short."""
    os.kill(call.process, signal.SIGKILL)


def kill_step(call: Call) -> None:
    """Kill the first process of the job's step, and that of the call with it."""
    first = call.process
    while Path(f"/proc/{parent(first)}/comm").read_text("utf-8").strip() != "slurmstepd":
        first = parent(first)
    for process in {first, call.process}:
        os.kill(process, signal.SIGKILL)


FAULTS: dict[str, tuple[Callable[[Call], None], tuple[str, ...]]] = {
    "cancelled": (cancel, ("[cancelled]",)),
    "time limit": (end_time, ("[time limit]",)),
    "killed process": (kill_call, ("SIGKILL",)),
    "killed step": (kill_step, ("SIGKILL", "exit code 137")),
}
"""What is done to the job, and what batchport must say of it, one or the other."""


def parent(process: int) -> int:
    """Return the process that started this one."""
    return int(Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def gone(process: int) -> bool:
    """Return whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def running_call(run: Run) -> list[Call]:
    """Return the call once for each time that it was started."""
    noted = Path(run.where.folder, "running")
    lines = noted.read_text("utf-8").splitlines() if noted.exists() else []
    return [Call(int(process), job) for process, job in map(str.split, lines)]


def meet(name: str, cluster: Place, fault: str, cap_s: float) -> dict[str, Any]:
    """Have one competitor meet one fault, and return what it said and when."""
    try:
        with place(cluster, 0, example() if name == OURS else "") as where, running(name, where) as run:
            return _meet(run, fault, cap_s)
    except SkippedError as skipped:
        return {"words": f"NOT RUN: {skipped}", "seconds": None, "hangs": False}


def _meet(run: Run, fault: str, cap_s: float) -> dict[str, Any]:
    if not run.wait(START_S, lambda: bool(running_call(run))) or not (calls := running_call(run)):
        return {"words": f"NOT RUN: its call did not start; {run.last_words()}", "seconds": None, "hangs": False}
    call = calls[0]
    time.sleep(STEADY_S)
    make, _ = FAULTS[fault]
    made = time.monotonic()
    make(call)
    limit = time.monotonic() + LIMIT_S
    while not gone(call.process):
        if time.monotonic() > limit:
            words = f"NOT RUN: the process was still there {LIMIT_S:g} s later"
            return {"words": words, "seconds": None, "hangs": False}
        time.sleep(0.02)
    began = time.monotonic()
    run.wait(cap_s, lambda: run.report() is not None)
    report, again = run.report(), len(running_call(run)) - 1
    met = {"process_gone_after": round(began - made, 2), "hangs": report is None, "ran_again": again}
    if report is None:
        what = run.last_words() if run.process.poll() is not None else f"nothing within {cap_s:g} s"
        return {**met, "seconds": None, "words": f"{what}; the call runs again" if again else what}
    told = max(0.0, report["told"] - began)
    return {**met, "seconds": round(told, 2), "raised": report["raised"], "words": report["words"]}


def budgets(met: dict[str, dict[str, Any]], cap_s: float) -> list[Budget]:
    """Return what batchport promises: it does not hang, and names the reason."""
    promised = []
    for fault, each in met.items():
        seconds = each["seconds"]
        promised.append(Budget(f"{fault}: seconds until it is told", seconds, cap_s, ok=seconds is not None))
        names = FAULTS[fault][1]
        named = int(any(word in each["words"] for word in names))
        promised.append(Budget(f"{fault}: the words name {' or '.join(names)}", named, 1, ok=bool(named)))
    return promised


def show(fault: str, met: dict[str, dict[str, Any]]) -> None:
    """Print what each said of one fault."""
    print(f"{fault}: {(FAULTS[fault][0].__doc__ or '').splitlines()[0]}")
    rows: list[Sequence[object]] = []
    for name, each in met.items():
        words = said(each["words"])
        short = words if len(words) <= SHOWN else f"{words[:SHOWN]}..."
        rows.append(
            (name, "-" if each["seconds"] is None else each["seconds"], "silent" if each["hangs"] else "", short)
        )
    table(("", "seconds", "", "first line of its words"), rows)


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="+", metavar="NAME", default=NAMES, choices=NAMES, help="only these")
    options.add_argument("--faults", nargs="+", metavar="FAULT", default=tuple(FAULTS), choices=tuple(FAULTS))
    options.add_argument("--cap", type=float, default=CAP_S, metavar="SECONDS", help="how long to wait for its words")
    chosen = options.parse_args()
    start("slurm_faults: what is said of a job that Slurm ended")
    try:
        cluster = sinfo()
        if not cluster.loopback:
            raise NoSlurmError("the nodes of this Slurm are not this machine")
    except NoSlurmError as missing:
        print(f"{missing}. This needs a Slurm; tests/lab/slurm-up makes one on this machine.", file=sys.stderr)
        return 2
    met: dict[str, dict[str, dict[str, Any]]] = {}
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        for name in chosen.only:
            print(f"  running {name}", file=sys.stderr, flush=True)
            made = pool.map(lambda fault, name=name: meet(name, cluster, fault, chosen.cap), chosen.faults)
            met[name] = dict(zip(chosen.faults, made, strict=True))
    print(f"{out('sbatch', '--version').strip()}; ended after {chosen.cap:g} s; all as each is by default")
    for fault in chosen.faults:
        show(fault, {name: each[fault] for name, each in met.items()})
    return finish("slurm_faults", met, budgets(met[OURS], chosen.cap) if OURS in met else [])


if __name__ == "__main__":
    sys.exit(main())
