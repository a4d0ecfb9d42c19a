"""The Scaler list on this machine."""

from __future__ import annotations

import sys

import pytest
from tests.hosts.scaler_list import ScalerList

from batchport.backends.local import LocalAdapter, Options
from batchport.testing import Backend


class TestOnThisMachine(ScalerList):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        folder = tmp_path_factory.mktemp("local")
        options = Options(folder=str(folder / "jobs"), slots=4)
        return Backend(lambda: LocalAdapter(options), str(folder / "store"), sys.executable, marks=folder)
