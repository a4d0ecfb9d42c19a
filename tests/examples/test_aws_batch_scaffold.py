"""A package from the aws_batch starter tests itself: in the account that is named, else on the simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.examples.on_aws_batch import EXAMPLE
from tests.lab import labs


def run_its_tests(env: Mapping[str, str], folder: Path, *words: str) -> tuple[int, str]:
    pytest_here = (sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:xdist", "-p", "no:cacheprovider")
    argv = (*pytest_here, f"--basetemp={folder}", *words)
    done = subprocess.run(argv, cwd=EXAMPLE, env=env, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


def without_aws() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BATCHPORT_", "DOCKER_"))}


@pytest.mark.timeout(600)  # every case, and a time limit is at least a minute
def test_with_neither_engine_nor_account_it_passes_on_the_simulator_and_says_so(tmp_path: Path) -> None:
    env = without_aws() | {"AWS_PROFILE": "there-is-none"}
    code, said = run_its_tests(env, tmp_path / "folder")
    assert code == 0, said[-3000:]
    assert "aws_batch: ran on batchport's simulator: BATCHPORT_AWS_STORE is not set" in said
    assert "skipped" not in said.splitlines()[-1]


@pytest.mark.timeout(150)
def test_where_a_store_is_named_it_runs_in_the_account_that_boto3_finds_and_says_so(tmp_path: Path) -> None:
    lab = labs.aws()
    account = {name: lab[name] for name in lab if name.startswith("AWS_") and not name.startswith("AWS_UP_")}
    named = {
        "BATCHPORT_AWS_STORE": f"s3://{lab['AWS_UP_BUCKET']}/scaffold",
        "BATCHPORT_AWS_QUEUE": lab["AWS_UP_QUEUE"],
        "BATCHPORT_AWS_DEFINITION": lab["AWS_UP_DEFINITION"],
        "BATCHPORT_AWS_PYTHON": sys.executable,
    }
    code, said = run_its_tests(without_aws() | account | named, tmp_path / "folder", "-k", "exit_code or words")
    assert code == 0, said[-3000:]
    assert "aws_batch: ran on the AWS account that boto3 finds" in said
