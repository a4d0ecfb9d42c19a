"""A real Slurm for the tests where there is one, else batchport's simulator of it; the end of the run says which."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from batchport.testing.slurm import SlurmSimulator

ASK = ("squeue", "--me")
IS_REAL = shutil.which("squeue") is not None and subprocess.run(ASK, check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if IS_REAL:
        yield
        return
    folder = tmp_path_factory.mktemp("simulator")
    with SlurmSimulator(folder, minute_s=2) as slurm, pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.env.items():
            patch.setenv(name, value)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which it was."""
    ran_on = "the Slurm that squeue reaches here" if IS_REAL else "batchport's simulator: no Slurm answers squeue here"
    terminalreporter.write_line(f"slurm: ran on {ran_on}")
