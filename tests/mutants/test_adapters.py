"""The conformance suite sees the defect of each broken adapter, by the case that is about it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.mutants.adapters import CONTROL, MUTANTS, Mutant, backend

from batchport.testing import BackendConformance
from batchport.testing.bench import Bench
from batchport.testing.desk import Desk

PATIENCE_S, LITTLE_PATIENCE_S = 30, 4
"""How long a case waits that must pass, and one that must fail: it may well do so by waiting in vain."""
AT_ONCE = 6
"""Adapters that are tried at the same time; most of them wait for nothing."""

GROUPS = [
    group for group in BackendConformance.__bases__ if any(hasattr(group, cases[0]) for cases in MUTANTS.values())
]


def run(kind: type[Mutant], case: str, folder: Path, patience_s: float) -> str:
    """Run one case on an adapter, without a pytest of its own; return "passed", or by what it failed.

    "failed" is said only of an assertion, or of a wait that was in vain; any other exception passes.
    """
    here = backend(kind, folder)
    with Desk(here.adapter(), patience_s) as desk:
        bench = Bench(here, desk, patience_s)
        try:
            getattr(BackendConformance(), case)(bench)
        except (AssertionError, pytest.fail.Exception):
            return "failed"
        finally:
            bench.end()
    return "passed"


def defects(mutant: type[Mutant], folder: Path) -> dict[str, str]:
    """Return what became of the cases named for a broken adapter, and of one that does not meet its defect."""
    outcomes = {case: run(mutant, case, folder / mutant.__name__, LITTLE_PATIENCE_S) for case in MUTANTS[mutant]}
    return outcomes | {mutant.control: run(mutant, mutant.control, folder / mutant.__name__, PATIENCE_S)}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_broken_adapters_fail_the_cases_that_are_about_their_defects(group: type, tmp_path: Path) -> None:
    mutants = [mutant for mutant, cases in MUTANTS.items() if hasattr(group, cases[0])]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        outcomes = dict(zip(mutants, threads.map(lambda mutant: defects(mutant, tmp_path), mutants), strict=True))
    assert outcomes == {
        mutant: dict.fromkeys(MUTANTS[mutant], "failed") | {mutant.control: "passed"} for mutant in mutants
    }


def test_the_cases_pass_on_an_adapter_that_is_not_broken(tmp_path: Path) -> None:
    cases = sorted({case for killing in MUTANTS.values() for case in killing} | {CONTROL})
    with ThreadPoolExecutor(AT_ONCE) as threads:
        outcomes = threads.map(lambda case: run(Mutant, case, tmp_path / case, PATIENCE_S), cases)
        assert dict(zip(cases, outcomes, strict=True)) == dict.fromkeys(cases, "passed")


def test_every_broken_adapter_has_its_turn() -> None:
    assert all(any(hasattr(group, cases[0]) for group in GROUPS) for cases in MUTANTS.values())
    assert len(MUTANTS) >= 25
