"""run(): a command of the backend, awaited, with its exit code checked.

Called by adapters whose backend is driven by commands (sbatch, bsub, qsub, tsp).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress

from batchport.errors import CommandError

__all__ = ["run"]


async def run(
    *argv: str, stdin: str = "", ok: Collection[int] = (0,), timeout_s: float = 60, env: Mapping[str, str] | None = None
) -> str:
    """Run a command to its end and return what it printed on standard output.

    `ok` holds the exit codes that count as success. `env` replaces the environment (None: inherited).
    Raises CommandError, whose `code` is None if the command was not found, and also if it did not end
    within `timeout_s` seconds: it is then killed with its children, and whether it had its effect is not known.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            start_new_session=True,  # a group of its own, to be killed as one
        )
    except OSError as error:
        raise CommandError(argv, None, "", f"{error.strerror}: {argv[0]}") from error
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), timeout_s)
    except TimeoutError:
        raise CommandError(argv, None, "", f"no answer within {timeout_s:g} s; it was killed") from None
    finally:
        if process.returncode is None:
            # Its children too: they hold the pipes, and without an end of those wait() would not return.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode not in ok:
        raise CommandError(argv, process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    return out.decode(errors="replace")
