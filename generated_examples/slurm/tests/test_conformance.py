"""Run batchport's conformance suite on this adapter, on a real Slurm if there is one here."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from batchport import Resources
from batchport.testing import Backend, BackendConformance

from batchport_slurm.adapter import Adapter
from batchport_slurm.options import Options


class QuickAdapter(Adapter):
    """The same, but a job that is missing is believed to be gone sooner than a busy cluster would allow."""

    async def open(self, worker: str) -> None:
        await super().open(worker)
        self.limits = replace(self.limits, settle_s=3)


class TestConformance(BackendConformance):
    """What every backend must do. The summary says why a case was not run."""

    patience_s = 150  # a time limit is a whole minute, and Slurm looks at it every 30 s

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        """Return the backend to test; the folder must be one that the cluster's nodes see too."""
        folder = tmp_path_factory.mktemp("slurm")
        return Backend(
            adapter=lambda: QuickAdapter(Options(logs=str(folder / "logs"))),
            store=str(folder / "store"),
            python=sys.executable,
            refused=Resources(memory_mib=1 << 30),
            marks=folder,
        )
