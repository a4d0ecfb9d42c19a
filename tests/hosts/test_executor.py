"""BatchExecutor as users of the standard library's executors know theirs."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from dask.base import compute
from dask.delayed import delayed

from batchport import BatchExecutor, Reason, Resources, TaskFailedError, UsageError
from batchport.backends.local import LocalAdapter, Options
from batchport.store import open_store

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., BatchExecutor]
Eventually = Callable[..., None]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def later(value: object, seconds: float) -> object:
    time.sleep(seconds)
    return value


def leave_pid_and_sleep(mark: Path) -> None:
    mark.write_text(f"{os.getpid()}\n", encoding="utf-8")
    time.sleep(60)


def pid_in(mark: Path) -> int | None:
    text = mark.read_text(encoding="utf-8") if mark.exists() else ""
    return int(text) if text.endswith("\n") else None


def test_a_call_gets_its_arguments_and_keywords(executor: BatchExecutor) -> None:
    assert executor.submit(int, "11", base=2).result() == 3


def test_a_closure_takes_along_what_it_refers_to(executor: BatchExecutor) -> None:
    factor = 7
    assert executor.submit(lambda x: factor * x, 6).result() == 42


def test_a_keyword_may_be_called_like_a_parameter_of_submit(executor: BatchExecutor) -> None:
    assert executor.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}


def test_a_running_future_says_so_and_then_is_done(
    executor: BatchExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    go = tmp_path / "go"

    def wait_for_go() -> None:
        while not go.exists():
            time.sleep(0.02)

    future = executor.submit(wait_for_go)
    assert not future.done()
    eventually(future.running)
    assert not future.done()
    go.touch()
    future.result()
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)


def test_wait_and_as_completed_take_the_futures(executor: BatchExecutor) -> None:
    slow = executor.submit(time.sleep, 60)
    quick = [executor.submit(abs, -number) for number in range(3)]
    both: list[Future[Any]] = [slow, quick[0]]
    done, _ = wait(both, return_when=FIRST_COMPLETED)
    assert done == {quick[0]}
    assert sorted(future.result() for future in as_completed(quick)) == [0, 1, 2]
    waiter = threading.Thread(target=wait, args=([slow],))
    waiter.start()
    assert slow.cancel()
    waiter.join(10)
    assert not waiter.is_alive()


def test_callbacks_get_the_future_whether_added_before_or_after_its_end(executor: BatchExecutor) -> None:
    seen: list[object] = []
    future = executor.submit(abs, -1)
    called = threading.Event()
    future.add_done_callback(seen.append)
    future.add_done_callback(lambda _: called.set())
    assert called.wait(20)
    future.add_done_callback(seen.append)
    assert seen == [future, future]


def test_a_callback_that_calls_sys_exit_stops_nothing(executor: BatchExecutor) -> None:
    future = executor.submit(abs, -1)
    future.add_done_callback(lambda _: sys.exit(3))
    assert executor.submit(abs, -2).result() == 2


def test_cancel_ends_a_task_that_runs(executor: BatchExecutor, tmp_path: Path, eventually: Eventually) -> None:
    future = executor.submit(leave_pid_and_sleep, tmp_path / "mark")
    eventually(lambda: pid_in(tmp_path / "mark"))
    assert future.cancel()
    assert future.cancelled()
    assert future.cancel()
    pid = pid_in(tmp_path / "mark")
    assert pid is not None
    eventually(lambda: is_gone(pid))


def test_a_waiting_task_that_is_cancelled_never_runs(make_executor: Make, tmp_path: Path) -> None:
    with make_executor(slots=1, max_jobs=1) as executor:
        first = executor.submit(time.sleep, 1)
        second = executor.submit((tmp_path / "mark").touch)
        assert second.cancel()
    assert first.done()
    assert not first.cancelled()
    assert not (tmp_path / "mark").exists()


def test_a_task_that_the_worker_had_no_room_for_can_be_cancelled(make_executor: Make, tmp_path: Path) -> None:
    with make_executor(slots=1, max_jobs=1, waiting=1) as executor:
        first = executor.submit(time.sleep, 1)
        rest = [executor.submit((tmp_path / str(number)).touch) for number in range(4)]
        assert [future.cancel() for future in rest] == [True] * 4
    assert first.exception() is None
    assert not list(tmp_path.glob("[0-9]"))


def test_one_task_of_a_pack_can_be_cancelled(make_executor: Make) -> None:
    with make_executor(tasks_per_job=3) as executor:
        futures = [executor.submit(later, number, 1) for number in range(3)]
        assert futures[1].cancel()
        assert [futures[0].result(), futures[2].result()] == [0, 2]
    assert executor.counts.jobs == 1


def test_a_done_task_cannot_be_cancelled(executor: BatchExecutor) -> None:
    future = executor.submit(abs, -1)
    assert future.result() == 1
    assert not future.cancel()
    assert not future.cancelled()


def test_a_future_keeps_no_hold_of_its_argument(executor: BatchExecutor) -> None:
    class Argument:
        pass

    argument = Argument()
    ref = weakref.ref(argument)
    future = executor.submit(lambda _: None, argument)
    future.result()
    del argument
    gc.collect()
    assert ref() is None


def test_map_gives_results_in_the_order_of_its_arguments(executor: BatchExecutor) -> None:
    assert list(executor.map(pow, [2, 3, 4], [5, 4])) == [32, 81]


def test_map_runs_chunksize_calls_in_one_task(make_executor: Make) -> None:
    with make_executor() as executor:
        assert list(executor.map(lambda a, b: a + b, range(10), range(10), chunksize=4)) == list(range(0, 20, 2))
    assert executor.counts.done == 3


def test_map_pickles_the_function_once(executor: BatchExecutor) -> None:
    pickled = list[int]()

    class Double:
        def __call__(self, number: int) -> int:
            return 2 * number

        def __reduce__(self) -> Any:
            pickled.append(1)
            return type(self), ()

    assert list(executor.map(Double(), range(3))) == [0, 2, 4]
    assert list(executor.map(Double(), range(3), chunksize=2)) == [0, 2, 4]
    assert len(pickled) == 2


def test_map_counts_its_timeout_from_the_call_and_cancels_the_rest(make_executor: Make) -> None:
    started = time.monotonic()
    with make_executor() as executor:
        results = executor.map(time.sleep, [0, 60, 60], timeout=3)
        assert next(results) is None
        with pytest.raises(TimeoutError):
            next(results)
    assert time.monotonic() - started < 40


def test_a_map_that_is_closed_cancels_what_is_still_to_come(make_executor: Make) -> None:
    with make_executor() as executor:
        results: Any = executor.map(time.sleep, [0, 60, 60])
        next(results)
        results.close()
        chunks: Any = executor.map(time.sleep, [0, 0, 60], chunksize=2)
        next(chunks)
        chunks.close()


def test_map_refuses_a_chunksize_below_1(executor: BatchExecutor) -> None:
    with pytest.raises(ValueError, match=r"^chunksize must be >= 1\.$"):
        executor.map(abs, [1], chunksize=0)


def test_after_shutdown_nothing_can_be_submitted(make_executor: Make) -> None:
    executor = make_executor()
    future = executor.submit(abs, -1)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.submit(abs, -1)
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.map(abs, [1])
    executor.shutdown()
    assert (future.output(), future.running(), future.cancel()) == ("", False, False)


def test_shutdown_without_waiting_lets_pending_work_go_on(make_executor: Make) -> None:
    executor = make_executor()
    future = executor.submit(later, "done", 0.5)
    executor.shutdown(wait=False)
    assert not future.done()
    assert future.result() == "done"


def test_shutdown_may_cancel_what_does_not_run_yet(make_executor: Make, eventually: Eventually) -> None:
    executor = make_executor(slots=1)
    running = executor.submit(later, "done", 1)
    waiting = executor.submit(abs, -1)
    eventually(running.running)
    executor.shutdown(cancel_futures=True)
    assert running.result() == "done"
    assert waiting.cancelled()


def test_several_threads_may_shut_down_at_once(make_executor: Make) -> None:
    executor = make_executor()
    future = executor.submit(time.sleep, 0.3)
    threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert future.done()
    assert not any(thread.is_alive() for thread in threads)


def test_a_callback_may_shut_the_executor_down(make_executor: Make) -> None:
    executor = make_executor()
    done = threading.Event()

    def shut_down(_: object) -> None:
        executor.shutdown()
        done.set()

    executor.submit(abs, -1).add_done_callback(shut_down)
    assert done.wait(20)


def test_nothing_is_left_of_the_private_store(
    make_executor: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(threading.enumerate())
    with make_executor() as executor:
        assert list(tmp_path.glob("batchport-store-*"))
        executor.submit(abs, -1).result()
    assert not list(tmp_path.glob("batchport-store-*"))
    assert not set(threading.enumerate()) - before


def test_a_store_that_was_given_stays_and_holds_nothing_of_the_tasks(make_executor: Make, tmp_path: Path) -> None:
    with make_executor(store=tmp_path / "my store", name="mine") as executor:
        executor.submit(len, bytes(100_000)).result()
    left = {
        str(path.relative_to(tmp_path / "my store")) for path in (tmp_path / "my store").rglob("*") if path.is_file()
    }
    assert left == {"mine/birth", "mine/epochs/00000001"}


def test_an_executor_without_a_name_leaves_nothing_in_a_store_that_was_given(
    make_executor: Make, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with make_executor(store=store) as executor:
        executor.submit(len, bytes(100_000)).result()
        executor.submit(time.sleep, 50).cancel()
        assert list(store.iterdir())
    assert list(store.iterdir()) == []

    class Stuck(LocalAdapter):
        def open(self, worker: str) -> None:
            raise OSError("stuck")

    with pytest.raises(OSError, match="stuck"):
        make_executor(Stuck(Options(folder=str(tmp_path / "jobs"))), store=store)
    assert list(store.iterdir()) == []


def test_an_executor_without_a_name_leaves_nothing_in_an_object_store(make_executor: Make, tmp_path: Path) -> None:
    adapter = LocalAdapter(Options(folder=str(tmp_path / "jobs")))
    with make_executor(adapter, store="memory://left") as executor:
        assert open_store("memory://left").names("")
    assert open_store("memory://left").names("") == []
    assert executor.counts.jobs == 0


def test_an_executor_that_nobody_holds_ends_after_its_work(
    fast: dict[str, Any], tmp_path: Path, eventually: Eventually
) -> None:
    executor = BatchExecutor("local", tmp_path / "store", name="unheld", **fast)
    future = executor.submit(later, "done", 0.3)
    ref = weakref.ref(executor)
    del executor
    gc.collect()
    assert ref() is None
    assert future.result() == "done"
    eventually(lambda: not any("unheld" in thread.name for thread in threading.enumerate()))


def test_many_threads_may_submit_at_once(make_executor: Make) -> None:
    futures: list[Future[int]] = []

    def submit_some() -> None:
        futures.extend([executor.submit(abs, -1) for _ in range(20)])

    with make_executor(tasks_per_job=40) as executor:
        threads = [threading.Thread(target=submit_some) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(future.result() for future in futures) == 160


def test_a_thousand_calls_go_in_packs_and_in_order(make_executor: Make) -> None:
    def where(number: int) -> tuple[str, int]:
        element = os.environ.get("BATCHPORT_LOCAL_INDEX", "")
        return os.environ["BATCHPORT_JOB"] + element, number

    with make_executor(tasks_per_job=250) as executor:
        futures = [executor.submit(where, number) for number in range(1000)]
        results = [future.result() for future in futures]
    assert [number for _, number in results] == list(range(1000))
    jobs = [job for job, _ in results]
    assert all(len(set(jobs[start : start + 250])) == 1 for start in range(0, 1000, 250))
    counts = executor.counts
    assert (counts.done, counts.failed) == (1000, 0)
    assert counts.backend_calls["submit_job"] == counts.jobs <= 4


def test_equal_large_arguments_wait_in_memory_once(make_executor: Make) -> None:
    data = os.urandom(4 << 20)
    with make_executor(slots=1, max_jobs=1) as executor:
        executor.submit(time.sleep, 1)
        tracemalloc.start()
        try:
            futures = [executor.submit(len, data) for _ in range(8)]
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 3 * len(data)
        for future in futures[1:]:
            future.cancel()
        assert futures[0].result() == len(data)


def test_jobs_are_named_after_their_function(executor: BatchExecutor) -> None:
    def tokenize_file() -> str:
        return os.environ["BATCHPORT_JOB"]

    assert executor.submit(tokenize_file).result().startswith("tokenize-file-")


def test_options_give_the_same_executor_with_other_resources(make_executor: Make) -> None:
    with make_executor() as executor:
        short = executor.options(time_limit_s=1)
        future = short.submit(time.sleep, 60)
        with pytest.raises(TaskFailedError) as caught:
            list(short.options(cpus=2).map(time.sleep, [60]))
        assert caught.value.failure.reason is Reason.TIMEOUT
        assert isinstance(future.exception(), TaskFailedError)
        assert executor.submit(time.sleep, 1.5).result() is None


def test_resources_that_the_backend_cannot_give_fail_the_future_in_its_words(executor: BatchExecutor) -> None:
    with pytest.raises(TaskFailedError) as caught:
        executor.options(gpus=1).submit(abs, -1).result()
    assert caught.value.failure.reason is Reason.CONFIGURATION
    assert caught.value.failure.evidence == "1 GPUs for one job, and this backend has no GPUs"
    assert caught.value.failure.evidence in str(caught.value)


def test_options_refuse_what_resources_do_not_have(executor: BatchExecutor) -> None:
    with pytest.raises(UsageError) as caught:
        executor.options(cpu=2)  # type: ignore[call-arg]
    assert (
        str(caught.value) == "options() has no 'cpu'; it has: key, label, cpus, memory_mib, gpus, time_limit_s, extra"
    )
    with pytest.raises(UsageError, match=r"^Resources\(cpus=0\): must be a whole number of at least 1$"):
        executor.options(cpus=0)
    assert Resources(cpus=1).cpus == 1


def test_an_executor_works_as_long_as_its_view_is_held(make_executor: Make) -> None:
    view = make_executor().options(cpus=1)
    gc.collect()
    assert view.submit(abs, -1).result() == 1
    view.shutdown()


async def test_asyncio_runs_calls_in_it(executor: BatchExecutor) -> None:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(executor, abs, -3) == 3
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(executor, lambda: 1 // 0)


async def test_cancelling_in_asyncio_cancels_the_task(
    executor: BatchExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    future = executor.submit(leave_pid_and_sleep, tmp_path / "mark")
    while pid_in(tmp_path / "mark") is None:
        await asyncio.sleep(0.02)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.wrap_future(future), 0.1)
    assert future.cancelled()
    pid = pid_in(tmp_path / "mark")
    assert pid is not None
    await asyncio.to_thread(eventually, lambda: is_gone(pid))


def test_dask_computes_with_it(executor: BatchExecutor) -> None:
    def double(number: int) -> tuple[int, int]:
        return 2 * number, os.getpid()

    parts = [delayed(double)(number) for number in range(3)]
    total = delayed(lambda results: (sum(each for each, _ in results), {pid for _, pid in results}))(parts)
    (answer, pids) = compute(total, scheduler=executor)[0]  # type: ignore[no-untyped-call] # dask has no types
    assert answer == 6
    assert os.getpid() not in pids
