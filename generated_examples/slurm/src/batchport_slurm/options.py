"""What users may choose of Slurm; everything else that sbatch takes goes into `Resources.extra`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Options of this backend. An empty one leaves the choice to Slurm.

    logs: the folder for what jobs print, one file each; nodes must see it. Files older than a week are removed.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    logs: str = "~/.batchport/slurm"
