"""The list of cases that are not run somewhere is true, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab import listed

from batchport.testing import BackendConformance

SUITE = """
import sys
import pytest
from batchport.backends.local import LocalAdapter, Options
from batchport.testing import Backend, BackendConformance
from tests.lab import listed

listed.CASES["house"] = {{"test_a_job_runs_once": "it runs no jobs"}}

class TestConformance(BackendConformance):
    listed_as = {name!r}

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory):
        {first}
        folder = tmp_path_factory.mktemp("local")
        return Backend(lambda: LocalAdapter(Options(folder=str(folder))), str(folder / "store"), sys.executable)
"""


def run(folder: Path, name: str, first: str = "") -> str:
    """Run the suite on a backend without `refused`, and return what pytest prints of the cases that failed."""
    (folder / "test_conformance.py").write_text(SUITE.format(name=name, first=first), encoding="utf-8")
    cases = "test_a_job_runs_once or refused_in_words or polling_nothing"
    argv = [sys.executable, "-m", "pytest", "-p", "batchport.testing.plugin", "-p", "tests.lab.listed", "-k", cases]
    argv += ["-c", os.devnull, f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}", "-rf", "-q", str(folder)]
    env = os.environ | {"COLUMNS": "400", "NO_COLOR": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    root = Path(__file__).parents[2]
    return subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, check=False).stdout


def test_a_run_that_differs_from_the_list_fails(tmp_path: Path) -> None:
    printed = run(tmp_path, "house")
    assert "2 failed, 1 passed" in printed
    assert (
        "test_resources_it_cannot_give_are_refused_in_words was not run on house (Skipped: Backend.refused is None: "
        "it names no resources that the backend refuses), and tests/lab/cases.toml does not list it: "
        "have it run, or add it there with the fact about the backend that forbids it"
    ) in printed
    assert (
        "test_a_job_runs_once was run on house, and tests/lab/cases.toml says that it cannot be: strike it out there"
    ) in printed


def test_a_lab_that_is_not_up_is_no_difference(tmp_path: Path) -> None:
    printed = run(tmp_path, "house", 'raise listed.LabNotUp("this needs the house; build it")')
    assert "3 skipped" in printed
    assert "failed" not in printed


def test_a_backend_without_a_table_is_told_to_have_one() -> None:
    assert listed.difference("nowhere", "test_a_job_runs_once", None) == (
        "tests/lab/cases.toml has no table [nowhere]: add it, empty if every case is run there"
    )


@pytest.mark.parametrize("backend", listed.CASES)
def test_each_case_that_is_listed_exists_and_has_a_fact_with_its_source(backend: str) -> None:
    for case, fact in listed.CASES[backend].items():
        assert hasattr(BackendConformance, case), f"the suite has no {case}"
        assert "https://" in fact, f"{case} needs the place where the fact is stated"
