"""The conformance suite sees every defect of the broken adapters, by the cases that are named for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.mutants.adapters import CONTROL, MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
AT_ONCE = 6
"""Runs at the same time; each of them mostly waits."""

ASSERTED = re.compile(r"failure: (AssertionError|assert |Failed: (?!Timeout))")

SUITE = """
import pytest
from batchport.testing import Backend, BackendConformance
from tests.mutants import adapters

class TestConformance(BackendConformance):
    patience_s = 6

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        return adapters.backend(adapters.{mutant}, tmp_path_factory.mktemp("mutant"))
"""


def run(mutant: type[Mutant], cases: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Run these cases on a broken adapter; return what became of each: passed, failed, or else in pytest's words.

    "failed" is said only of an assertion, or of a wait that was in vain; not of a stray exception or a time-out.
    """
    suite, report = folder / "test_mutant.py", folder / "report.xml"
    suite.write_text(SUITE.format(mutant=mutant.__name__))
    argv = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}"]
    argv += ["-p", "batchport.testing.plugin", "-p", "pytest_timeout", "--timeout=50", "-q", f"--junitxml={report}"]
    argv += [f"{suite}::TestConformance::{case}" for case in cases]
    # No plugin but those that are named: pytest starts twice as fast.
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert report.exists(), ended.stdout + ended.stderr
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        words = "passed" if bad is None else f"{bad.tag}: {bad.attrib['message']}"
        outcomes[case.attrib["name"]] = "failed" if ASSERTED.match(words) else words
    return outcomes


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[type[Mutant], Future[dict[str, str]]]]:
    """Run all mutants that are asked for, some at the same time: a defect often shows in waiting for nothing."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = [each.params["mutant"] for each in callspecs if each and "mutant" in each.params]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {
            mutant: threads.submit(run, mutant, (*MUTANTS[mutant], mutant.control), tmp_path_factory.mktemp("mutant"))
            for mutant in MUTANTS
            if mutant in wanted
        }


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_adapter_fails_the_cases_named_for_its_defect(
    mutant: type[Mutant], outcomes: Mapping[type[Mutant], Future[dict[str, str]]]
) -> None:
    wanted = dict.fromkeys(MUTANTS[mutant], "failed") | {mutant.control: "passed"}
    assert outcomes[mutant].result() == wanted


def test_the_control_passes_on_an_adapter_that_is_not_broken(tmp_path: Path) -> None:
    cases = tuple(sorted({case for killing in MUTANTS.values() for case in killing} | {CONTROL}))
    assert set(run(Mutant, cases, tmp_path).values()) == {"passed"}
