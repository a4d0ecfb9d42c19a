"""ScalerList: what a user of Scaler does on every backend, with a real client, scheduler and object storage.

A backend joins by a subclass whose fixture `backend` is that of its conformance tests: see test_scaler_list.py.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from tests.hosts.scaler_cluster import Client, Worker, new_scheduler

from batchport.testing import Backend
from batchport.testing.functions import die, hold
from batchport.testing.marks import BEAT_S, Marks

__all__ = ["ScalerList"]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs have no `tests`

MORE_THAN_ARE_RUN = 6
"""Jobs that the worker may have at the backend, of which it runs fewer at once, so that some are queued there."""


class Broken(Exception):  # noqa: N818 - a user's own
    pass


class Picky(Exception):  # noqa: N818 - a user's own
    """One that pickles and does not unpickle: it is made anew from its one argument, and wants two."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


def _module_of_the_clients() -> ModuleType:
    module = ModuleType("only_the_client_has_it")
    exec("def function(): pass", vars(module))
    return module


def square(number: int) -> int:
    return number * number


def add(*numbers: int) -> int:
    return sum(numbers)


def turn(data: bytes) -> bytes:
    return data[::-1]


def label(who: str, number: int) -> str:
    return f"{who}-{number}"


def raise_broken() -> None:
    raise Broken("words of the function's own")


def raise_picky() -> None:
    raise Picky("page", 7)


def raise_group() -> None:
    raise ExceptionGroup("both went wrong", [Broken("the first"), ValueError("the second")])


def interrupt() -> None:
    raise KeyboardInterrupt


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_up() -> Iterator[int]:
    return (number for number in range(3))


FAILURES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "one that does not survive a round trip": (raise_picky, (), r"raised .*Picky: page 7.*\n(.*\n)*.*in raise_picky"),
    "KeyboardInterrupt": (interrupt, (), r"raised KeyboardInterrupt"),
    "sys.exit": (sys.exit, (3,), r"called sys\.exit\(3\)"),
    "os._exit": (die, (3,), r"ended with exit code 3 before the function returned"),
    "SIGKILL": (kill_itself, (), r"was ended by SIGKILL"),
    "a result that cannot be pickled": (count_up, (), r"returned a value of type generator that cannot be pickled"),
}
"""What a client gets in words: what runs, and the words."""


class ScalerList:
    """The list. A subclass defines the fixture `backend`, of scope class; its jobs see batchport and cloudpickle."""

    patience_s = 20.0
    """How long a condition is waited for."""
    worker_options: dict[str, Any] = {}  # noqa: RUF012 - a constant
    """What is different for this backend's worker."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[Backend]:
        raise NotImplementedError("a subclass says which backend it is")

    @pytest.fixture(scope="class")
    @classmethod
    def scheduler(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        with new_scheduler(tmp_path_factory.mktemp("servers")) as scheduler:
            yield scheduler

    @pytest.fixture(scope="class")
    @classmethod
    def worker(cls, scheduler: str, backend: Backend) -> Iterator[Worker]:
        with cls.serving(scheduler, backend, max_jobs=MORE_THAN_ARE_RUN) as worker:
            yield worker

    @pytest.fixture
    def client(self, scheduler: str, worker: Worker) -> Iterator[Client]:
        with Client(scheduler) as client:
            yield client

    @pytest.fixture
    def new_marks(self, backend: Backend) -> Iterator[Callable[[], Marks]]:
        """Make places where jobs leave marks, and wait; all gates are opened at the end."""
        made: list[Marks] = []

        def new_marks() -> Marks:
            made.append(Marks(str(backend.marks or backend.store), secrets.token_hex(6)))
            return made[-1]

        yield new_marks
        for marks in made:
            marks.release()

    # One job each would measure how fast the backend starts jobs: on 4 CPUs, 500 take minutes. Packed they are 20
    # elements of some arrays, and the test is about who gets which result.
    def test_a_map_of_500_comes_back_in_order(self, backend: Backend, tmp_path: Path) -> None:
        with (
            new_scheduler(tmp_path) as scheduler,
            self.serving(scheduler, backend, tasks_per_job=25, max_jobs=20) as worker,
            Client(scheduler) as client,
        ):
            assert client.map(square, range(500)) == [number * number for number in range(500)]
            assert worker.host.counts.jobs < 50

    def test_a_functions_own_exception_arrives_as_itself_with_the_jobs_traceback(self, client: Client) -> None:
        with pytest.raises(Broken) as raised:
            client.submit(raise_broken).result()

        assert str(raised.value) == "words of the function's own"
        (note,) = raised.value.__notes__
        assert "in raise_broken" in note

    def test_an_exception_group_arrives_as_itself(self, client: Client) -> None:
        with pytest.raises(ExceptionGroup, match="both went wrong") as raised:
            client.submit(raise_group).result()

        assert [(type(each), str(each)) for each in raised.value.exceptions] == [
            (Broken, "the first"),
            (ValueError, "the second"),
        ]

    @pytest.mark.parametrize("kind", FAILURES)
    def test_a_failure_that_cannot_arrive_as_itself_arrives_in_words(self, client: Client, kind: str) -> None:
        function, args, words = FAILURES[kind]
        with pytest.raises(RuntimeError, match=words):
            client.submit(function, *args).result()

    def test_a_module_that_the_job_lacks_is_named(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        module = _module_of_the_clients()
        monkeypatch.setitem(sys.modules, module.__name__, module)
        with pytest.raises(RuntimeError, match="has no module 'only_the_client_has_it', which the function needs"):
            client.submit(module.function).result()

    def test_the_tasks_of_a_graph_run_once_what_they_need_is_there(self, client: Client) -> None:
        graph = {"a": 2, "b": 3, "aa": (square, "a"), "bb": (square, "b"), "sum": (add, "aa", "bb", "a")}
        assert client.get(graph, ["sum", "aa"]) == {"sum": 15, "aa": 4}

    def test_a_task_of_a_graph_that_raises_is_what_the_graph_raises(self, scheduler: str, worker: Worker) -> None:
        # A client of its own: a graph that raises disconnects it (`get` in upstream's client/client.py).
        with Client(scheduler) as client, pytest.raises(Broken):
            client.get({"a": (raise_broken,), "b": (add, "a")}, ["b"])

    def test_what_is_cancelled_ends_wherever_it_is_and_leaves_its_place_to_others(
        self, client: Client, worker: Worker, new_marks: Callable[[], Marks]
    ) -> None:
        marks = [new_marks() for _ in range(MORE_THAN_ARE_RUN + 2)]
        futures = [client.submit(hold, each.url, each.key) for each in marks]
        self.until("jobs to be at the backend", lambda: worker.host.counts.sent == MORE_THAN_ARE_RUN)
        self.until("some of them to run", lambda: sum(bool(each.read("run")) for each in marks) > 1)
        runs = next(number for number, each in enumerate(marks) if each.read("run"))
        waits_there = next(number for number, each in enumerate(marks) if not each.read("run"))
        assert waits_there < MORE_THAN_ARE_RUN, "what is over the worker's number of jobs waits at the scheduler"
        cancelled = {runs, waits_there, len(marks) - 1}

        for number in cancelled:
            assert futures[number].cancel()
            assert futures[number].cancelled()

        (mark,) = marks[runs].read("run")
        self.until("the cancelled one to end", lambda: not self.beats(marks[runs], mark.attempt))
        kept = [each for number, each in enumerate(marks) if number not in cancelled]
        more = [new_marks() for _ in cancelled]
        others = [client.submit(hold, each.url, each.key) for each in more]
        for each in (*kept, *more):
            each.release()
        for number, future in enumerate(futures):
            assert number in cancelled or future.result() is None
        assert [future.result() for future in others] == [None] * len(others)
        assert all(len(each.read("end")) == 1 for each in (*kept, *more))
        assert not any(marks[number].read("end") for number in cancelled)
        self.until("no place to be taken", lambda: worker.host.counts.sent == 0)

        full = [new_marks() for _ in range(MORE_THAN_ARE_RUN)]
        futures = [client.submit(hold, each.url, each.key) for each in full]
        self.until("all places to be taken", lambda: worker.host.counts.sent == MORE_THAN_ARE_RUN)
        for each in full:
            each.release()
        assert [future.result() for future in futures] == [None] * len(full)

    def test_classes_from_inside_functions_travel_both_ways(self, client: Client) -> None:
        step = 3

        class Outer:
            class Inner:
                def __init__(self, change: Callable[[int], int]) -> None:
                    self.change = change

            def __init__(self, value: int) -> None:
                self.value, self.inner = value, self.Inner(lambda number: number + step)

            def move(self) -> Outer:
                return Outer(self.inner.change(self.value))

        def make() -> Any:
            class OfTheJob:
                def __init__(self, change: Callable[[int], int]) -> None:
                    self.change = change

            return OfTheJob(lambda number: number * step)

        moved, made = client.submit(Outer.move, Outer(4)), client.submit(make)

        assert type(moved.result()) is Outer
        assert type(moved.result().inner) is Outer.Inner
        assert moved.result().move().value == 10
        assert made.result().change(5) == 15

    def test_arguments_and_results_of_tens_of_megabytes_arrive_whole(self, client: Client) -> None:
        data = os.urandom(32 << 20)
        assert client.submit(turn, data).result() == data[::-1]

    def test_two_clients_at_once_get_their_own_and_one_that_leaves_harms_no_other(
        self, scheduler: str, client: Client, new_marks: Callable[[], Marks]
    ) -> None:
        marks = new_marks()
        with Client(scheduler) as second, ThreadPoolExecutor() as threads:
            maps = {
                who: threads.submit(each.starmap, label, [(who, number) for number in range(8)])
                for who, each in (("first", client), ("second", second))
            }
            for who, mapped in maps.items():
                assert mapped.result() == [f"{who}-{number}" for number in range(8)]
            left = second.submit(hold, marks.url, marks.key)
            self.until("the second client's task to run", lambda: marks.read("run"))
            stays = client.submit(hold, marks.url, (kept := new_marks()).key)
            self.until("the first client's task to run", lambda: kept.read("run"))

        assert left.cancelled()
        (mark,) = marks.read("run")
        self.until("the task of the client that left to end", lambda: not self.beats(marks, mark.attempt))
        kept.release()
        assert stays.result() is None
        assert len(kept.read("end")) == 1

    @classmethod
    @contextmanager
    def serving(cls, scheduler: str, backend: Backend, **options: Any) -> Iterator[Worker]:
        """Run a worker on the backend; it must end well."""
        store = f"{backend.store}/{secrets.token_hex(4)}"  # since two of one name must not share one
        options = {"store": store, "python": backend.python, **cls.worker_options, **options}
        worker = Worker(scheduler, Path(backend.store), backend.adapter(), **options)
        try:
            yield worker
        finally:
            worker.stop()
        worker.ended.result()

    @classmethod
    def until(cls, what: str, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + cls.patience_s
        while not holds():
            assert time.monotonic() < deadline, f"waited {cls.patience_s:g} s for {what}"
            time.sleep(0.05)

    @staticmethod
    def beats(marks: Marks, attempt: str) -> bool:
        """Watch for a while whether a process that holds lives; seen like this, it may be on any machine."""
        before = marks.beat(attempt)
        deadline = time.monotonic() + 6 * BEAT_S
        while time.monotonic() < deadline:
            if marks.beat(attempt) != before:
                return True
            time.sleep(0.05)
        return False
