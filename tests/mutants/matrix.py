"""Print which conformance cases each broken adapter fails: `python -m tests.mutants.matrix [MUTANT...]`.

Called by people and by `nox -s long`. Each broken adapter gets a full run of the suite in a pytest of its own.
Exits 1 if one passes a case that is about it, or fails its control. The table of all is also written to
docs/mutants.md, below that page's own words.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.adapters import MUTANTS, Mutant

from batchport.testing import BackendConformance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mutants.md"
AT_ONCE = 6
"""Runs at the same time; each of them mostly waits."""

SUITE = """
import pytest
from batchport.testing import Backend, BackendConformance
from tests.mutants import adapters

class TestConformance(BackendConformance):
    patience_s = 8

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Backend:
        return adapters.backend(adapters.{mutant}, tmp_path_factory.mktemp("mutant"))
"""


def failed(mutant: type[Mutant]) -> set[str]:
    """Run the whole suite on a broken adapter, and return the cases that it does not pass."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite, report = folder / "test_mutant.py", folder / "report.xml"
        suite.write_text(SUITE.format(mutant=mutant.__name__), encoding="utf-8")
        argv = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}"]
        argv += ["-p", "batchport.testing.plugin", "-p", "pytest_timeout", "--timeout=60", "-q", f"--junitxml={report}"]
        env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        ended = subprocess.run([*argv, suite], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError(
                f"the suite ended with {ended.returncode} on {mutant.__name__}:\n{ended.stdout}{ended.stderr}"
            )
        cases = list(ET.parse(report).iter("testcase"))
    bad = {case.attrib["name"] for case in cases if {each.tag for each in case} & {"failure", "error"}}
    print(f"{mutant.__name__}: {len(bad)} of {len(cases)}", file=sys.stderr, flush=True)
    return bad


def table(matrix: Mapping[type[Mutant], set[str]]) -> str:
    """Return the matrix as Markdown: a row a broken adapter; the cases that are about it are in bold."""
    rows = ["| broken adapter | its defect | cases that fail |", "|---|---|---|"]
    for mutant, bad in matrix.items():
        about = [f"**{case}**" if case in bad else f"~~{case}~~" for case in MUTANTS[mutant]]
        words = [_words(case) for case in (*about, *sorted(bad - {*MUTANTS[mutant]}))]
        rows.append(f"| {mutant.__name__} | {(mutant.__doc__ or '').strip()} | {', '.join(words)} |")
    return "\n".join(rows)


def _words(case: str) -> str:
    return re.sub(r"test_", "", case).replace("_", " ")


def main(*names: str) -> int:
    """Print the matrix, and what is wrong with it; return the exit code."""
    mutants = [mutant for mutant in MUTANTS if not names or mutant.__name__ in names]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        matrix = dict(zip(mutants, threads.map(failed, mutants), strict=True))
    cases = {name for name in dir(BackendConformance) if name.startswith("test_")}
    idle = ", ".join(map(_words, sorted(cases.difference(*matrix.values())))) or "none"
    shown = (
        f"{table(matrix)}\n\n{len(matrix)} broken adapters, {len(cases)} cases. "
        f"Cases that fail on none of them: {idle}.\n"
    )
    print(shown)
    if not names:
        words = PAGE.read_text(encoding="utf-8").partition("\n| ")[0]
        PAGE.write_text(f"{words}\n{shown}", encoding="utf-8")
    wrong = [
        f"{mutant.__name__} {what}: {', '.join(sorted(which))}"
        for mutant, bad in matrix.items()
        for what, which in (("passes", {*MUTANTS[mutant]} - bad), ("fails its control", {mutant.control} & bad))
        if which
    ]
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
