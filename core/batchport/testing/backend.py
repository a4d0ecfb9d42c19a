"""Backend: all that the conformance suite must be told about the backend under test.

Made by the one fixture that a subclass of BackendConformance has; read by the suite alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchport.adapter import BatchWorkerAdapterBase
from batchport.jobs import Resources

__all__ = ["Backend"]


@dataclass(frozen=True)
class Backend:
    """How to reach one backend, and what its jobs can see.

    adapter: makes a fresh, unopened adapter at each call; the suite uses several at once.
    store: the URL of a store that both the jobs and this process can reach.
    python: the interpreter as the jobs call it; batchport is installed in it.
    refused: resources that the backend refuses for ever; None if it refuses none, and then the case
        about refusal is not run.
    marks: a folder that the jobs and this process share; None sends the jobs' marks to the store.
    """

    adapter: Callable[[], BatchWorkerAdapterBase]
    store: str
    python: str
    refused: Resources | None = None
    marks: Path | None = None
