from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lab.listed import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport", "run_suite"]

SUITE = """
import sys
import pytest
from batchport.testing import Backend, BackendConformance
from adapter import Adapter, Options

class TestConformance(BackendConformance):
    patience_s = 10

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        folder = tmp_path_factory.mktemp("conformance")
        options = Options(folder=str(folder / "jobs"), slots=3)
        return Backend(adapter=lambda: Adapter(options), store=str(folder / "store"), python=sys.executable)
"""


@pytest.fixture
def run_suite(tmp_path: Path) -> Callable[..., str]:
    """Run the suite, as its author would, on an adapter given as source text; return what pytest prints."""

    def run(adapter: str, *arguments: str, suite: str = SUITE) -> str:
        (tmp_path / "adapter.py").write_text(adapter)
        (tmp_path / "test_conformance.py").write_text(suite)
        argv = [sys.executable, "-m", "pytest", "-p", "batchport.testing.plugin", "-p", "no:cacheprovider"]
        argv += ["-c", os.devnull, "--rootdir=.", f"--basetemp={tmp_path / 'tmp'}", "-W", "error", *arguments]
        # Wide enough that pytest cuts no line of its summary.
        env = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False).stdout

    return run
