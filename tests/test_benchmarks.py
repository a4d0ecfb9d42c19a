"""Each benchmark runs, in a small form, and ends with its line of JSON. What it measures is for the real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = {
    "aws_batch": ("--tasks", "40", "--pack", "10", "--places", "40", "--seconds", "0.5", "--no-peer"),
    "engine": ("--sizes", "50", "200", "--idle", "0.5", "--peer", "0"),
    "runner_start": ("--repeats", "2", "--no-peer"),
    "scaler": ("--tasks", "20", "--sharing", "4", "--bytes", "100000", "--no-peer"),
    "shared_argument": ("--tasks", "4", "--bytes", "100000"),
    "waiting_memory": ("--calls", "100", "2000"),
}


@pytest.fixture(scope="module", params=SMALL)
def report(request: pytest.FixtureRequest) -> tuple[str, int, dict[str, Any]]:
    """Run a benchmark; return what it printed, its exit code, and its last line, read."""
    script = BENCHMARKS / f"{request.param}.py"
    done = subprocess.run(
        [sys.executable, str(script), *SMALL[request.param]], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert last["benchmark"] == request.param
    return done.stdout, done.returncode, last


def test_a_benchmark_says_what_it_ran_and_on_what(report: tuple[str, int, dict[str, Any]]) -> None:
    printed, _, last = report
    assert f"benchmarks/{last['benchmark']}.py --" in printed
    assert "CPUs" in printed
    assert "Python 3." in printed


def test_its_line_of_json_has_figures_and_budgets(report: tuple[str, int, dict[str, Any]]) -> None:
    _, code, last = report
    assert set(last) == {"benchmark", "figures", "budgets"}
    assert last["figures"]
    assert last["budgets"]
    for budget in last["budgets"]:
        assert set(budget) == {"what", "value", "limit", "ok"}
        assert budget["what"]
        assert budget["value"] >= 0
        assert budget["limit"] >= 0
    assert code == (0 if all(budget["ok"] for budget in last["budgets"]) else 1)


def test_a_missed_budget_ends_a_benchmark_with_1() -> None:
    script = "import _report; raise SystemExit(_report.finish('b', {}, [_report.at_most('cost', 2, 1)]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "MISSED" in done.stdout


def test_what_could_not_be_measured_is_no_budget_met() -> None:
    script = "import _report as r; raise SystemExit(r.finish('b', {}, [r.Budget('gain', None, 10, ok=False)]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "not measured" in done.stdout
