"""Run batchport's conformance suite on this adapter, on a real AWS Batch if one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from batchport import Resources
from batchport.testing import Backend, BackendConformance

from batchport_aws_batch.adapter import Adapter
from batchport_aws_batch.options import Options


class QuickAdapter(Adapter):
    """The same, but a job that is missing is believed to be gone sooner than AWS would allow."""

    limits = replace(Adapter.limits, settle_s=3)


@pytest.mark.timeout(1200)  # where an instance must boot first
class TestConformance(BackendConformance):
    """What every backend must do. The summary says why a case was not run."""

    patience_s = 600  # a time limit is at least a minute, and an instance may take some to boot

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, aws: Mapping[str, str]) -> Backend:
        """Return the backend to test; marks of jobs go to the store."""
        return Backend(
            adapter=lambda: QuickAdapter(Options(queue=aws["queue"], definition=aws["definition"])),
            store=aws["store"],
            python=aws["python"],
            refused=Resources(extra={"jobDefinition": "batchport-has-no-such-definition"}),
        )
