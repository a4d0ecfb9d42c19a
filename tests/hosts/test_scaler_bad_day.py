"""A Scaler cluster on a bad day: our worker is killed or told to end, its scheduler or object storage goes away."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cloudpickle
import pytest
from tests.hosts.scaler_cluster import NAME, Client, Worker, free_address, hold, new_scheduler, running

from batchport.backends.local import LocalAdapter, Options
from batchport.hosts import scaler as hosts
from batchport.hosts._scaler_link import Link
from batchport.hosts.scaler import SchedulerLostError
from batchport.store import Keys, open_store

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Eventually = Callable[..., None]


def mark(folder: str, number: int, seconds: float) -> int:
    """Leave a line in a file of its own, and take some time."""
    with Path(folder, f"ran-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return number


def runs(folder: Path) -> dict[str, int]:
    return {each.name: len(each.read_text().splitlines()) for each in folder.glob("ran-*")}


SERVE = """
import asyncio, sys
from batchport.backends.local import LocalAdapter, Options
from batchport.hosts.scaler import ScalerWorker
scheduler, folder, name = sys.argv[1:]
adapter = LocalAdapter(Options(folder=folder + "/jobs", slots=4))
quick = {"poll_s": (0.1, 1), "results_s": 0.05, "grace_s": 2}
asyncio.run(ScalerWorker(scheduler, adapter, folder + "/store", name, max_jobs=8, **quick).run())
"""


@contextmanager
def process(scheduler: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker in a process of its own, which is killed at the end."""
    with subprocess.Popen((sys.executable, "-c", SERVE, scheduler, str(folder), NAME)) as worker:
        try:
            yield worker
        finally:
            worker.kill()


@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_under_load_loses_nothing_and_runs_nothing_twice(
    tmp_path: Path, eventually: Eventually
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    random_s = random.Random(seed).uniform
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        futures = [client.submit(mark, str(tmp_path), number, 0.05) for number in range(100)]
        done = 0
        for _ in range(5):
            with process(scheduler, tmp_path) as worker:
                eventually(lambda: len(runs(tmp_path)) > done, seconds=30)  # noqa: B023 - called at once
                time.sleep(random_s(0, 0.7))  # at any instant of what it does under load
                assert worker.poll() is None
            done = len(runs(tmp_path))
        assert done < 100, "it was under load each time"
        with process(scheduler, tmp_path):
            assert [future.result(60) for future in futures] == list(range(100))

    assert set(runs(tmp_path).values()) == {1}
    assert len(runs(tmp_path)) == 100


def one_at_a_time(folder: Path) -> LocalAdapter:
    """Return an adapter whose backend takes one job, so that all other tasks wait in the worker."""
    return LocalAdapter(Options(folder=str(folder / "jobs"), slots=1, queue_limit=1))


def test_a_worker_that_drains_ends_what_runs_and_gives_back_what_waits(tmp_path: Path, eventually: Eventually) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        leaving = Worker(scheduler, tmp_path, one_at_a_time(tmp_path))
        futures = [client.submit(hold, str(tmp_path), number) for number in range(6)]
        eventually(lambda: runs(tmp_path))
        leaving.drain()
        staying = Worker(scheduler, tmp_path / "staying", name="staying")
        assert not leaving.ended.done()

        (tmp_path / "go").touch()

        assert [future.result(30) for future in futures] == list(range(6))
        leaving.ended.result(30)
        assert leaving.host.counts.done < 6 == leaving.host.counts.done + staying.host.counts.done
        leaving.stop()
        staying.stop()
    assert list(runs(tmp_path).values()) == [1] * 6


def test_a_worker_that_drains_brings_the_result_of_an_adopted_job_whose_task_it_is_just_taking(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        worker = Worker(scheduler, tmp_path)
        future = client.submit(hold, str(tmp_path), 1)
        eventually(lambda: runs(tmp_path))
        worker.stop()
        asked, may_come, get = threading.Event(), threading.Event(), Link.get

        async def get_late(link: Link, object_id: bytes) -> bytes:
            asked.set()
            await asyncio.to_thread(may_come.wait)
            return await get(link, object_id)

        monkeypatch.setattr(Link, "get", get_late)
        again = Worker(scheduler, tmp_path)
        assert asked.wait(20)

        again.drain()
        with pytest.raises(TimeoutError):
            again.ended.result(1)
        may_come.set()
        (tmp_path / "go").touch()

        assert future.result(30) == 1
        again.ended.result(30)
        again.stop()
    assert runs(tmp_path) == {"ran-1": 1}


def test_what_waits_is_given_to_an_idle_worker_and_what_runs_stays(tmp_path: Path, eventually: Eventually) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        busy = Worker(scheduler, tmp_path, one_at_a_time(tmp_path))
        futures = [client.submit(hold, str(tmp_path), number) for number in range(4)]
        eventually(lambda: runs(tmp_path))
        idle = Worker(scheduler, tmp_path / "idle", name="idle")

        eventually(lambda: len(runs(tmp_path)) > 1)  # though the busy one has no place for it

        (tmp_path / "go").touch()
        assert [future.result(30) for future in futures] == list(range(4))
        assert busy.host.counts.done + idle.host.counts.done == 4
        busy.stop()
        idle.stop()
    assert list(runs(tmp_path).values()) == [1] * 4


def test_a_cancel_is_confirmed_in_every_state_and_costs_no_place(tmp_path: Path, eventually: Eventually) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        worker = Worker(scheduler, tmp_path, one_at_a_time(tmp_path))
        futures = [client.submit(hold, str(tmp_path), number) for number in range(10)]
        eventually(lambda: runs(tmp_path))
        # One runs, three wait in the worker, and the scheduler has the others.
        for future in futures:
            assert future.cancel()
            assert future.cancelled()
        (tmp_path / "go").touch()

        assert client.map(mark, [str(tmp_path)] * 8, range(20, 28), [0] * 8) == list(range(20, 28))

        eventually(lambda: worker.host.counts.sent == worker.host.counts.waiting == 0)
        worker.stop()
    assert len(runs(tmp_path)) == 9


def test_what_waited_in_the_store_is_gone_from_it_when_its_tasks_are_done(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchport.hosts._waiting._IN_MEMORY", 0)
    monkeypatch.setattr("batchport.hosts._waiting._SEGMENT", 50_000)
    monkeypatch.setattr("batchport.hosts.scaler._TIDY_S", 0.1)
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        worker = Worker(scheduler, tmp_path, one_at_a_time(tmp_path))
        store, segments = open_store(worker.store), Keys(NAME).segments
        futures = [client.submit(hold, str(tmp_path), number, os.urandom(60_000)) for number in range(3)]
        eventually(lambda: runs(tmp_path) and len(store.names(segments)) > 1)

        (tmp_path / "go").touch()

        assert [future.result(30) for future in futures] == [60_000, 60_001, 60_002]
        eventually(lambda: not store.names(segments))
        worker.stop()


def test_tasks_that_ask_for_a_capability_go_to_the_worker_that_has_it(tmp_path: Path) -> None:
    by_capability = ("--policy-content", "allocate=capability; scaling=no")
    with new_scheduler(tmp_path, *by_capability) as scheduler, Client(scheduler) as client:
        plain = Worker(scheduler, tmp_path / "plain", name="plain")
        gifted = Worker(scheduler, tmp_path / "gifted", name="gifted", capabilities=["gpu"])

        futures = [
            client.submit_verbose(mark, (str(tmp_path), number, 0), {}, capabilities={"gpu": -1}) for number in range(8)
        ]

        assert [future.result(30) for future in futures] == list(range(8))
        assert (plain.host.counts.done, gifted.host.counts.done) == (0, 8)
        plain.stop()
        gifted.stop()


LIVE_ON = "Jobs that run live on: start the worker again under its name once it is there"


def test_a_scheduler_that_is_restarted_is_named_and_gets_no_result_of_its_predecessors_tasks(
    tmp_path: Path, eventually: Eventually
) -> None:
    storage, scheduler = free_address(), free_address()
    options = ("--object-storage-address", storage, "--monitor-address", free_address())
    with running("scaler_object_storage_server", storage, log=tmp_path / "storage"):
        with running("scaler_scheduler", scheduler, *options, log=tmp_path / "first"):
            worker, client = Worker(scheduler, tmp_path), Client(scheduler)
            client.submit(hold, str(tmp_path), 1)
            eventually(lambda: runs(tmp_path))
        with running("scaler_scheduler", scheduler, *options, log=tmp_path / "second"):
            with pytest.raises(SchedulerLostError) as lost:
                worker.ended.result(30)
            words = str(lost.value)
            assert words.startswith(f"the Scaler scheduler at {scheduler} cannot be reached: ")
            assert words.endswith(LIVE_ON)
            worker.stop()
            again = Worker(scheduler, tmp_path)
            (tmp_path / "go").touch()
            with Client(scheduler) as other:
                assert other.submit(mark, str(tmp_path), 2, 0).result(30) == 2
            again.stop()
        assert "ERROR" not in (tmp_path / "second").read_text()
        client.disconnect()


def test_jobs_that_a_new_scheduler_does_not_know_are_cancelled_after_a_day(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        worker = Worker(scheduler, tmp_path)
        client.submit(hold, str(tmp_path), 1)
        eventually(lambda: runs(tmp_path))
        worker.stop()
    monkeypatch.setattr(hosts, "_UNCLAIMED_S", 0.5)
    with new_scheduler(tmp_path) as scheduler, Client(scheduler) as client:
        again = Worker(scheduler, tmp_path)

        told = "1 tasks of an earlier start were not offered again in 0 hours, and their jobs are cancelled"
        eventually(lambda: told in caplog.text)
        eventually(lambda: not open_store(again.store).names(Keys(NAME).manifests))
        assert client.submit(mark, str(tmp_path), 2, 0).result(30) == 2
        again.stop()


# The client's own thread ends by the lost connection as well.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_object_storage_that_is_restarted_is_named(tmp_path: Path, eventually: Eventually) -> None:
    storage, scheduler = free_address(), free_address()
    options = ("--object-storage-address", storage, "--monitor-address", free_address())
    with ExitStack() as servers:
        with running("scaler_object_storage_server", storage, log=tmp_path / "storage"):
            servers.enter_context(running("scaler_scheduler", scheduler, *options, log=tmp_path / "scheduler"))
            worker, client = Worker(scheduler, tmp_path), Client(scheduler)
            client.submit(hold, str(tmp_path), 1)
            eventually(lambda: runs(tmp_path))
        servers.enter_context(running("scaler_object_storage_server", storage, log=tmp_path / "another"))
        with pytest.raises(SchedulerLostError) as lost:
            worker.ended.result(30)
        assert str(lost.value) == (
            f"the object storage of the Scaler scheduler at {scheduler} cannot be reached: "
            f"connection failure to object storage server. {LIVE_ON}"
        )
        worker.stop()
        (tmp_path / "go").touch()
