"""All that is used of opengris-scaler is there: where upstream moves something, one of these tests names it."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.hosts.scaler_cluster import Client, Worker, free_address, running

from batchport.hosts import _scaler_link
from batchport.hosts._scaler_link import Link, SchedulerLostError

SEAM = Path(str(_scaler_link.__file__))
USED = [
    (str(node.module), each.name)
    for node in ast.walk(ast.parse(SEAM.read_text("utf-8")))
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("scaler.")
    for each in node.names
]


def moved(what: str) -> str:
    return (
        f"opengris-scaler {version('opengris-scaler')} has no {what}, which hosts/{SEAM.name} uses: "
        "find where it went, and mend that module alone"
    )


@pytest.mark.parametrize(("module", "name"), USED, ids=lambda value: value)
def test_upstream_has_what_is_imported_of_it(module: str, name: str) -> None:
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.fail(moved(f"module {module}"))
    assert hasattr(found, name), moved(f"{name} in {module}")


async def sent_by(link: Link, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what a heartbeat, an answer and a confirmation put on the wire, as whoever receives them reads it."""
    wire = importlib.import_module("scaler.io.utility")
    sent: list[Any] = []

    async def send(message: Any, *, detached: bool = False) -> None:
        sent.append(wire.deserialize(wire.serialize(message)))

    class Storage:
        async def wait_until_connected(self) -> None:
            pass

        async def set_object(self, object_id: bytes, data: bytes) -> None:
            pass

    monkeypatch.setattr(link, "_send", send)
    monkeypatch.setattr(link, "_storage", Storage(), raising=False)
    beat = asyncio.create_task(link.beat(lambda: 3))
    await asyncio.sleep(0)
    beat.cancel()
    offer = _scaler_link.Offer("ab" * 16, b"client", bytes(32), ())
    await link.answer(offer, b"result", ok=True)
    await link.confirm("ab" * 16, _scaler_link.Confirm.REFUSED)
    return sent


async def test_messages_have_the_fields_that_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link("tcp://127.0.0.1:1", "name", "place", 7, ["gpu"])

    heartbeat, instruction, result, confirm = await sent_by(link, monkeypatch)

    for message, fields in (
        (heartbeat, ("agent", "rssFree", "memLimit", "queueSize", "queuedTasks", "capabilities")),
        (instruction, ("instructionType", "objectUser", "objectMetadata")),
        (result, ("taskId", "resultType", "metadata", "results")),
        (confirm, ("taskId", "cancelConfirmType")),
    ):
        kind = type(message).__name__
        for field in fields:
            assert hasattr(message, field), moved(f"field {field} in its message {kind}")
    assert (heartbeat.queueSize, heartbeat.queuedTasks) == (7, 3)
    assert heartbeat.agent.rss > 1 << 20, "this process's own"
    assert [(each.name, each.value) for each in heartbeat.capabilities] == [("gpu", -1)]
    assert getattr(heartbeat, "latencyMicroseconds", None) is not None or heartbeat.latencyUS is not None


def test_a_client_announces_its_default_serializer_as_is_expected() -> None:
    default = inspect.signature(Client).parameters["serializer"].default

    announced = cloudpickle.dumps(default, pickle.HIGHEST_PROTOCOL)

    assert announced in _scaler_link.PLAIN_SERIALIZERS, moved("default serializer that is pickled like this")


@pytest.mark.parametrize(
    ("release", "found"), [("2.7.0", "2.7.0 is installed"), (None, "it is not installed")], ids=["other", "none"]
)
def test_an_upstream_that_lacks_something_is_named_with_what_to_install(
    tmp_path: Path, release: str | None, found: str
) -> None:
    (tmp_path / "scaler").mkdir()
    (tmp_path / "scaler" / "__init__.py").touch()
    answer = f"return {release!r}" if release else "raise metadata.PackageNotFoundError(name)"
    code = f"""if True:
        import sys
        from importlib import metadata
        def version(name):
            {answer}
        metadata.version = version
        sys.path.insert(0, {str(tmp_path)!r})
        import batchport.hosts.scaler
    """

    done = subprocess.run((sys.executable, "-c", code), check=False, capture_output=True, text=True)

    assert (
        f"ImportError: batchport.hosts.scaler needs opengris-scaler 2.8 or 2.9, and {found}: "
        "pip install 'batchport[scaler]' (No module named 'scaler.client')"
    ) in done.stderr


async def served(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return in what words a link ends that finds no scheduler at an address, or no object storage where it says."""
    monkeypatch.setattr(_scaler_link, "_UNREACHED_S", 0.5)
    link = Link(address, "name", "place", 1)

    async def serve() -> None:
        await link.open()
        beating = asyncio.create_task(link.beat(lambda: 0))
        receiving = asyncio.create_task(link.receive())
        done, _ = await asyncio.wait((beating, receiving), return_when=asyncio.FIRST_COMPLETED)
        receiving.cancel()
        await done.pop()

    with pytest.raises(SchedulerLostError) as lost:
        await serve()
    await link.leave()
    return str(lost.value)


LIVE_ON = "Jobs that run live on: start the worker again under its name once it is there"


async def test_an_address_where_nothing_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    address = free_address()
    assert re.fullmatch(
        rf"the Scaler scheduler at {address} cannot be reached: Connection refused, for \d s\. {LIVE_ON}",
        await served(address, monkeypatch),
    )


async def test_a_host_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = await served("tcp://no-such-host.invalid:6378", monkeypatch)
    assert words.startswith("the Scaler scheduler at tcp://no-such-host.invalid:6378 cannot be reached: ")
    assert "Errno" not in words


async def test_a_server_that_is_no_scheduler_is_told_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://localhost:{server.getsockname()[1]}"
        words = await served(address, monkeypatch)
    assert re.fullmatch(
        rf"the Scaler scheduler at {address} cannot be reached: what listens there has not answered for \d s, "
        rf"so it may be something else\. {LIVE_ON}",
        words,
    )


@contextmanager
def scheduler_whose_storage_is_said_to_be_at(told: Callable[[str], str], logs: Path) -> Iterator[tuple[str, str]]:
    storage, scheduler = free_address(), free_address()
    options = ("--object-storage-address", storage, "--advertised-object-storage-address", told(storage))
    with (
        running("scaler_object_storage_server", storage, log=logs / "storage"),
        running("scaler_scheduler", scheduler, *options, "--monitor-address", free_address(), log=logs / "scheduler"),
    ):
        yield scheduler, storage


async def test_an_object_storage_that_cannot_be_reached_from_here_is_named_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = free_address()
    with scheduler_whose_storage_is_said_to_be_at(lambda _: nobody, tmp_path) as (scheduler, _):
        words = await served(scheduler, monkeypatch)
    assert re.fullmatch(
        rf"the object storage of the Scaler scheduler at {scheduler} cannot be reached: "
        rf"Connection refused at {nobody}, for \d s\. {LIVE_ON}",
        words,
    )


def test_an_object_storage_that_is_named_by_its_host_is_reached(tmp_path: Path) -> None:
    by_name = scheduler_whose_storage_is_said_to_be_at(lambda it: it.replace("127.0.0.1", "localhost"), tmp_path)
    with by_name as (scheduler, storage), Client(scheduler, object_storage_address=storage) as client:
        worker = Worker(scheduler, tmp_path)
        assert client.submit(abs, -1).result(30) == 1
        worker.stop()
