"""The pages about AWS: their commands and scripts, on a simulated AWS whose jobs are processes.

AWS's own command line makes what the page makes. Not run are docker, and what is said to need an account.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_type_hints

import boto3
import pytest
from batchport_aws_batch.adapter import Adapter
from batchport_aws_batch.options import Options
from scaler.config.common.logging import LoggingConfig
from scaler.config.common.worker import WorkerConfig
from scaler.config.common.worker_manager import WorkerManagerConfig
from scaler.config.section.aws_hpc_worker_manager import AWSBatchWorkerManagerConfig
from tests.examples.on_aws_batch import EXAMPLE, led_to
from tests.examples.pages import ROOT, Block, Page, Reader
from tests.lab import labs

from batchport.store import open_store

pytestmark = pytest.mark.timeout(180)

PAGE, MOVING = Page("aws-batch.md"), Page("moving-from-scalers-aws-manager.md")
COMMAND_LINE = "uv tool run --quiet --from awscli==1.45.11 aws"
"""In an environment of its own: each release of it wants one release of botocore."""
SOURCE = EXAMPLE / "src" / "batchport_aws_batch"


@pytest.fixture(scope="module")
def account() -> Iterator[Mapping[str, str]]:
    """Run an AWS in which jobs find this Python by its name, and return the environment that leads to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        with labs.own_aws() as aws:
            usual = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            yield usual | aws.env


@pytest.fixture(scope="module")
def swaps(account: Mapping[str, str]) -> Mapping[str, str]:
    """Return what the page's account has, and this one has under other names; make what AWS's console makes."""
    ec2, iam = (_client(account, service) for service in ("ec2", "iam"))
    iam.create_instance_profile(InstanceProfileName="ecsInstanceRole")
    return {
        "aws iam": f"{COMMAND_LINE} iam",
        "aws batch": f"{COMMAND_LINE} batch",
        "aws s3 mb": f"{COMMAND_LINE} s3 mb",
        # AWS has a role of its own for that where none is given; moto wants one.
        '"type": "MANAGED",': f'"type": "MANAGED", "serviceRole": "{iam.get_role(RoleName="lab")["Role"]["Arn"]}",',
        "subnet-0123456789abcdef0": ec2.describe_subnets()["Subnets"][0]["SubnetId"],
        "sg-0123456789abcdef0": ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"],
    }


def _client(env: Mapping[str, str], service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture(scope="module")
def site(account: Mapping[str, str], swaps: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what the page says, with this checkout as batchport, and prepare the account as it says."""
    folder = tmp_path_factory.mktemp("install")
    reader = Reader(PAGE, folder, account, folder / "site", swaps=swaps)
    (install,) = PAGE.blocks("Install")
    first, *others = install.commands
    assert first == ("pip install 'batchport[cli] @ git+URL-OF-BATCHPORT'", "")
    for command, shown in others:
        reader.run(command, shown)
    for section in ("Prepare the account", "What the adapter may do"):
        reader.follow(section)
    return folder / "site"


@pytest.fixture
def reader(account: Mapping[str, str], swaps: Mapping[str, str], site: Path, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(PAGE, tmp_path, account, site, swaps=swaps)
    yield reader
    reader.stop()


@pytest.mark.parametrize("section", ["Look whether it will work", "Run functions", "When a call fails"])
def test_a_section_shows_what_a_reader_sees(reader: Reader, section: str) -> None:
    reader.follow(section)


def test_the_region_that_a_reader_exports_and_that_jobs_have_is_boto3s_and_the_stores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The variable has two names. https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html."""
    (exported,) = (each for each in PAGE.blocks("Credentials and region") if "REGION" in each.text)
    (of_reader,) = re.findall(r"^\$ export (\w+)=us-east-1$", exported.text, re.MULTILINE)
    (definition,) = (each for each in PAGE.blocks("Prepare the account") if each.title == "definition.json")
    (of_jobs,) = json.loads(definition.text)["containerProperties"]["environment"]
    monkeypatch.setenv("HOME", "/no/such/folder")
    for variable in (of_reader, of_jobs["name"]):
        with asked_regions() as (url, regions):
            keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "k"}
            with led_to({**keys, variable: "eu-west-1"}):
                Adapter(Options()).open("tests")
                open_store("s3://ann-jobs/batchport").get("nothing")
            assert regions == {"batch": "eu-west-1", "s3": "eu-west-1"}, variable


@contextmanager
def asked_regions() -> Iterator[tuple[str, dict[str, str]]]:
    """Run a server that has nothing; yield its address, and the region that each service's requests were signed for.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
    """
    regions: dict[str, str] = {}

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(404)

        def do_POST(self) -> None:
            self.answer(200)

        def answer(self, code: int) -> None:
            _, _, region, service, _ = self.headers["Authorization"].partition("Credential=")[2].split("/", 4)
            regions[service] = region
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", regions
        finally:
            server.shutdown()


def test_the_image_is_built_as_its_dockerfile_says() -> None:
    said = (EXAMPLE / "runner" / "Dockerfile").read_text("utf-8")
    of_dockerfile = re.findall(r"^#   (\S.*)$", said, re.MULTILINE)
    export, wheel, build = of_dockerfile
    build_block, _ = PAGE.blocks("Build the image")
    shown = [command for command, _ in build_block.commands]
    assert shown == [export, wheel.replace('"../.."', '"PATH-OR-URL-OF-BATCHPORT"'), build]


def test_the_policy_allows_what_the_adapter_calls_and_no_more() -> None:
    code = "".join((SOURCE / name).read_text("utf-8") for name in ("adapter.py", "check.py"))
    asked = re.findall(r'ask\(\s*"(batch|logs|sts)",\s*"(\w+)"', code)
    # There is no permission for the plural, and none is needed for the identity:
    # https://docs.aws.amazon.com/batch/latest/APIReference/API_TerminateJobs.html
    # https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    called = {f"{service}:{''.join(map(str.capitalize, name.split('_')))}" for service, name in asked}
    needed = {name.replace("TerminateJobs", "TerminateJob") for name in called} - {"sts:GetCallerIdentity"}
    assert allowed(block_called("client.json")) == needed


def test_the_command_that_verifies_an_account_gives_the_scaffolds_tests_what_they_read() -> None:
    command, _ = PAGE.blocks("Verify it on your account")[0].commands[0]
    tests = (EXAMPLE / "tests" / "conftest.py").read_text("utf-8")
    given = re.findall(r"BATCHPORT_AWS_(\w+)=", command)
    assert given == ["STORE", "QUEUE", "DEFINITION"]
    assert "BATCHPORT_AWS_STORE" in tests
    assert all(f'"{name.lower()}"' in tests for name in given)


def block_called(title: str) -> Block:
    (found,) = (each for each in PAGE.blocks("What the adapter may do") if each.title == title)
    return found


def allowed(policy: Block) -> set[str]:
    """Return the actions of a policy."""
    return {action for each in json.loads(policy.text)["Statement"] for action in each["Action"]}


def test_the_pages_say_that_it_was_never_run_on_aws() -> None:
    said = {"aws-batch.md": "Never run on AWS itself", "moving-from-scalers-aws-manager.md": "run on AWS itself"}
    assert all(words in Page(name).text for name, words in said.items())
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "never run on AWS itself" in readme
    assert "docs/aws-batch.md#verify-it-on-your-account" in readme


@pytest.fixture
def mover(account: Mapping[str, str], swaps: Mapping[str, str], site: Path, tmp_path: Path) -> Iterator[Reader]:
    """Return a reader of the other page, whose queue and bucket are Scaler's, with scheduler and storage running."""
    queue, bucket = "scaler-batch-queue", "scaler-batch-123456789012-us-east-1"
    batch = _client(account, "batch")
    if not batch.describe_job_queues(jobQueues=[queue])["jobQueues"]:
        order = [{"order": 1, "computeEnvironment": "batchport"}]
        batch.create_job_queue(jobQueueName=queue, state="ENABLED", priority=1, computeEnvironmentOrder=order)
        _client(account, "s3").create_bucket(Bucket=bucket)
    reader = Reader(MOVING, tmp_path, account, site, swaps=swaps)
    for command, _ in Page("scaler.md").blocks("Start it")[0].commands:
        reader.start(command)
    yield reader
    reader.stop()


def test_a_client_of_a_scaler_cluster_goes_on_unchanged_after_the_move(mover: Reader) -> None:
    mover.follow("After")
    mover.follow("A client, unchanged")


def test_the_workers_file_says_the_same_as_its_flags(mover: Reader) -> None:
    command, config = MOVING.blocks("After")
    mover.write(config)
    mover.start("batchport worker --config worker.toml", command.commands[0][1])
    mover.follow("A client, unchanged")


def test_every_flag_of_scalers_manager_has_a_line() -> None:
    named = set(re.findall(r"`(--[\w-]+)", MOVING.text))
    has = {f"--{name.replace('_', '-')}" for name in _fields(AWSBatchWorkerManagerConfig)}
    assert has - {"--scheduler-address"} <= named


def _fields(config: Any) -> Iterator[str]:
    """Yield the names of a configuration's flags; those about logging have a prefix of their own."""
    hints: dict[str, Any] = get_type_hints(config)
    for each in fields(config):
        kind = hints[each.name]
        if kind is LoggingConfig:
            yield from ("logging_paths", "logging_config_file", "logging_level")
        elif kind in (WorkerConfig, WorkerManagerConfig):
            yield from _fields(kind)
        else:
            yield each.name
