"""What every benchmark prints: what ran and on what, a table, and last one line of JSON; and its exit code.

Called by the benchmarks beside it, which `nox -s bench -- NAME` runs.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import batchport

__all__ = ["Budget", "at_least", "at_most", "cpu_s", "finish", "in_a_process_of_its_own", "peak_mib", "start", "table"]


@dataclass(frozen=True, slots=True)
class Budget:
    """One promise in numbers: what was measured, and the limit that it must keep."""

    what: str
    value: float | None
    """None where it could not be measured."""
    limit: float
    ok: bool


def at_most(what: str, value: float, limit: float) -> Budget:
    """Return the budget of something that costs."""
    return Budget(what, round(value, 4), limit, value <= limit)


def at_least(what: str, value: float, limit: float) -> Budget:
    """Return the budget of something that is gained."""
    return Budget(what, round(value, 4), limit, value >= limit)


def cpu_s() -> float:
    """Return the seconds of CPU that this process has used, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def start(what: str) -> None:
    """Say what runs, by which command, and on what."""
    print(what)
    print(f"  command  python {shlex.join(sys.argv)}")
    print(f"  on       {_processor()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {platform.platform()}")
    print(f"  with     Python {platform.python_version()}, batchport {batchport.__version__}{_commit()}")
    print(f"  at       {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n", flush=True)


def _commit() -> str:
    """Return which commit the code that is measured comes from; "" where that can't be told."""
    git = ("git", "-C", str(Path(batchport.__file__).parent), "describe", "--always", "--dirty")
    try:
        said = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
    return f", commit {said}" if said else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns: words to the left, numbers to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print("  ".join(name.ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip())
    print("  ".join("-" * width for width in widths))
    for row, line in zip(rows, cells, strict=True):
        together = zip(row, line, widths, strict=True)
        parts = (text.ljust(width) if isinstance(cell, str) else text.rjust(width) for cell, text, width in together)
        print("  ".join(parts).rstrip())
    print(flush=True)


def finish(benchmark: str, figures: Mapping[str, Any], budgets: Sequence[Budget]) -> int:
    """Print the budgets and the line of JSON, and return the exit code: 1 if a budget was missed."""
    rows = [(each.what, "not measured" if each.value is None else each.value, each.limit) for each in budgets]
    words = ("met" if each.ok else "MISSED" for each in budgets)
    table(("budget", "value", "limit", ""), [(*row, word) for row, word in zip(rows, words, strict=True)])
    listed = [asdict(each) for each in budgets]
    print(json.dumps({"benchmark": benchmark, "figures": figures, "budgets": listed}), flush=True)
    return 0 if all(each.ok for each in budgets) else 1


def in_a_process_of_its_own(*command: str, timeout_s: float | None = None) -> dict[str, Any]:
    """Run a command and return its last line, which is JSON, so that its memory and CPU are its own.

    Raises subprocess.CalledProcessError and subprocess.TimeoutExpired; what it says goes to stderr.
    """
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout_s)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
