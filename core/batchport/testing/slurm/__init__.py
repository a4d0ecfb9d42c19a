"""A simulator of Slurm for tests on any laptop: sbatch, squeue, sacct, scancel, scontrol and sdiag.

    with SlurmSimulator(folder, cpus=4) as slurm:
        os.environ.update(slurm.env)

Called by the tests of Slurm adapters. What the commands do and print was read off a real Slurm 22.05, and
tests/lab/test_slurm_differential.py compares the two. `simulator` is the door; each command is a module of its
name; `state` is what they share, `controller` the process that runs the jobs and comes and goes by itself.
Commands are started a thousand times in a test run, so all but `simulator` import little and nothing of batchport.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as of `typing`, whose import would be a third of a command's time
if TYPE_CHECKING:
    from batchport.testing.slurm.simulator import SlurmSimulator

__all__ = ["SlurmSimulator"]


def __getattr__(name: str) -> object:
    if name == "SlurmSimulator":
        from batchport.testing.slurm.simulator import SlurmSimulator

        return SlurmSimulator
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
