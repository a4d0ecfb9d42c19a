"""Work: what an attempt asks of that which runs it, be it a container or processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["NotStartedError", "Work"]


class NotStartedError(Exception):
    """There will be no container; the text is the job's container.reason."""


class Work(Protocol):
    """One run of a job, from its start on."""

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""

    def out_of_memory(self) -> bool:
        """Return whether it was killed for its memory."""

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""

    def kill(self) -> None:
        """Kill all of it."""

    def output(self) -> Iterator[bytes]:
        """Yield what it prints, as it comes, until it is over."""

    def remove(self) -> None:
        """Let go of what it held."""
