"""A Scaler cluster whose worker is ours: a real client, scheduler and object storage, and jobs of LocalAdapter's.

What must be so on every backend is in scaler_list.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.hosts.scaler_cluster import NAME, Client, Serializer, Worker, hold, new_scheduler

from batchport.backends.local import LocalAdapter, Options
from batchport.errors import UsageError
from batchport.hosts.scaler import ScalerWorker, SchedulerLostError
from batchport.store import Keys, open_store

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Eventually = Callable[..., None]


class Broken(Exception):  # noqa: N818 - a user's own
    pass


class Reversing(Serializer):  # type: ignore[misc] # scaler ships no types
    """A user's own serializer."""

    @staticmethod
    def serialize(obj: Any) -> bytes:
        return bytes(reversed(cloudpickle.dumps(obj)))

    @staticmethod
    def deserialize(payload: bytes) -> Any:
        return cloudpickle.loads(bytes(reversed(payload)))


def square(number: int) -> int:
    return number * number


def raise_broken() -> None:
    raise Broken("words of the function's own")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests that need no other worker, and none less."""
    with new_scheduler(tmp_path_factory.mktemp("logs")) as scheduler:
        yield scheduler


@pytest.fixture(scope="module")
def worker(scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(scheduler, tmp_path_factory.mktemp("worker"))
    yield worker
    worker.stop()
    worker.ended.result()


@pytest.fixture
def client(scheduler: str, worker: Worker) -> Iterator[Client]:
    with Client(scheduler) as client:
        yield client


def test_the_worker_of_the_page_on_running_serves_a_client(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text("utf-8")
    (script,) = re.findall(r"```python\n([^`]*hosts\.scaler[^`]*)```", page)
    with new_scheduler(tmp_path) as scheduler:
        assert "tcp://127.0.0.1:6378" in script
        command = (sys.executable, "-c", script.replace("tcp://127.0.0.1:6378", scheduler))
        with subprocess.Popen(command, cwd=tmp_path) as worker:
            client = Client(scheduler)
            assert client.map(square, range(5)) == [0, 1, 4, 9, 16]
            client.shutdown()
            assert worker.wait(20) == 0


def test_a_short_tasks_result_comes_while_a_long_one_runs(
    client: Client, tmp_path: Path, eventually: Eventually
) -> None:
    long = client.submit(hold, str(tmp_path), 1)
    eventually((tmp_path / "ran-1").exists)

    assert client.submit(square, 3).result() == 9

    assert not long.done()
    (tmp_path / "go").touch()
    assert long.result() == 1


def test_an_argument_that_tasks_share_is_stored_once(
    client: Client, worker: Worker, tmp_path: Path, eventually: Eventually
) -> None:
    data = os.urandom(100_000)
    futures = [client.submit(hold, str(tmp_path), number, data) for number in range(2)]
    eventually(lambda: all((tmp_path / f"ran-{number}").exists() for number in range(2)))

    store, keys = open_store(worker.store), Keys(NAME)
    sizes = [len(store.get(keys.blob(name)) or b"") for name in store.names(keys.blobs)]
    assert len([size for size in sizes if size > 50_000]) == 1, "the function may be there besides"

    (tmp_path / "go").touch()
    assert [future.result() for future in futures] == [100_000, 100_001]
    eventually(lambda: not open_store(worker.store).names(Keys(NAME).blobs))


def test_a_clients_own_serializer_reads_and_writes_in_the_job(scheduler: str, worker: Worker) -> None:
    with Client(scheduler, serializer=Reversing()) as client:
        assert client.map(square, range(3)) == [0, 1, 4]
        with pytest.raises(Broken):
            client.submit(raise_broken).result()


def test_a_worker_that_is_started_again_has_its_tasks_again_and_runs_none_twice(
    tmp_path: Path, eventually: Eventually
) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        worker = Worker(scheduler, tmp_path)
        futures = [client.submit(hold, str(tmp_path), number) for number in (1, 2)]
        marks = [tmp_path / "ran-1", tmp_path / "ran-2"]
        eventually(lambda: all(mark.exists() and mark.read_text() for mark in marks))
        worker.stop()
        again = Worker(scheduler, tmp_path)
        (tmp_path / "go").touch()

        assert [future.result() for future in futures] == [1, 2]

        again.stop()
    assert [len(mark.read_text().splitlines()) for mark in marks] == [1, 1]


def test_a_result_that_was_there_before_its_task_is_offered_again_is_not_lost(
    tmp_path: Path, eventually: Eventually
) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        worker = Worker(scheduler, tmp_path)
        future = client.submit(hold, str(tmp_path), 1)
        eventually((tmp_path / "ran-1").exists)
        worker.stop()
        (tmp_path / "go").touch()
        eventually(lambda: any(name.endswith("result") for name in open_store(worker.store).names(Keys(NAME).out)))

        again = Worker(scheduler, tmp_path)

        assert future.result() == 1
        again.stop()
    assert len((tmp_path / "ran-1").read_text().splitlines()) == 1


def test_a_task_that_the_scheduler_wants_back_for_an_idle_worker_stays_and_runs_once(
    tmp_path: Path, eventually: Eventually
) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        busy = Worker(scheduler, tmp_path)
        futures = [client.submit(hold, str(tmp_path), number) for number in range(3)]
        eventually(lambda: all((tmp_path / f"ran-{number}").exists() for number in range(3)))

        idle = Worker(scheduler, tmp_path / "idle")
        eventually(lambda: "balancing task" in (tmp_path / "scheduler").read_text())
        (tmp_path / "go").touch()

        assert [future.result() for future in futures] == [0, 1, 2]
        busy.stop()
        idle.stop()
    assert [len((tmp_path / f"ran-{number}").read_text().splitlines()) for number in range(3)] == [1, 1, 1]


def test_a_client_that_shuts_down_the_cluster_ends_the_worker_and_its_jobs(
    tmp_path: Path, eventually: Eventually
) -> None:
    with new_scheduler(tmp_path) as scheduler:
        worker, client = Worker(scheduler, tmp_path), Client(scheduler)
        client.submit(hold, str(tmp_path), 1)
        mark = tmp_path / "ran-1"
        eventually(lambda: mark.exists() and mark.read_text())

        client.shutdown()

        worker.ended.result()
        worker.stop()
        assert is_gone(int(mark.read_text()))


def test_a_scheduler_that_goes_away_is_named(tmp_path: Path) -> None:
    with new_scheduler(tmp_path) as scheduler:
        worker = Worker(scheduler, tmp_path)
        with Client(scheduler) as client:
            assert client.submit(square, 2).result() == 4

    with pytest.raises(SchedulerLostError, match=f"^the Scaler scheduler at {scheduler} cannot be reached: .*live on"):
        worker.ended.result()
    worker.stop()


def test_an_address_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    adapter = LocalAdapter(Options(folder=str(tmp_path)))
    with pytest.raises(
        UsageError, match=r"^scheduler='localhost' is no address; write it like tcp://10\.0\.0\.1:6378$"
    ):
        ScalerWorker("localhost", adapter, str(tmp_path), NAME)
