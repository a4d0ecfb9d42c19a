"""Hold each run of the conformance suite against `cases.toml`: what it leaves out, and what is listed there.

Imported by the conftest.py of tests that run the suite, or named with `-p tests.lab.listed` where pytest is
run on a suite elsewhere. The suite's class says which table is its own: `listed_as = "local"`; a class that
does not is not looked at.
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest

__all__ = ["CASES", "LabNotUp", "difference", "pytest_runtest_makereport"]

CASES: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("cases.toml").read_text("utf-8"))


class LabNotUp(pytest.skip.Exception):  # type: ignore[misc,name-defined]  # pytest has no name for its type
    """Raised by `labs` to skip a test: what a newcomer's machine does not have yet is no fact about the backend."""

    __module__ = "builtins"  # so that pytest prints the name alone, as it does with its own


def difference(backend: str, case: str, left_out: str | None) -> str | None:
    """Return in words how a run differs from the list; None if it does not.

    `left_out` is why the case was not run, and None if it was.
    """
    if backend not in CASES:
        return f"tests/lab/cases.toml has no table [{backend}]: add it, empty if every case is run there"
    if left_out is not None and case not in CASES[backend]:
        return (
            f"{case} was not run on {backend} ({left_out}), and tests/lab/cases.toml does not list it: "
            "have it run, or add it there with the fact about the backend that forbids it"
        )
    if left_out is None and case in CASES[backend]:
        return f"{case} was run on {backend}, and tests/lab/cases.toml says that it cannot be: strike it out there"
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a case whose run differs from the list."""
    report = yield
    backend = getattr(getattr(item, "cls", None), "listed_as", None)
    if call.excinfo is not None and call.excinfo.errisinstance(LabNotUp):
        report.longrepr = (str(item.path), 1, str(call.excinfo.value))  # one line of the summary for a module
        return report
    if backend is not None and (report.skipped or (report.passed and report.when == "call")):
        left_out = None
        if report.skipped:
            left_out = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if words := difference(backend, item.name, left_out):
            report.outcome, report.longrepr = "failed", words
    return report
