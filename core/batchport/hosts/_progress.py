"""The progress bar of an executor, on standard error while work is pending.

Called by `_loop.py`, which says when there is work and when there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from batchport.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Bar", "Progress"]


class Progress(NamedTuple):
    """How far an executor is: tasks submitted, unfinished, failed, and with the backend now."""

    submitted: int
    unfinished: int
    failed: int
    sent: int


class Bar:
    """A bar that asks `read` how far things are whenever it is drawn. Raises UsageError without rich."""

    def __init__(self, read: Callable[[], Progress]) -> None:
        try:
            from rich import progress
            from rich.console import Console
        except ImportError:
            raise UsageError("progress=True needs rich: pip install 'batchport[cli]'") from None

        class Drawn(progress.Progress):
            def get_renderables(self) -> Iterable[RenderableType]:
                for task in self.task_ids:  # one, or none before there was work
                    now = read()
                    done = now.submitted - now.unfinished
                    self.update(task, total=now.submitted, completed=done, failed=now.failed, sent=now.sent)
                yield from super().get_renderables()

        self._drawn = Drawn(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("done, {task.fields[failed]} failed, {task.fields[sent]} at the backend"),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            # Where stdout goes elsewhere, what is printed must go there too.
            redirect_stdout=sys.stdout.isatty(),
            refresh_per_second=4,
            transient=True,
        )

    def show(self) -> None:
        """Draw it from now on: there is work."""
        if not self._drawn.task_ids:
            self._drawn.add_task("", total=0, failed=0, sent=0)
        self._drawn.start()

    def hide(self) -> None:
        """Take it away: there is no work now."""
        self._drawn.stop()

    def close(self) -> None:
        """Leave its last state on the screen, if it was ever there."""
        if self._drawn.task_ids:
            self._drawn.live.transient = False
            self._drawn.start()
            self._drawn.stop()
