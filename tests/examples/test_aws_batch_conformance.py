"""The conformance suite through AWS Batch's API: on real containers, and on plain processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from batchport_aws_batch.options import Options
from tests.examples.on_aws_batch import SettlesIn, led_to, runner_image
from tests.lab import labs

from batchport import Resources
from batchport.testing import Backend, BackendConformance

REFUSED = Resources(extra={"jobDefinition": "there-is-no-such-definition"})


@pytest.mark.timeout(240)
class OnAwsBatch(BackendConformance):
    listed_as = "aws_batch"
    patience_s = 150  # a time limit is at least a minute


class TestOnProcesses(OnAwsBatch):
    """As in the scaffold's own tests, but on the standing server, which others use as well."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[Backend]:
        env = labs.aws()
        options = Options(queue=env["AWS_UP_QUEUE"], definition=env["AWS_UP_DEFINITION"])
        with led_to(env):
            store = f"s3://{env['AWS_UP_BUCKET']}/conformance"
            yield Backend(lambda: SettlesIn(3, options), store=store, python=sys.executable, refused=REFUSED)


class TestOnContainers(OnAwsBatch):
    """In the image that the scaffold's Dockerfile makes; jobs share no file with the tests."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
        with (
            runner_image(tmp_path_factory.mktemp("image")) as image,
            labs.own_aws(executor="docker", image=image) as aws,
            led_to(aws.env),
        ):
            options = Options(queue=aws.settings.queue, definition=aws.settings.definition)
            store = f"{aws.store}/conformance"
            yield Backend(lambda: SettlesIn(3, options), store=store, python="python", refused=REFUSED)
