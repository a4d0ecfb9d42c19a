"""Run batchport's conformance suite on this adapter. Write this backend's own cases in files beside it."""

from __future__ import annotations

import sys

import pytest
from batchport.testing import Backend, BackendConformance

from my_backend.adapter import Adapter
from my_backend.options import Options


class TestConformance(BackendConformance):
    """What every backend must do. The summary says why a case was not run."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        """Return the backend to test: set here what reaches a real one.

        The store must be one that jobs see too: a shared folder, or a URL such as s3://bucket/tests.
        `python` is the command that starts Python in a job. Two more fields are explained at Backend.
        """
        return Backend(
            adapter=lambda: Adapter(Options()),
            store=str(tmp_path_factory.mktemp("store")),
            python=sys.executable,
        )
