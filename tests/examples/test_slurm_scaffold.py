"""A package from the slurm starter tests itself: on the real Slurm where there is one, else on the simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "generated_examples" / "slurm"


def run_its_tests(env: Mapping[str, str], folder: Path, *words: str) -> tuple[int, str]:
    pytest_here = (sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:xdist", "-p", "no:cacheprovider")
    argv = (*pytest_here, f"--basetemp={folder}", *words)
    done = subprocess.run(argv, cwd=EXAMPLE, env=env, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.timeout(600)  # as many cases as on a real one
def test_without_a_slurm_it_passes_on_the_simulator_and_says_so(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    code, said = run_its_tests(env | {"SLURM_CONF": "/no/such/file"}, tmp_path / "folder")
    assert code == 0, said[-3000:]
    assert "slurm: ran on batchport's simulator: no Slurm answers squeue here" in said


def test_with_a_slurm_it_runs_there_and_says_so(slurm: Mapping[str, str], tmp_path: Path) -> None:
    code, said = run_its_tests(slurm, tmp_path / "folder", "-k", "exit_code or words")
    assert code == 0, said[-3000:]
    assert "slurm: ran on the Slurm that squeue reaches here" in said
