"""The Scaler list on the simulated AWS, whose jobs are processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from batchport_aws_batch.options import Options
from tests.examples.on_aws_batch import SettlesIn, led_to
from tests.hosts.scaler_list import MORE_THAN_ARE_RUN, ScalerList
from tests.lab import labs

from batchport.testing import Backend


@pytest.mark.timeout(240)
class TestOnAwsBatch(ScalerList):
    patience_s = 60.0
    worker_options: dict[str, Any] = {"poll_s": (0.5, 2)}  # noqa: RUF012 - a constant

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[Backend]:
        # A server of its own, or jobs of other tests would take the places that the list fills.
        with labs.own_aws(max_running=MORE_THAN_ARE_RUN - 2) as aws, led_to(aws.env):
            options = Options(queue=aws.settings.queue, definition=aws.settings.definition)
            yield Backend(lambda: SettlesIn(3, options), f"{aws.store}/scaler", sys.executable)
