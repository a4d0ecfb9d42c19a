"""The functions that the suite sends through the worker to run in jobs.

Pickled by reference, so a job imports this module: no pytest here.
"""

from __future__ import annotations

import os

from batchport.testing.marks import Marks

__all__ = ["add", "die", "hold", "raise_lookup_error", "say", "turn"]

LONGEST_S = 600


def add(*numbers: int) -> int:
    """Return the sum."""
    return sum(numbers)


def turn(data: bytes) -> bytes:
    """Return the bytes in reverse order."""
    return data[::-1]


def say(words: str) -> None:
    """Print the words."""
    print(words)  # noqa: T201 - the case is about what is printed


def raise_lookup_error(*args: object) -> None:
    """Raise a LookupError with these arguments."""
    raise LookupError(*args)


def die(code: int) -> None:
    """End the process on the spot, without an answer."""
    os._exit(code)


def hold(url: str, key: str) -> None:
    """Leave the mark "run", wait for the gate to be opened, and leave the mark "end"."""
    marks = Marks(url, key)
    marks.leave("run")
    if marks.hold(LONGEST_S):
        marks.leave("end")
