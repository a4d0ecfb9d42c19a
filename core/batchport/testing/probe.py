"""The program of the suite's own jobs: `PYTHON -m batchport.testing.probe STORE KEY STEP...`.

Started by the backend under test, with nothing but the contract's characters in its words. Each step is
NAME or NAME=VALUE; they are taken in turn. It leaves marks (see `marks`) by which the suite sees from
outside what the backend really did. No pytest here, and nothing but the store of batchport.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from batchport.testing.marks import Marks

__all__ = ["STEPS"]

LONGEST_S = 600
"""How long, in seconds, a probe that nobody releases or ends stays, so that no run leaves one for ever."""


def _hold(marks: Marks, seconds: str) -> None:
    """Wait until the suite opens the gate, and exit if it does not within so many seconds."""
    if not marks.hold(float(seconds or LONGEST_S)):
        sys.exit("nobody opened the gate")


def _sleep(marks: Marks, seconds: str) -> None:
    """Wait so many seconds."""
    marks.hold(float(seconds), gate="none")


def _index(_marks: Marks, variable: str) -> None:
    """Have all marks hold the value of this variable, in which the backend tells an element its index."""
    os.environ["PROBE_INDEX"] = os.environ.get(variable, "")


def _only(_marks: Marks, index: str) -> None:
    """Take the other steps only as the element of this index; all others end here, and well."""
    if os.environ["PROBE_INDEX"] != index:
        sys.exit()


def _print(_marks: Marks, word: str) -> None:
    """Print a line."""
    print(word, flush=True)  # noqa: T201 - into the job's log


def _exit(_marks: Marks, code: str) -> None:
    """Exit with this code."""
    sys.exit(int(code))


def _kill(_marks: Marks, name: str) -> None:
    """Die by the signal of this name."""
    if os.getpid() == 1:
        # A container's first process cannot signal itself to death; engines tell such an end by this exit code.
        # https://man7.org/linux/man-pages/man7/pid_namespaces.7.html
        os._exit(128 + signal.Signals[name])
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(LONGEST_S)


def _deaf(_marks: Marks, _value: str) -> None:
    """Ignore the polite request to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_allocated: list[bytes] = []


def _allocate(_marks: Marks, mib: str) -> None:
    """Fill and keep so many MiB of memory."""
    _allocated.extend(b"x" * (1 << 20) for _ in range(int(mib)))


def _spawn(marks: Marks, label: str) -> None:
    """Start a process that leaves a mark of this label and stays until the gate is open."""
    subprocess.Popen([sys.executable, "-m", "batchport.testing.probe", marks.url, marks.key, f"mark={label}", "hold"])


STEPS: Mapping[str, Callable[[Marks, str], None]] = {
    "mark": Marks.leave,
    "hold": _hold,
    "sleep": _sleep,
    "index": _index,
    "only": _only,
    "print": _print,
    "exit": _exit,
    "kill": _kill,
    "deaf": _deaf,
    "allocate": _allocate,
    "spawn": _spawn,
    "say": lambda _marks, _words: None,
}
"""What a probe can do, by the step's name. `say` does nothing: its value is there to be read from the mark."""


def _main(url: str, key: str, *steps: str) -> None:
    marks = Marks(url, key)
    for step in steps:
        name, _, value = step.partition("=")
        STEPS[name](marks, value)


if __name__ == "__main__":
    _main(*sys.argv[1:])
