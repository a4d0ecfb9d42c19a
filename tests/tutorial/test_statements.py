"""The counter of the budget counts what the budget's rule says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.statements import statements

PACKAGE = {
    "adapter.py": '''
"""Docstrings are free."""

import os
from batchport import JobState, Reason

STATES = {"R": JobState.RUNNING}
REASONS: dict[int, Reason] = {9: Reason.OUT_OF_MEMORY}
FLAGS = {"cpus": "-c"}


class Adapter:
    """Free."""

    limits = 1

    def poll_jobs(self, job_ids):
        """Free."""
        import json

        if job_ids:
            return [os, json]
        return FLAGS
''',
    "options.py": '''
class Options:
    """Free."""

    queue: str = "long"
    """Free or not, this is what documents a field."""
''',
    "check.py": "lines = 1\n",
}


@pytest.fixture
def scaffold(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / "src/package").mkdir(parents=True, exist_ok=True)
        (tmp_path / "src/package" / name).write_text(text, encoding="utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_it.py").write_text("def test_it(): pass\n", encoding="utf-8")
    return tmp_path


def test_only_what_the_rule_names_is_free(scaffold: Path) -> None:
    # FLAGS, class Adapter, limits, poll_jobs, if, two returns; class Options
    assert statements(scaffold) == 8


def test_a_folder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no scaffold: there is no Python in its folder src"):
        statements(tmp_path)
