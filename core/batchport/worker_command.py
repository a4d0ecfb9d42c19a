"""`batchport worker`: a backend joins an OpenGRIS Scaler cluster, beside an unchanged scheduler.

Called by the command line. Here are its flags, and how a worker is made from them; `settings.py` reads the file,
`serving.py` runs the worker. Needs the extras `cli` and `scaler`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from batchport.backends import EMBEDDED, make_adapter
from batchport.errors import UsageError
from batchport.hosts._code import zips_of
from batchport.jobs import Resources
from batchport.settings import LOG_LEVELS, Config, check_level, read_config, read_options
from batchport.store import FolderStore, Store, open_store

__all__ = ["worker"]

_log = logging.getLogger("batchport.worker_command")

_LONGEST_NAME = 40
_HOME_STORE = "~/.batchport/store"
_CLUSTER, _JOBS, _TASKS, _OTHER = "Where", "Jobs", "What every task asks for", "Other"


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Read the file before any flag is: what stands there is their default."""
    context.obj = Config() if path is None else read_config(path)
    context.default_map = dict(context.obj.flags)
    return path


def worker(  # noqa: PLR0913 - each flag has its line
    context: typer.Context,
    *,
    scheduler: Annotated[
        str, typer.Option(help="The scheduler's address, such as tcp://10.0.0.1:6378.", rich_help_panel=_CLUSTER)
    ] = "",
    backend: Annotated[
        str, typer.Option(help="The backend's name, as `batchport doctor` takes it.", rich_help_panel=_CLUSTER)
    ] = "",
    options: Annotated[
        list[str],
        typer.Option("--option", help="One of the backend's options, as NAME=VALUE.", rich_help_panel=_CLUSTER),
    ] = [],  # noqa: B006 - never changed
    store: Annotated[
        str,
        typer.Option(
            help=f"A folder or URL that jobs can reach too; local takes {_HOME_STORE} if none is given.",
            rich_help_panel=_CLUSTER,
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Option(
            help="The worker's; started again under it, the worker has its jobs again. Without one it is "
            "BACKEND-HOST, and so the same after a restart on this host.",
            rich_help_panel=_CLUSTER,
            show_default=False,
        ),
    ] = "",
    capabilities: Annotated[
        list[str],
        typer.Option(
            "--capability",
            help="What clients may ask of a worker, by name; the scheduler needs the policy allocate=capability.",
            rich_help_panel=_CLUSTER,
        ),
    ] = [],  # noqa: B006 - never changed
    max_jobs: Annotated[int, typer.Option(help="The most jobs at once.", rich_help_panel=_JOBS)] = 1000,
    tasks_per_job: Annotated[int, typer.Option(help="How many tasks share a job.", rich_help_panel=_JOBS)] = 1,
    width: Annotated[int, typer.Option(help="How many tasks of a job run at once.", rich_help_panel=_JOBS)] = 1,
    retries: Annotated[
        int, typer.Option(help="How often a task runs again that was lost, or its node.", rich_help_panel=_JOBS)
    ] = 0,
    python: Annotated[
        str, typer.Option(help="The interpreter in jobs.", rich_help_panel=_JOBS, show_default="this one")
    ] = sys.executable,
    code: Annotated[
        list[str],
        typer.Option(help="A folder whose modules jobs shall find, as it is now.", rich_help_panel=_JOBS),
    ] = [],  # noqa: B006 - never changed
    setup: Annotated[
        str, typer.Option(help="Lines of bash that each job runs first: 'module load gcc'.", rich_help_panel=_JOBS)
    ] = "",
    launcher: Annotated[
        str, typer.Option(help="Words before the interpreter: 'apptainer exec image.sif'.", rich_help_panel=_JOBS)
    ] = "",
    cpus: Annotated[int, typer.Option(help="CPUs.", rich_help_panel=_TASKS)] = 1,
    memory_mib: Annotated[int | None, typer.Option(help="Memory, in MiB.", rich_help_panel=_TASKS)] = None,
    gpus: Annotated[int, typer.Option(help="GPUs.", rich_help_panel=_TASKS)] = 0,
    time_limit_s: Annotated[int | None, typer.Option(help="Seconds that it may run.", rich_help_panel=_TASKS)] = None,
    log_level: Annotated[
        str,
        typer.Option(help=f"What is written to standard error: {', '.join(LOG_LEVELS)}.", rich_help_panel=_OTHER),
    ] = "info",
    config: Annotated[  # noqa: ARG001 - its callback has read it
        Path | None,
        typer.Option(
            help="A TOML file for all of this. Keys are the flags' names with _ for -, capabilities, and the tables "
            "options and resources. A flag that is given wins.",
            callback=_configure,
            is_eager=True,
            rich_help_panel=_OTHER,
        ),
    ] = None,
) -> None:
    """Join a Scaler cluster: what its scheduler gives this worker runs as jobs of a backend.

    Ctrl-C or SIGTERM drains: nothing more starts, and what is in jobs is waited for.
    A second one leaves at once; the jobs live on, and the next start under the name has them again.
    """
    for flag, value, example in (("scheduler", scheduler, "tcp://10.0.0.1:6378"), ("backend", backend, EMBEDDED)):
        if not value:
            raise UsageError(
                f"no {flag} is given: write --{flag} {example}, or {flag} = '{example}' in a --config file"
            )
    check_level(log_level, "--log-level")
    try:
        from batchport.hosts.scaler import ScalerWorker
        from batchport.serving import begin_log, serve
    except ImportError as error:
        raise UsageError(str(error)) from error
    console, told = begin_log(log_level), context.obj
    adapter = make_adapter(backend, {**told.options, **read_options(options)})
    opened, name = _store(store, backend), name or _default_name(backend)
    made = ScalerWorker(
        scheduler,
        adapter,
        opened,
        name,
        max_jobs=max_jobs,
        tasks_per_job=tasks_per_job,
        resources=Resources(cpus, memory_mib, gpus, time_limit_s, told.extra),
        capabilities=capabilities,
        width=width,
        retries=retries,
        code=zips_of(code),
        python=python,
        setup=setup,
        launcher=_words(launcher),
    )
    _log.info("the worker %s runs tasks of %s as jobs of %s, by the store %s", name, scheduler, backend, opened.url)
    raise typer.Exit(asyncio.run(serve(made, name, console)))


def _store(url: str, backend: str) -> Store:
    """Open the store, and refuse or doubt one that jobs can't reach, as far as can be seen from here."""
    if not url and backend != EMBEDDED:
        raise UsageError(
            f"the backend {backend!r} needs a store that its jobs can reach: give --store a folder's path or a URL"
        )
    if url.startswith("memory:"):
        raise UsageError(
            f"--store {url} is in this process's memory, where no job can reach it: give a folder's path, or the URL "
            "of an object store"
        )
    store = open_store(os.path.expanduser(url or _HOME_STORE))  # noqa: PTH111 - a URL is no path
    if isinstance(store, FolderStore) and backend != EMBEDDED and store.root.is_relative_to(tempfile.gettempdir()):
        _log.warning(
            "the store %s is in this machine's folder for temporary files; jobs on machines that do not share it fail",
            store.root,
        )
    return store


def _words(launcher: str) -> list[str]:
    try:
        return shlex.split(launcher)
    except ValueError as error:
        raise UsageError(f"--launcher {launcher!r}: {error}") from error


def _default_name(backend: str) -> str:
    """Return a name that is the same whenever this backend is started on this host."""
    host = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{backend}-{host}")[:_LONGEST_NAME].strip("-_")
