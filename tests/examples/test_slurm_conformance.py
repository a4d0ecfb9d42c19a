"""The conformance suite on the real Slurm, with accounting and without."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from batchport_slurm.options import Options
from tests.examples.on_slurm import SettlesIn
from tests.lab import labs

from batchport import Resources
from batchport.testing import Backend, BackendConformance


@pytest.mark.timeout(240)
class OnSlurm(BackendConformance):
    listed_as = "slurm"
    accounting = True
    patience_s = 150  # a time limit is a whole minute, and Slurm looks at it every 30 s

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
        env = labs.slurm(accounting=cls.accounting)
        folder = tmp_path_factory.mktemp("slurm")
        # One node, so that there are jobs that wait.
        options = Options(partition="one", logs=str(folder / "logs"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", env["SLURM_CONF"])
            yield Backend(
                adapter=lambda: SettlesIn(3, options),
                store=str(folder / "store"),
                python=sys.executable,
                refused=Resources(memory_mib=1 << 30),
                marks=folder,
            )


class TestWithAccounting(OnSlurm):
    """sacct answers for what squeue no longer knows."""


class TestWithoutAccounting(OnSlurm):
    """squeue alone knows how a job ended, and for minutes only."""

    accounting = False
