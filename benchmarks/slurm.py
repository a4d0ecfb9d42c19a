"""What many trivial calls take on a real Slurm: batchport, its peers, and the floors, on the same cluster in one run.

`nox -s bench -- slurm`. It uses the Slurm that answers here, and its default partition. Each competitor is a
process of its own, one after the other. Its clock starts before it imports anything of its own and stops when it
has all results: the start of its workers counts, and its end does not. A floor is one array, and its clock
stops when all elements have run.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from _report import Budget, at_most, finish, start, table
from _slurm_peers import COMPETITORS, PINS, Place
from _slurm_runs import NoSlurmError, SkippedError, example, out, place, running, said, sentence, sinfo

CALLS = 500
FEW = 50
REPEATS = 3
CAP_S = 900.0
LEAVING_S = 60.0
ALONE = "floor: array of python3 -c pass"
CLOUDPICKLE = "floor: array of python3 -c 'import cloudpickle'"
FLOORS = {ALONE: "pass", CLOUDPICKLE: "import cloudpickle"}
SINGLE, *PACKS = OURS = tuple(name for name, competitor in COMPETITORS.items() if competitor.peer is None)
DASKS = ("dask-jobqueue", "dask-jobqueue, threads")
REPEATED = (*FLOORS, *OURS, *DASKS)
PEERS = tuple(name for name, competitor in COMPETITORS.items() if competitor.peer is not None)


@dataclass
class Row:
    """What one competitor took, each time that it ran."""

    name: str
    calls: int
    notes: str
    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    commands: Counter[str] = field(default_factory=Counter)
    commands_in_jobs: Counter[str] = field(default_factory=Counter)
    why_not: str | None = None

    @property
    def middle_s(self) -> float | None:
        """The middle one of its times; None if it has none."""
        return median(self.seconds) if self.seconds else None

    def cells(self) -> tuple[object, ...]:
        """Return its line in the table."""
        asked = sentence(self.commands)
        if self.commands_in_jobs:
            asked += f"; in jobs: {sentence(self.commands_in_jobs)}"
        notes = self.notes
        if len(self.seconds) > 1:
            notes += f"; {len(self.seconds)} times, from {min(self.seconds):.1f} to {max(self.seconds):.1f} s"
        if self.why_not is not None:
            notes = f"NOT RUN: {self.why_not}" if not self.seconds else f"{notes}; {self.why_not}"
        middle = self.middle_s
        return (
            self.name,
            self.calls,
            "-" if middle is None else round(middle, 1),
            "-" if middle is None else round(1000 * middle / self.calls),
            asked,
            self.commands.total(),
            "-" if self.peak_mib is None else round(self.peak_mib),
            notes,
        )

    def figures(self) -> dict[str, Any]:
        """Return it for the line of JSON."""
        return {
            "calls": self.calls,
            "seconds": [round(each, 3) for each in self.seconds],
            "peak_mib": self.peak_mib,
            "commands": dict(self.commands),
            "commands_in_jobs": dict(self.commands_in_jobs),
            "notes": self.notes,
            "why_not": self.why_not,
        }


def run_floor(row: Row, where: Place, source: str) -> None:
    """Run one array whose elements do as little as `source`, and note what it took."""
    ended = Path(where.folder, "ended")
    script = f"#!/bin/sh\n{sys.executable} -c {shlex.quote(source)}\necho $? >>{ended}\n"
    Path(where.folder, "floor.sh").write_text(script, "utf-8")
    ended.touch()
    began = time.monotonic()
    array = f"--array=0-{where.calls - 1}"
    options = ("--parsable", "--output=/dev/null", f"--partition={where.partition}", "--ntasks=1", array)
    job = out("sbatch", *options, f"{where.folder}/floor.sh").strip()
    while len(codes := ended.read_bytes().split()) < where.calls:
        if time.monotonic() > began + CAP_S:
            out("scancel", job)
            row.why_not = f"{len(codes):,} had ended after {CAP_S:g} s"
            return
        time.sleep(0.02)
    row.seconds.append(time.monotonic() - began)
    row.commands = Counter(sbatch=1)
    if set(codes) != {b"0"}:
        row.why_not = f"an element ended with {max(codes).decode()}"
    while out("squeue", "--noheader", f"--jobs={job}", check=False).strip():
        time.sleep(0.2)


def run_competitor(row: Row, where: Place) -> None:
    """Run one competitor once, and note what it took."""
    with running(row.name, where) as run:
        reported = run.wait(CAP_S, lambda: run.report() is not None)
        # It may submit or cancel something as it leaves, which counts.
        left = run.wait(LEAVING_S, lambda: run.process.poll() is not None)
        row.commands, row.commands_in_jobs = run.commands()
        report = run.report()
        if report is None:
            row.why_not = run.last_words() if reported else f"no result after {CAP_S:g} s"
            return
        row.seconds.append(report["seconds"])
        row.peak_mib = report["peak_mib"]
        if not left:
            row.why_not = f"it had not ended {LEAVING_S:g} s after its last result"
        elif run.process.returncode:
            row.why_not = f"at its end: {run.last_words()}"


def measure(cluster: Place, names: Sequence[str], calls: int, repeats: int) -> dict[str, Row]:
    """Run floors and competitors in turn, as often as each is to run, and return their rows."""
    rows: dict[str, Row] = {}
    for name in names:
        competitor = COMPETITORS.get(name)
        notes = "one sbatch, no results" if competitor is None else competitor.notes
        rows[name] = Row(name, min(FEW, calls) if competitor is not None and competitor.few else calls, notes)
    for turn in range(repeats):
        for name, row in rows.items():
            if row.why_not is not None or (turn and name not in REPEATED):
                continue
            print(f"  running {name}", file=sys.stderr, flush=True)
            try:
                package = example() if name in OURS else ""
                with place(cluster, row.calls, package) as where:
                    if name in FLOORS:
                        run_floor(row, where, FLOORS[name])
                    else:
                        run_competitor(row, where)
            except SkippedError as skipped:
                row.why_not = str(skipped)
    return rows


def budgets(rows: dict[str, Row], calls: int) -> list[Budget]:
    """Return what was promised of the rows that were asked for."""
    single = rows[SINGLE]
    what = f"{calls:,} calls, one element each, against the array that imports cloudpickle"
    promised = [ratio(what, single.middle_s, rows[CLOUDPICKLE].middle_s, 1.2)]
    if any(name in rows for name in DASKS):
        what = f"{calls:,} calls, packed, against dask-jobqueue; of both the faster way"
        promised.append(ratio(what, fastest(rows, PACKS), fastest(rows, DASKS), 1))
    asked = f"scheduler commands for {calls:,} calls, one element each"
    ran = bool(single.seconds)
    promised.append(at_most(asked, single.commands.total(), 10) if ran else Budget(asked, None, 10, ok=False))
    return promised


def fastest(rows: dict[str, Row], names: Sequence[str]) -> float | None:
    """Return the shortest of these rows' middle times."""
    return min((row.middle_s for name in names if (row := rows.get(name)) and row.middle_s is not None), default=None)


def ratio(what: str, ours: float | None, theirs: float | None, limit: float) -> Budget:
    """Return the budget of our time as a part of theirs."""
    if ours is None or theirs is None:
        return Budget(what, None, limit, ok=False)
    return at_most(what, ours / theirs, limit)


def main() -> int:
    """Run what the command line asks for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=CALLS)
    options.add_argument("--repeats", type=int, default=REPEATS, help=f"of {', '.join(REPEATED)}")
    options.add_argument("--no-peers", action="store_true", help="only batchport and the floors")
    options.add_argument("--only", nargs="+", metavar="PEER", default=PEERS, choices=PEERS, help="only these peers")
    chosen = options.parse_args()
    start(f"slurm: {chosen.calls:,} trivial calls on a real Slurm")
    try:
        cluster = sinfo()
    except NoSlurmError as missing:
        print(f"{missing}. This needs a Slurm; tests/lab/slurm-up makes one on this machine.", file=sys.stderr)
        return 2
    peers = () if chosen.no_peers else tuple(chosen.only)
    rows = measure(cluster, (*FLOORS, *OURS, *peers), chosen.calls, chosen.repeats)
    version = out("sbatch", "--version").strip()
    print(f"{version}, partition {cluster.partition}: {cluster.nodes} nodes of {cluster.cpus} CPUs each")
    print("the peers: " + ", ".join(said(pins[0]) for pins in PINS.values()) + "; what is not in the notes is default")
    table(
        ("", "calls", "wall s", "ms a call", "scheduler commands", "in all", "peak MiB", "notes"),
        [row.cells() for row in rows.values()],
    )
    nodes = {"version": version, "nodes": cluster.nodes, "cpus_of_each": cluster.cpus}
    figures = {"cluster": nodes, "rows": {name: row.figures() for name, row in rows.items()}}
    return finish("slurm", figures, budgets(rows, chosen.calls))


if __name__ == "__main__":
    sys.exit(main())
