"""The benchmarks on Slurm run, in a small form, on the lab's Slurm; and say in words where none answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.lab import labs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {
    "slurm": ("--calls", "6", "--repeats", "1", "--no-peers"),
    "slurm_faults": ("--only", "batchport, one element each", "--faults", "cancelled", "killed process"),
}


@cache
def report(benchmark: str) -> tuple[str, int, dict[str, Any]]:
    """Run a benchmark; return what it printed, its exit code, and its last line, read."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{benchmark}.py"), *SMALL[benchmark]],
        env=labs.slurm(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert last["benchmark"] == benchmark
    return done.stdout, done.returncode, last


@pytest.mark.timeout(180)
@pytest.mark.parametrize("benchmark", SMALL)
def test_a_benchmark_on_slurm_says_what_it_ran_and_on_what(benchmark: str) -> None:
    printed, _, _ = report(benchmark)
    assert f"benchmarks/{benchmark}.py --" in printed
    assert "load" in printed
    assert "slurm-wlm" in printed


@pytest.mark.timeout(180)
@pytest.mark.parametrize("benchmark", SMALL)
def test_its_exit_code_is_that_of_its_budgets(benchmark: str) -> None:
    _, code, last = report(benchmark)
    assert last["budgets"]
    assert code == (0 if all(budget["ok"] for budget in last["budgets"]) else 1)


@pytest.mark.timeout(180)
def test_every_call_came_back_and_every_command_was_counted() -> None:
    _, _, last = report("slurm")
    for name, row in last["figures"]["rows"].items():
        assert row["why_not"] is None, name
        assert row["seconds"], name
        assert row["commands"]["sbatch"] >= 1, name


@pytest.mark.timeout(180)
def test_every_fault_is_told_and_named() -> None:
    printed, code, last = report("slurm_faults")
    for fault, met in last["figures"]["batchport, one element each"].items():
        assert met["raised"], fault
        assert not met["hangs"], fault
    assert code == 0, printed


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
