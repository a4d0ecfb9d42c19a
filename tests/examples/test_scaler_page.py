"""The page "your Scaler cluster on Slurm": its commands and scripts, on a real scheduler and the real Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
from tests.examples.on_slurm import Env, said, until
from tests.examples.pages import Page, Reader

pytestmark = pytest.mark.timeout(180)

PAGE = Page("scaler.md")
SERVERS, WORKER = PAGE.blocks("Start it")
NODE = {"on n1": r"on\ n\d"}


@pytest.fixture(scope="module")
def site(slurm: Env, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what the page says, with this checkout as batchport, and look at it by `batchport doctor`."""
    folder = tmp_path_factory.mktemp("install")
    reader = Reader(PAGE, folder, slurm, folder / "site")
    first = "pip install 'batchport[scaler,cli] @ git+URL-OF-BATCHPORT'"
    for block in PAGE.blocks("Install"):
        assert block.commands[0] == (first, "")
        for command, shown in block.commands[1:]:
            reader.run(command, shown)
    return folder / "site"


@pytest.fixture
def reader(slurm: Env, site: Path, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(PAGE, tmp_path, slurm, site, varying=NODE)
    yield reader
    reader.stop()


def jobs(env: Env) -> list[str]:
    """Return the states of a Scaler worker's jobs that are not over."""
    listed = (line.split() for line in said(env, "squeue", "--me", "-h", "-r", "-o", "%j %T").splitlines())
    return [state for name, state in listed if name.startswith("scaler-")]


def test_a_client_gets_results_failures_and_cancels_as_the_page_says(reader: Reader) -> None:
    reader.follow("Start it")
    for section in ("Run a client", "When a task fails", "Cancel"):
        reader.follow(section)
    until("the cancelled jobs to end", lambda: not jobs(reader.env))


def test_a_worker_that_is_killed_and_started_again_has_its_jobs_again(reader: Reader) -> None:
    *_, worker = reader.follow("Start it")
    script, run, words = PAGE.blocks("Stop the worker, and start it again")
    reader.write(script)
    ((command, shown),) = run.commands
    client = reader.start(command)
    until("the jobs to run", lambda: jobs(reader.env).count("RUNNING") == 4)

    worker.kill()
    worker.wait()
    ((again, _),) = WORKER.commands
    reader.start(again, words.text)

    assert client.wait(60) == 0
    assert reader.pattern(shown).fullmatch(reader.printed(client))
    assert len(list((reader.shared / "logs").iterdir())) == 4, "each job has a log, and no task ran in two"


def test_the_service_serves_and_ends_in_words_when_the_scheduler_is_gone(reader: Reader) -> None:
    config, unit, words = PAGE.blocks("As a service")
    _, scheduler = (reader.start(command) for command, _ in SERVERS.commands)
    reader.write(config)
    service = ConfigParser(interpolation=None)
    service.read_string(unit.text)
    worker = reader.start(service["Service"]["ExecStart"], WORKER.commands[0][1])
    reader.follow("Run a client")

    scheduler.terminate()

    assert worker.wait(30) == 1
    assert reader.pattern(words.text).search(reader.printed(worker))


def test_clients_choose_between_backends_by_capabilities(reader: Reader) -> None:
    (storage, _), _ = SERVERS.commands
    reader.start(storage)
    reader.follow("Several backends")
