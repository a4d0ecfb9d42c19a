"""Each promise's own test notices when the promise is broken: one planted fault at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.mutants.promises import FAULTS, Fault

_ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS, ids=[f"promise {each.promise}: {each.what}" for each in FAULTS])
def test_a_broken_promise_is_noticed_by_its_own_test(fault: Fault, tmp_path: Path) -> None:
    package = tmp_path / "core" / "batchport"
    shutil.copytree(_ROOT / "core" / "batchport", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / fault.file
    text = file.read_text(encoding="utf-8")
    assert text.count(fault.old) == 1, f"the fault does not fit {fault.file} any more: {fault.old!r}"
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")

    tests = list((_ROOT / "tests" / "promises").glob(f"test_promise_{fault.promise:02d}_*.py"))
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", *map(str, tests), "-k", fault.test, "-x", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "80", f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)

    assert run.returncode == 1, f"nobody noticed: {fault.what}\n{run.stdout[-3000:]}"
    failures = [each.get("message", "") for each in ET.parse(report).iter("failure")]
    assert failures, run.stdout[-3000:]
    assert failures[0].startswith(("AssertionError", "assert")), f"noticed, but not by an assertion: {failures[0]}"


def test_every_promise_that_holds_has_a_planted_fault() -> None:
    assert {fault.promise for fault in FAULTS} == {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13}
