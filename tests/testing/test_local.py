"""The conformance suite, run on the embedded backend."""

from __future__ import annotations

import sys

import pytest

from batchport.backends.local import LocalAdapter, Options
from batchport.jobs import Resources
from batchport.testing import Backend, BackendConformance


class TestConformance(BackendConformance):
    """The embedded backend, with fewer slots than some cases have jobs."""

    listed_as = "local"

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        folder = tmp_path_factory.mktemp("local")
        options = Options(folder=str(folder / "jobs"), slots=3)
        return Backend(
            adapter=lambda: LocalAdapter(options),
            store=str(folder / "store"),
            python=sys.executable,
            refused=Resources(gpus=1),
        )
