"""What `batchport doctor` looks at: whether jobs can run on this cluster, from here, with these options."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from shutil import which

from batchport import Check, CommandError

from .options import Options

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
APART_S = 60


async def checks(options: Options, logs: Path, slurm: Callable[..., Awaitable[str]]) -> Iterable[Check]:
    """Look at Slurm's commands, what sbatch says to the options, the archive, and the clocks."""
    missing = [command for command in COMMANDS if which(command) is None]
    chosen = {"partition": options.partition, "account": options.account, "qos": options.qos}
    flags = [f"--{flag}={value}" for flag, value in chosen.items() if value]
    tries = (
        (f"the log folder {logs}", ("ls", str(logs)), "name another one in the option `logs`"),
        ("a job with these options", ("sbatch", "--test-only", *flags, "--wrap=true"), "change the options"),
        ("accounts of ended jobs", ("sacct", "-X"), "ask who runs the cluster"),
    )
    looked_at = [Check("Slurm's commands", not missing, f"put {', '.join(missing)} on PATH" if missing else "")]
    for what, command, advice in tries:
        try:
            await slurm(*command)
        except CommandError as error:
            if "is disabled" in str(error):
                looked_at.append(Check("no accounts are kept: how a job ended is known for minutes only", ok=True))
            else:
                looked_at.append(Check(what, ok=False, advice=f"{error}; {advice}"))
        else:
            looked_at.append(Check(what, ok=True))
    said = re.search(r"\((\d+)\)", await slurm("sdiag"))
    apart = abs(time.time() - int(said[1])) if said else 0
    looked_at.append(Check("the clocks", apart < APART_S, f"this one is {apart:.0f} s off the controller's: set it"))
    return looked_at
