"""The suite's pytest plugin, loaded by `pytest -p batchport.testing.plugin`.

It names in the summary every conformance case that was not run, with the reason, since a suite that skips
in silence proves less than it seems to. And it has pytest explain the asserts of the suite's modules.
"""

from __future__ import annotations

import textwrap
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["pytest_runtest_makereport", "pytest_terminal_summary"]

# Before they are imported for the first time, or pytest cannot rewrite their asserts.
pytest.register_assert_rewrite("batchport.testing.bench", "batchport.testing.cases", "batchport.testing.host")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note on each report of a conformance case that it is one; pytest-xdist carries the note along."""
    from batchport.testing.conformance import BackendConformance

    report = yield
    group = getattr(item, "cls", None)
    report.conformance = isinstance(group, type) and issubclass(group, BackendConformance)  # type: ignore[attr-defined]  # a report holds what is put there
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print, for each suite, which cases were not run, and why."""
    suites: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            if getattr(report, "conformance", False):
                suite, _, case = report.nodeid.rpartition("::")
                suites.setdefault(suite, {})[case] = _reason(report) if outcome == "skipped" else ""
    for suite, cases in suites.items():
        reasons = sorted({reason for reason in cases.values() if reason})
        if not reasons:
            continue
        count = sum(bool(reason) for reason in cases.values())
        terminalreporter.section(f"conformance: {suite}")
        terminalreporter.write_line(f"not run here: {count} of {len(cases)} cases")
        for reason in reasons:
            names = [case for case, its in cases.items() if its == reason]
            terminalreporter.write_line(f"- {reason}")
            # A skeleton waits with all cases for the same thing; to name them would drown what to do next.
            words = f"all other {len(names)} cases" if reason.startswith("waits for") else ", ".join(names)
            terminalreporter.write_line(textwrap.fill(words, 110, initial_indent="    ", subsequent_indent="    "))


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
