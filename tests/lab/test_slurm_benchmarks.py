"""The benchmarks on Slurm run, in a small form, on the lab's Slurm; and say in words where none answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.lab import labs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {
    "slurm": ("--calls", "6", "--repeats", "1", "--no-peers"),
    "slurm_faults": ("--only", "batchport, one element each", "--faults", "cancelled", "killed process"),
}


@pytest.fixture(scope="module", params=SMALL)
def report(request: pytest.FixtureRequest) -> tuple[str, int, dict[str, Any]]:
    """Run a benchmark; return what it printed, its exit code, and its last line, read."""
    env = labs.slurm()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{request.param}.py"), *SMALL[request.param]],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert last["benchmark"] == request.param
    return done.stdout, done.returncode, last


@pytest.mark.timeout(180)
def test_a_benchmark_on_slurm_says_what_it_ran_and_on_what(report: tuple[str, int, dict[str, Any]]) -> None:
    printed, _, last = report
    assert f"benchmarks/{last['benchmark']}.py --" in printed
    assert "load" in printed
    assert "slurm-wlm" in printed


@pytest.mark.timeout(180)
def test_its_exit_code_is_that_of_its_budgets(report: tuple[str, int, dict[str, Any]]) -> None:
    _, code, last = report
    assert last["budgets"]
    assert code == (0 if all(budget["ok"] for budget in last["budgets"]) else 1)


@pytest.mark.timeout(180)
def test_every_call_came_back_and_every_command_was_counted(report: tuple[str, int, dict[str, Any]]) -> None:
    _, _, last = report
    if last["benchmark"] != "slurm":
        pytest.skip("it counts no commands")
    for name, row in last["figures"]["rows"].items():
        assert row["why_not"] is None, name
        assert row["seconds"], name
        assert row["commands"]["sbatch"] >= 1, name


@pytest.mark.timeout(180)
def test_every_fault_is_told_and_named(report: tuple[str, int, dict[str, Any]]) -> None:
    printed, code, last = report
    if last["benchmark"] != "slurm_faults":
        pytest.skip("it makes no faults")
    assert code == 0, printed
    for fault, met in last["figures"]["batchport, one element each"].items():
        assert met["raised"], fault
        assert not met["hangs"], fault


@pytest.mark.parametrize("benchmark", SMALL)
def test_without_slurm_a_benchmark_says_what_it_needs(benchmark: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{benchmark}.py")],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no sbatch on PATH" in done.stderr
    assert "tests/lab/slurm-up" in done.stderr
