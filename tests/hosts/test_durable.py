"""Durable executors: a script that is run again gets the outcomes, or the jobs, that its calls had."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from batchport import (
    BatchExecutor,
    JobSpec,
    JobState,
    JobStatus,
    Reason,
    StoreError,
    SupersededError,
    TaskFailedError,
    UsageError,
)
from batchport.backends.local import LocalAdapter, Options
from batchport.hosts.executor import BrokenWorkerError
from batchport.store import FolderStore, Keys

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Eventually = Callable[..., None]
Make = Callable[..., BatchExecutor]


class StopError(Exception):
    """What ends a script."""


class Watched(LocalAdapter):
    """Notes how jobs ended."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(Options(folder=str(tmp_path / "jobs")))
        self.ended: dict[str, JobState] = {}

    def poll_jobs(self, job_ids: Sequence[str]) -> list[JobStatus]:
        statuses = list(super().poll_jobs(job_ids))
        self.ended |= {status.job_id: status.state for status in statuses if status.state.is_final}
        return statuses


@contextmanager
def dies(make: Make) -> Iterator[BatchExecutor]:
    """Make an executor whose `with` ends by an exception."""
    with suppress(StopError), make() as executor:
        yield executor
        raise StopError


@pytest.fixture
def make(make_executor: Make, tmp_path: Path) -> Make:
    """Make executors of one name on one store; each is the same script run once more."""

    def make(**options: Any) -> BatchExecutor:
        return make_executor(store=tmp_path / "store", name="ann", **options)

    return make


def run_marked(mark: Path, value: object = None) -> object:
    with mark.open("a", encoding="utf-8") as file:
        file.write("ran\n")
    if isinstance(value, Exception):
        raise value
    return value


def times_run(mark: Path) -> int:
    return mark.read_text(encoding="utf-8").count("ran") if mark.exists() else 0


def wait_for(go: Path, mark: Path) -> str:
    run_marked(mark)
    while not go.exists():
        time.sleep(0.02)
    return "went"


def die(mark: Path) -> None:
    run_marked(mark)
    os._exit(9)


def kept(tmp_path: Path) -> list[str]:
    return sorted(".".join(name.split(".")[1:]) for name in FolderStore(tmp_path / "store").names(Keys("ann").outcomes))


def test_a_call_whose_outcome_is_kept_gets_it_without_a_job(make: Make, tmp_path: Path) -> None:
    with dies(make) as executor:
        assert executor.submit(run_marked, tmp_path / "mark", 7).result() == 7
    with make() as executor:
        future = executor.submit(run_marked, tmp_path / "mark", 7)
        assert future.result() == 7
        assert executor.counts.jobs == 0
    assert times_run(tmp_path / "mark") == 1


def test_an_exception_of_the_function_is_raised_again_with_its_traceback_and_output(make: Make, tmp_path: Path) -> None:
    def fail() -> None:
        run_marked(tmp_path / "mark")
        print("before")
        raise LookupError("nowhere")

    for _ in range(2):
        with dies(make) as executor:
            future = executor.submit(fail)
            error = future.exception()
            assert isinstance(error, LookupError)
            assert "in fail" in str(error.__cause__)
            assert future.output() == "before\n"
    assert times_run(tmp_path / "mark") == 1


def test_a_call_that_failed_without_an_answer_is_made_again(make: Make, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TaskFailedError) as caught, make() as executor:
            executor.submit(die, tmp_path / "mark").result()
        assert caught.value.failure.reason is Reason.RUNNER_CRASH
    assert times_run(tmp_path / "mark") == 2
    assert kept(tmp_path) == []


def test_a_call_whose_job_lives_gets_its_outcome(make: Make, tmp_path: Path, eventually: Eventually) -> None:
    first = make()
    future = first.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    eventually(lambda: times_run(tmp_path / "mark"))
    first.detach()
    assert future.cancelled()
    with make() as executor:
        future = executor.submit(wait_for, tmp_path / "go", tmp_path / "mark")
        assert not future.done()
        (tmp_path / "go").touch()
        assert future.result() == "went"
    assert times_run(tmp_path / "mark") == 1
    assert executor.counts.backend_calls["submit_job"] == 0


def test_an_outcome_that_comes_before_its_call_is_kept_for_it(
    make: Make, tmp_path: Path, eventually: Eventually
) -> None:
    first = make()
    first.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    first.detach()
    (tmp_path / "go").touch()
    with make() as executor:
        eventually(lambda: kept(tmp_path))
        assert executor.submit(wait_for, tmp_path / "go", tmp_path / "mark").result() == "went"
    assert times_run(tmp_path / "mark") == 1


def test_a_failure_that_comes_before_its_call_is_held_for_it(
    make: Make, tmp_path: Path, eventually: Eventually
) -> None:
    first = make()
    first.submit(die, tmp_path / "mark")
    first.detach()
    with make() as executor:
        eventually(lambda: executor.counts.failed)
        with pytest.raises(TaskFailedError):
            executor.submit(die, tmp_path / "mark").result()
    assert times_run(tmp_path / "mark") == 1


def test_detach_sends_what_there_is_room_for_and_leaves_nothing_of_the_executor(
    make: Make, tmp_path: Path, eventually: Eventually
) -> None:
    before = set(threading.enumerate())
    executor = make(max_jobs=3, waiting=2)
    futures = [executor.submit(wait_for, tmp_path / "go", tmp_path / f"mark{number}") for number in range(10)]
    executor.detach()
    assert set(threading.enumerate()) == before
    assert all(future.cancelled() for future in futures)
    with pytest.raises(CancelledError):
        futures[0].result()
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.submit(abs, -1)
    assert executor.counts.sent == 3
    eventually(lambda: sum(times_run(tmp_path / f"mark{number}") for number in range(3)) == 3)
    (tmp_path / "go").touch()
    with make() as executor:
        futures = [executor.submit(wait_for, tmp_path / "go", tmp_path / f"mark{number}") for number in range(10)]
        assert [future.result() for future in futures] == ["went"] * 10
    assert [times_run(tmp_path / f"mark{number}") for number in range(10)] == [1] * 10


def test_detach_counts_no_call_as_unsent_whose_outcome_is_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get = FolderStore.get

    def get_badly(self: FolderStore, key: str) -> bytes | None:
        if "/outcomes/" in key:
            raise StoreError("not now")
        return get(self, key)

    with dies(make) as executor:
        executor.submit(abs, -1).result()
    executor = make(max_jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "get", get_badly)
        executor.submit(abs, -1)
        for number in range(3):
            executor.submit(wait_for, tmp_path / "go", tmp_path / f"mark{number}")
        executor.detach()
    (tmp_path / "go").touch()
    said = [message for message in caplog.messages if "at the backend yet" in message]
    assert said == ["2 calls are not at the backend yet; they are sent when the script is run again"]


def test_detach_says_what_it_waits_for(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    up = threading.Event()

    class Down(LocalAdapter):
        def submit_job(self, job: JobSpec) -> str:
            assert up.wait(20)
            return super().submit_job(job)

    executor = make(backend=Down(Options(folder=str(tmp_path / "jobs"))))
    executor.submit(abs, -1)
    said = "waiting up to a minute for the backend to take the calls; Ctrl-C leaves at once"
    with ThreadPoolExecutor(1) as thread:
        leaving = thread.submit(executor.detach)
        try:
            eventually(lambda: said in caplog.messages)
        finally:
            up.set()
        leaving.result()
    with make() as executor:
        assert executor.submit(abs, -1).result() == 1
    assert caplog.messages.count(said) == 1


def test_an_exception_in_the_with_leaves_at_once_and_lets_the_jobs_live(make: Make, tmp_path: Path) -> None:
    with dies(make) as executor:
        future = executor.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    assert future.cancelled()
    (tmp_path / "go").touch()
    with make() as executor:
        assert executor.submit(wait_for, tmp_path / "go", tmp_path / "mark").result() == "went"
    assert times_run(tmp_path / "mark") == 1


@pytest.mark.parametrize("how", ["with", "shutdown"])
def test_a_clean_end_begins_anew_and_leaves_nothing(make: Make, tmp_path: Path, how: str) -> None:
    for count in (1, 2):
        executor = make()
        future = executor.submit(run_marked, tmp_path / "mark")
        if how == "shutdown":
            executor.shutdown()
        else:
            with executor:
                pass
        assert future.result() is None
        assert times_run(tmp_path / "mark") == count
    files = {str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert files == {"ann/birth", "ann/epochs/00000002"}


def test_calls_are_the_same_by_their_keys_whatever_their_order(make: Make, tmp_path: Path) -> None:
    keys = ["plain", "with/slash and ü", "x" * 300]
    for order in (keys, keys[::-1]):
        with dies(make) as executor:
            futures = {key: executor.options(key=key).submit(run_marked, tmp_path / "mark", key) for key in order}
            assert {key: future.result() for key, future in futures.items()} == {key: key for key in keys}
    assert times_run(tmp_path / "mark") == 3


def test_the_same_number_with_another_function_is_refused(make: Make) -> None:
    with dies(make) as executor:
        executor.submit(abs, -1).result()
    with make() as executor, pytest.raises(UsageError) as caught:
        executor.submit(len, "")
    assert str(caught.value) == (
        "call 1 of this script is one of len, and when this script ran last as 'ann' it was one of abs: a call is "
        "known by its number, so it would get the result of the other one. If the script was changed, give the calls "
        "keys, executor.options(key=...); drop what is kept, executor.forget(); or use another name"
    )


def test_the_same_key_with_another_function_is_refused(make: Make) -> None:
    with dies(make) as executor:
        executor.options(key="fit").submit(abs, -1).result()
    with make() as executor, pytest.raises(UsageError) as caught:
        executor.options(key="fit").submit(len, "")
    assert str(caught.value) == (
        "the call with the key 'fit' is one of len, and when this script ran last as 'ann' it was one of abs: a call "
        "is known by its key, so it would get the result of the other one. If the script was changed, give it another "
        "key; drop what is kept, executor.forget(); or use another name"
    )


def test_a_job_that_lives_is_known_by_its_function_too(make: Make, tmp_path: Path) -> None:
    executor = make()
    executor.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    executor.detach()
    (tmp_path / "go").touch()
    with make() as executor, pytest.raises(UsageError, match="it was one of wait_for"):
        executor.submit(len, "")


def test_a_job_that_has_ended_before_the_script_begins_is_known_by_its_function_too(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    get, names, read = FolderStore.get, FolderStore.names, threading.Event()

    def get_and_tell(self: FolderStore, key: str) -> bytes | None:
        data = get(self, key)
        if key.endswith(".result"):
            read.set()
        return data

    def list_slowly(self: FolderStore, folder: str) -> list[str]:
        if folder.endswith("/waiting"):
            assert read.wait(20)
            time.sleep(0.2)  # the worker makes an outcome of it meanwhile, and if not, nothing changes
        return names(self, folder)

    executor = make()
    executor.submit(run_marked, tmp_path / "mark")
    executor.detach()
    monkeypatch.setattr(FolderStore, "get", get_and_tell)
    monkeypatch.setattr(FolderStore, "names", list_slowly)
    with make() as executor, pytest.raises(UsageError, match="it was one of run_marked"):
        executor.submit(len, "")


def test_a_key_is_that_of_one_call(make: Make) -> None:
    with make() as executor:
        keyed = executor.options(key="fit")
        keyed.submit(abs, -1)
        with pytest.raises(UsageError) as caught:
            keyed.submit(abs, -2)
        assert str(caught.value) == (
            "the key 'fit' is that of an earlier call of this script, and this is another call, of abs: give each call "
            "a key of its own"
        )
        with pytest.raises(UsageError) as caught:
            keyed.map(abs, [-1])
        assert str(caught.value) == (
            "the key 'fit' is one call's, and map makes many: submit them one by one, each with its own"
        )


def test_a_key_is_a_str(make: Make) -> None:
    with make() as executor, pytest.raises(UsageError) as caught:
        executor.options(key=7)  # type: ignore[arg-type] # that is what is tested
    assert str(caught.value) == "key=7: a key is a str; write key=str(7)"


def test_a_call_that_cannot_be_pickled_leaves_its_key_to_another(make: Make) -> None:
    with make() as executor:
        keyed = executor.options(key="fit")
        with pytest.raises(UsageError, match="cannot be pickled"):
            keyed.submit(id, threading.Lock())
        assert keyed.submit(abs, -1).result() == 1


def test_of_two_threads_with_one_key_one_makes_its_call(make: Make) -> None:
    both = threading.Barrier(2)

    class Meets:
        def __reduce__(self) -> tuple[type[int], tuple[int]]:
            both.wait(20)
            return int, (7,)

    with make() as executor, ThreadPoolExecutor(2) as threads:
        submit: Any = executor.options(key="fit").submit
        submitted = [threads.submit(submit, abs, Meets()) for _ in range(2)]
        (refused,) = filter(None, [each.exception() for each in submitted])
        assert str(refused).startswith("the key 'fit' is that of an earlier call of this script")
        assert [each.result().result() for each in submitted if not each.exception()] == [7]


def test_map_is_taken_up_again(make: Make, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(5)]
    for _ in range(2):
        with dies(make) as executor:
            assert list(executor.map(run_marked, marks, range(5))) == list(range(5))
    assert [times_run(mark) for mark in marks] == [1] * 5


def test_what_is_forgotten_is_made_again(make: Make, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(4)]

    def run(executor: BatchExecutor) -> None:
        first = executor.submit(run_marked, marks[0])
        rest = [executor.options(key=mark.name).submit(run_marked, mark) for mark in marks[1:]]
        for future in (first, *rest):
            future.result()
        executor.forget(first, rest[0], "2")

    for _ in range(2):
        with dies(make) as executor:
            run(executor)
    assert [times_run(mark) for mark in marks] == [2, 2, 2, 1]
    with make() as executor:
        executor.forget("3")
        executor.options(key="3").submit(run_marked, marks[3]).result()
        executor.forget("3")
        executor.options(key="3").submit(run_marked, marks[3]).result()
    assert times_run(marks[3]) == 3


def test_everything_can_be_forgotten(make: Make, tmp_path: Path) -> None:
    with dies(make) as executor:
        executor.submit(abs, -1).result()
        executor.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    adapter = Watched(tmp_path)
    with make(backend=adapter) as executor:
        executor.forget()
        assert executor.submit(len, "abc").result() == 3
        assert kept(tmp_path) == ["1.len"]
    assert JobState.CANCELLED in adapter.ended.values()


@pytest.mark.parametrize("end", ["shutdown", "detach"])
def test_an_executor_that_has_ended_forgets_nothing(make: Make, tmp_path: Path, end: str) -> None:
    ended = make()
    future = ended.submit(abs, -1)
    assert future.result() == 1
    getattr(ended, end)()
    with dies(make) as executor:
        executor.submit(abs, -1).result()
        for calls in ((), (future,)):
            with pytest.raises(RuntimeError, match=r"^cannot forget calls after shutdown$"):
                ended.forget(*calls)
        assert kept(tmp_path) == ["1.abs"]


def test_the_older_of_two_starts_forgets_nothing_of_the_newer_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = iter(f"host{number}" for number in range(100))
    monkeypatch.setattr("socket.gethostname", lambda: next(hosts))  # as on another machine: it is not known to run
    older = make()
    future = older.submit(abs, -1)
    assert future.result() == 1
    with make() as newer:
        for calls in ((), (future,)):
            with pytest.raises((SupersededError, BrokenWorkerError), match="was started again by"):
                older.forget(*calls)
        assert kept(tmp_path) == ["1.abs"]
        assert newer.submit(abs, -1).result() == 1
    assert kept(tmp_path) == []
    assert FolderStore(tmp_path / "store").get(Keys("ann").run) is None, "the run was the newer one's to end"


def test_a_call_that_is_under_way_cannot_be_forgotten(make: Make, tmp_path: Path) -> None:
    executor = make()
    future = executor.options(key="slow").submit(wait_for, tmp_path / "go", tmp_path / "mark")
    for calls in ((future,), ("slow",)):
        with pytest.raises(UsageError) as caught:
            executor.forget(*calls)
        assert str(caught.value) == (
            "a call that is under way has no outcome to forget: wait for it, or cancel it, first"
        )
    with pytest.raises(UsageError, match=r"^1 calls are under way: wait for them, or cancel them, first$"):
        executor.forget()
    executor.detach()
    with make() as executor:
        with pytest.raises(UsageError, match=r"^a call that is under way has no outcome to forget"):
            executor.forget("slow")
        (tmp_path / "go").touch()


def test_a_cancelled_call_is_made_again(make: Make, tmp_path: Path, eventually: Eventually) -> None:
    for count in (1, 2):
        with suppress(KeyboardInterrupt), make() as executor:
            future = executor.submit(wait_for, tmp_path / "go", tmp_path / "mark")
            eventually(lambda count=count: times_run(tmp_path / "mark") == count)
            raise KeyboardInterrupt
        assert future.cancelled()


def test_ctrl_c_cancels_jobs_of_an_earlier_start_too_that_no_call_has_asked_for(make: Make, tmp_path: Path) -> None:
    executor = make()
    executor.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    executor.detach()
    adapter = Watched(tmp_path)
    with suppress(KeyboardInterrupt), make(backend=adapter):
        raise KeyboardInterrupt
    assert list(adapter.ended.values()) == [JobState.CANCELLED]


def test_an_outcome_that_is_damaged_says_what_to_do(make: Make, tmp_path: Path) -> None:
    with dies(make) as executor:
        executor.submit(abs, -1).result()
    (outcome,) = (tmp_path / "store" / "ann" / "outcomes").iterdir()
    outcome.write_bytes(b"damaged")
    with make() as executor:
        error = executor.submit(abs, -1).exception()
    assert isinstance(error, TaskFailedError)
    assert error.failure.reason is Reason.PAYLOAD
    assert error.failure.message == "The kept outcome of call 1, of abs, can't be read."
    assert error.failure.advice == "Have it forgotten, executor.forget(future), and run the script again."


def test_an_outcome_that_cannot_be_written_is_not_delivered_before_it_is(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put, failed = FolderStore.put, threading.Event()

    def put_badly(self: FolderStore, key: str, data: bytes, *, create: bool = False) -> bool:
        if "/outcomes/" in key and not failed.is_set():
            failed.set()
            raise StoreError("the disk is full")
        return put(self, key, data, create=create)

    monkeypatch.setattr(FolderStore, "put", put_badly)
    with make() as executor:
        assert executor.submit(abs, -1).result() == 1
        assert failed.is_set()
        assert kept(tmp_path) == ["1.abs"]


def test_an_answer_that_could_not_be_written_before_detach_is_there_for_the_next_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put, failed = FolderStore.put, threading.Event()

    def put_badly(self: FolderStore, key: str, data: bytes, *, create: bool = False) -> bool:
        if "/outcomes/" in key:
            failed.set()
            raise StoreError("the disk is full")
        return put(self, key, data, create=create)

    executor = make()
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", put_badly)
        executor.submit(run_marked, tmp_path / "mark", 7)
        assert failed.wait(20)
        executor.detach()
    with make() as executor:
        assert executor.submit(run_marked, tmp_path / "mark", 7).result() == 7
    assert times_run(tmp_path / "mark") == 1


def test_the_older_of_two_starts_ends_in_words(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    hosts = iter(f"host{number}" for number in range(100))
    monkeypatch.setattr("socket.gethostname", lambda: next(hosts))  # as on another machine: it is not known to run
    older = make()
    future = older.submit(wait_for, tmp_path / "go", tmp_path / "mark")
    eventually(lambda: times_run(tmp_path / "mark"))
    with make() as newer:
        same = newer.submit(wait_for, tmp_path / "go", tmp_path / "mark")
        (tmp_path / "go").touch()
        assert same.result() == "went"
        error = future.exception(20)
    assert str(error).startswith("the worker 'ann' was started again by process ")
    assert times_run(tmp_path / "mark") == 1


def test_calls_whose_kept_outcome_cannot_be_read_end_with_their_worker(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    get = FolderStore.get

    def get_badly(self: FolderStore, key: str) -> bytes | None:
        if "/outcomes/" in key:
            raise StoreError("permission denied")
        return get(self, key)

    with dies(make) as executor:
        for key in ("a", "b"):
            executor.options(key=key).submit(abs, -1).result()
    monkeypatch.setattr(FolderStore, "get", get_badly)
    executor = make()
    first, living = (
        executor.options(key="a").submit(abs, -1),
        executor.submit(wait_for, tmp_path / "go", tmp_path / "mark"),
    )
    eventually(lambda: "permission denied" in caplog.text)
    newer = b'{"host": "another", "pid": 1, "started": 1, "ended": false}'
    FolderStore(tmp_path / "store").put(Keys("ann").epoch(99), newer)
    for error in (living.exception(20), first.exception(20)):
        assert isinstance(error, BrokenWorkerError)
    with pytest.raises(BrokenWorkerError):
        executor.options(key="b").submit(abs, -1)
    (tmp_path / "go").touch()


def test_a_name_needs_a_store_that_stays(make_executor: Make) -> None:
    with pytest.raises(UsageError) as caught:
        BatchExecutor("local", name="ann")
    assert str(caught.value) == (
        "name='ann' makes the executor durable, and that needs a store that is still there when the script is run "
        "again: give store= a folder's path or a URL, or leave out the name"
    )


def test_without_a_name_nothing_is_kept_and_detach_forget_and_keys_say_so(make_executor: Make) -> None:
    with make_executor() as executor:
        for wrong in (executor.detach, executor.forget, lambda: executor.options(key="a")):
            with pytest.raises(UsageError, match="name"):
                wrong()
