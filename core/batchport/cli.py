"""The command line: `batchport demo`, `batchport doctor` and `batchport worker`.

Called by the `batchport` script. Needs the `cli` extra, and says so without it.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from batchport.adapter import BatchWorkerAdapterBase
from batchport.backends import make_adapter
from batchport.errors import BatchportError, UsageError
from batchport.jobs import Check
from batchport.settings import read_options

try:
    import typer
except ImportError:
    sys.exit("batchport: the command line needs typer and rich; install them with: pip install 'batchport[cli]'")

from batchport.worker_command import worker

__all__ = ["main"]

_T = TypeVar("_T")

_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run Python functions on any batch backend.",
)


def main() -> None:
    """Run the command line; a failure ends the process with exit code 1, in words."""
    try:
        _app()
    except BatchportError as error:
        sys.exit(f"batchport: {error}")


@_app.command()
def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder with the new backend behind.")] = False,
) -> None:
    """Scaffold a backend, see its suite fail, fill it in, see it pass, and run real work through it."""
    try:
        from batchport.demo import run_demo
    except ImportError as error:
        raise UsageError(f"the demo needs {error.name}; install it with: pip install 'batchport[demo]'") from error
    signal.signal(signal.SIGTERM, _terminate)
    try:
        run_demo(keep=keep)
    except _Terminated:
        raise typer.Exit(128 + signal.SIGTERM) from None


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the demo as Ctrl-C does, so that jobs and folder go too."""


def _terminate(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off what the first began
    raise _Terminated


@_app.command()
def doctor(
    backend: Annotated[str, typer.Argument(help="The backend's name, as in BatchExecutor(backend=...).")],
    option: Annotated[list[str] | None, typer.Option(help="One of its options, as NAME=VALUE.")] = None,
) -> None:
    """Look at all that must be in place for jobs to run on a backend; exit with 1 if something is not."""
    checks = asyncio.run(_checks(make_adapter(backend, read_options(option or []))))
    for check in checks:
        advice = f": {check.advice}" if check.advice and not check.ok else ""
        typer.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.what}{advice}")
    if not checks:
        typer.echo(f"ok    {backend} opened, and its adapter has nothing more to check")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


_app.command()(worker)


async def _checks(adapter: BatchWorkerAdapterBase) -> list[Check]:
    """Open the adapter, have it look at everything, and close it. Raises what the adapter raises."""
    await _answer(adapter.open("doctor"))
    try:
        return list(await _answer(adapter.check()))
    finally:
        await _answer(adapter.close())


async def _answer(answer: _T | Awaitable[_T]) -> _T:
    return await answer if inspect.isawaitable(answer) else answer
