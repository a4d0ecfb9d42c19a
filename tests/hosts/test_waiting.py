"""Promise 13: calls that wait cost a few hundred bytes, and their arguments wait in the store."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

import cloudpickle
import pytest

from batchport import BatchExecutor, StoreError
from batchport.hosts import _waiting
from batchport.hosts._waiting import WaitingBytes
from batchport.store import FolderStore, Keys

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., BatchExecutor]


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "_IN_MEMORY", 100_000)
    monkeypatch.setattr(_waiting, "_SEGMENT", 50_000)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def segments(store: FolderStore) -> list[str]:
    return store.names(Keys("w").segments)


async def test_bytes_come_back_wherever_they_wait(store: FolderStore) -> None:
    waiting = WaitingBytes(store, "w")
    sizes = [1, 40_000, 0, 70_000, 59_000, 45_000, 3, 200_000, 10_000, 5]
    data = [os.urandom(size) for size in sizes]
    kept = [waiting.keep(each, len(each)) for each in data]
    assert len(segments(store)) == 3, "two large ones by themselves, and one of several"
    assert [await each() for each in kept] == data
    assert [await each() for each in kept] == data


async def test_a_segment_goes_with_the_last_call_that_needs_it(store: FolderStore) -> None:
    waiting = WaitingBytes(store, "w")
    kept = [waiting.keep(bytes(20_000), 20_000) for _ in range(11)]
    assert len(segments(store)) == 2
    del kept[5:7]
    waiting.tidy()
    assert len(segments(store)) == 2
    del kept[5]
    waiting.tidy()
    assert len(segments(store)) == 1
    waiting.close()
    assert segments(store) == []


async def test_memory_that_is_free_again_is_used_again(store: FolderStore) -> None:
    waiting = WaitingBytes(store, "w")
    for _ in range(50):
        del_me = waiting.keep(bytes(60_000), 60_000)
        del del_me
    assert segments(store) == []


def test_bytes_are_let_go_while_others_are_written(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put, writing, go = FolderStore.put, threading.Event(), threading.Event()

    def put_slowly(self: FolderStore, key: str, data: bytes) -> bool:
        writing.set()
        assert go.wait(20)
        return put(self, key, data)

    monkeypatch.setattr(FolderStore, "put", put_slowly)
    waiting = WaitingBytes(store, "w")
    kept = [waiting.keep(bytes(60_000), 60_000)]
    writer = threading.Thread(target=waiting.keep, args=(bytes(200_000), 200_000))
    letting_go = threading.Thread(target=kept.clear)
    writer.start()
    try:
        assert writing.wait(20)
        letting_go.start()
        letting_go.join(5)
        assert not letting_go.is_alive()
    finally:
        go.set()
        writer.join()


async def test_a_store_that_fails_refuses_no_call(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting, put = WaitingBytes(store, "w"), FolderStore.put

    def fail(*_: object, **__: object) -> bool:
        raise StoreError("the disk is full")

    monkeypatch.setattr(FolderStore, "put", fail)
    data = [os.urandom(30_000) for _ in range(8)]
    kept = [waiting.keep(each, len(each)) for each in data]
    assert "can't put 60000 bytes of waiting calls into the store: the disk is full" in caplog.messages
    assert [await each() for each in kept] == data
    monkeypatch.setattr(FolderStore, "put", put)
    kept.append(waiting.keep(bytes(20_000), 20_000))
    assert len(segments(store)) == 1
    assert [await each() for each in kept] == [*data, bytes(20_000)]


async def test_a_store_that_cannot_be_read_for_a_while_is_asked_again(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, get_range, failures = WaitingBytes(store, "w"), FolderStore.get_range, [1]
    large = os.urandom(200_000)
    kept = waiting.keep(large, len(large))

    def fail_once(self: FolderStore, key: str, start: int, length: int) -> bytes | None:
        if failures:
            failures.pop()
            raise StoreError("not now")
        return get_range(self, key, start, length)

    monkeypatch.setattr(FolderStore, "get_range", fail_once)
    assert await kept() == large


def test_calls_whose_arguments_waited_in_the_store_get_them(make_executor: Make, tmp_path: Path) -> None:
    data = [os.urandom(8_000) for _ in range(30)]
    with make_executor(store=tmp_path / "store", name="w", max_jobs=1, tasks_per_job=16) as executor:
        futures = [executor.submit(bytes.hex, each) for each in data]
        large = [executor.submit(bytes.hex, bytes(200_000)) for _ in range(2)]
        assert segments(FolderStore(tmp_path / "store"))
        assert [bytes.fromhex(future.result()) for future in futures] == data
        assert [future.result() for future in large] == ["00" * 200_000] * 2
    assert segments(FolderStore(tmp_path / "store")) == []


def test_what_a_script_left_there_that_died_is_removed_by_its_next_run(make_executor: Make, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put(Keys("w").waiting("of-a-dead-script"), b"bytes")
    with make_executor(store=tmp_path / "store", name="w"):
        assert segments(store) == []


def test_a_waiting_call_costs_a_few_hundred_bytes(make_executor: Make) -> None:
    executor = make_executor(slots=1, max_jobs=1, waiting=10)
    executor.submit(time.sleep, 30)
    futures = [executor.submit(len, os.urandom(1_000)) for _ in range(500)]
    gc.collect()
    tracemalloc.start()
    try:
        futures += [executor.submit(len, os.urandom(1_000)) for _ in range(3_000)]
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (held - 50_000) / 3_000 < 900  # one segment is in memory
    for future in futures:
        future.cancel()


def test_many_futures_can_be_waited_for_and_called_back(make_executor: Make) -> None:
    seen: list[Future[int]] = []
    with make_executor(tasks_per_job=20) as executor:
        futures = [executor.submit(abs, -number) for number in range(40)]
        for future in futures:
            future.add_done_callback(seen.append)
        assert wait(futures).not_done == set()
    assert set(seen) == set(futures)
    with pytest.raises(AttributeError, match=r"^'TaskFuture' object has no attribute 'results'$"):
        futures[0].results  # noqa: B018 - that it is not there is what is tested
