"""The Scaler list on the real Slurm."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from batchport_slurm.options import Options
from tests.examples.on_slurm import SettlesIn
from tests.hosts.scaler_list import ScalerList

from batchport.testing import Backend


@pytest.mark.timeout(240)
class TestOnSlurm(ScalerList):
    patience_s = 60.0
    worker_options: dict[str, Any] = {"poll_s": (0.5, 2)}  # noqa: RUF012 - a constant

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, slurm: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
        folder = tmp_path_factory.mktemp("slurm")
        # One node, so that there are jobs that wait.
        options = Options(partition="one", logs=str(folder / "logs"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
            yield Backend(lambda: SettlesIn(3, options), str(folder / "store"), sys.executable, marks=folder)
