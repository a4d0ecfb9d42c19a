"""A ScalerWorker in the foreground: what signals do to it, what is shown of it, and the exit code.

Called by `worker_command.py`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import nullcontext

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchport.hosts.scaler import ScalerWorker

__all__ = ["begin_log", "serve"]

_log = logging.getLogger("batchport.serving")

_REFRESH_S = 1.0
_TOLD_S = 30.0
"""Seconds between two lines on how things are, where there is no terminal."""


def begin_log(level: str) -> Console:
    """Have the project's loggers write to standard error, and return the console by which they do."""
    console = Console(stderr=True)
    logger = logging.getLogger("batchport")
    logger.addHandler(_Lines(console))
    logger.setLevel(level.upper())
    logger.propagate = False
    return console


async def serve(worker: ScalerWorker, name: str, console: Console) -> int:
    """Run a worker until it ends or is told to, and return the exit code. Raises what `ScalerWorker.run` raises.

    The first SIGTERM or SIGINT drains it. The second one leaves its jobs alone and ends with 128 plus its number. A
    third one ends the process as it is.
    """
    return await _Foreground(worker, name, console).run()


class _Foreground:
    """One run of one worker."""

    def __init__(self, worker: ScalerWorker, name: str, console: Console) -> None:
        self._worker, self._name = worker, name
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._is_draining = False
        self._left_by: signal.Signals | None = None
        self._told, self._told_at = self._status(), time.monotonic()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._run = asyncio.create_task(self._worker.run())
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._on_signal, each)
        with self._live or nullcontext():
            while not self._run.done():
                self._show()
                await asyncio.wait((self._run,), timeout=_REFRESH_S)
        if self._run.cancelled() and self._left_by is not None:
            return 128 + self._left_by
        self._run.result()
        how = "drained" if self._is_draining else "a client has shut down the cluster"
        _log.info("%s; the worker %s has ended: %s", how, self._name, self._amounts())
        return 0

    def _on_signal(self, number: signal.Signals) -> None:
        # What an earlier start has left is not waited for before the scheduler wants it.
        in_jobs = self._worker.counts.sent if self._worker.is_connected else 0
        if self._left_by is not None:  # leaving has got stuck
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._is_draining:
            self._left_by = number
            _log.info(
                "%s: leaving; tasks whose jobs live on: %d. The next start under the name %s has them again",
                number.name,
                in_jobs,
                self._name,
            )
            self._run.cancel()
        else:
            self._is_draining = True
            _log.info(
                "%s: draining; nothing more is started. Tasks in jobs, which are waited for: %d. A second signal "
                "leaves at once, and the jobs live on",
                number.name,
                in_jobs,
            )
            self._worker.drain()
            self._show()

    def _show(self) -> None:
        status, now = self._status(), time.monotonic()
        if self._live is not None:
            self._live.update(Text(status, style="bold", no_wrap=True, overflow="ellipsis"), refresh=True)
        elif status != self._told and now - self._told_at >= _TOLD_S:
            self._told, self._told_at = status, now
            _log.info("%s", status)

    def _status(self) -> str:
        state = "draining" if self._is_draining else "serving" if self._worker.is_connected else "connecting"
        return f"{self._name} {state}: {self._amounts()}"

    def _amounts(self) -> str:
        counts = self._worker.counts
        return (
            f"{counts.waiting:,} waiting, {counts.sent:,} in jobs, {counts.done:,} done, {counts.failed:,} failed "
            f"(jobs: {counts.jobs:,})"
        )


class _Lines(logging.Handler):
    """Writes one line a record, above the status line where there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, emoji=False, soft_wrap=True)
