"""What the tests of the shipped backends share: the rendered examples on the path, and the real systems."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.lab import labs
from tests.lab.listed import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]

EXAMPLES = Path(__file__).resolve().parents[2] / "generated_examples"
sys.path[:0] = [str(EXAMPLES / name / "src") for name in ("aws_batch", "slurm")]


@pytest.fixture(scope="session")
def slurm() -> Mapping[str, str]:
    """Return the environment of the standing cluster, which keeps accounts; its daemons are left alone."""
    return labs.slurm()


@pytest.fixture(scope="module")
def own_slurm() -> Iterator[Mapping[str, str]]:
    """Give a module a cluster of its own, to break."""
    with labs.own_slurm() as env:
        yield env
