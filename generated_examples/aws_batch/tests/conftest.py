"""A real AWS Batch for the tests where one is named, else batchport's simulator; the end of the run says which."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

import pytest
from batchport.testing.aws import AwsSimulator

IS_REAL = "BATCHPORT_AWS_STORE" in os.environ


@pytest.fixture(scope="session")
def aws() -> Iterator[Mapping[str, str]]:
    """Return what there is to test on: a store that jobs can reach, a queue, a definition, and its image's Python."""
    if IS_REAL:
        usual = {"queue": "batchport", "definition": "batchport", "python": "python"}
        yield {name: os.environ.get(f"BATCHPORT_AWS_{name.upper()}", usual.get(name, "")) for name in ("store", *usual)}
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith("AWS_")]:
            patch.delenv(name)  # a profile, say: nothing here may lead to a real account
        with AwsSimulator() as simulator:
            for name, value in simulator.env.items():
                patch.setenv(name, value)
            settings = simulator.settings
            yield {
                "store": simulator.store,
                "queue": settings.queue,
                "definition": settings.definition,
                "python": sys.executable,
            }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which it was."""
    ran_on = "the AWS account that boto3 finds" if IS_REAL else "batchport's simulator: BATCHPORT_AWS_STORE is not set"
    terminalreporter.write_line(f"aws_batch: ran on {ran_on}")
